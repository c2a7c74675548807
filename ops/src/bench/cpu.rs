//! Where the processor time goes: on a machine that client, router, node and PostgreSQL share, it is what is left of a
//! measurement when others disturb it.

use std::fs;

use serde::Serialize;

use crate::cluster::{
    Description, Layout,
    member::{Member, Role},
    process::ProcessTable,
};

/// `/proc` counts in hundredths of a second (USER_HZ) on every architecture this runs on.
const US_PER_TICK: u64 = 10_000;

/// Processor time so far, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    client: u64,
    routers: u64,
    nodes: u64,
    postgres: u64,
}

/// Processor time a transfer, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PerTransfer {
    pub client: f64,
    pub routers: f64,
    pub nodes: f64,
    pub postgres: f64,
}

impl Spent {
    /// What the processes of a cluster and this one, ended children included, have spent.
    pub fn now(layout: &Layout, description: &Description) -> anyhow::Result<Self> {
        let table = ProcessTable::read()?;
        let stats = all_stats()?;
        let mut spent = Self::default();
        let own = i32::try_from(std::process::id())?;
        spent.client = stats.iter().filter(|stat| stat.pid == own).map(Stat::with_ended_children_us).sum();
        for member in Member::all(layout, description) {
            let Some(process) = member.running(&table) else { continue };
            let of_role = match member.role {
                Role::Router => &mut spent.routers,
                Role::Node => &mut spent.nodes,
                Role::Postgres => &mut spent.postgres,
            };
            // A PostgreSQL server is a family: the postmaster, those that ended, those that live.
            let family = stats.iter().filter(|stat| stat.pid == process.pid() || stat.parent == process.pid());
            *of_role += family.map(Stat::with_ended_children_us).sum::<u64>();
        }
        Ok(spent)
    }

    /// What was spent since, over so many transfers.
    pub fn per_transfer(&self, before: &Self, transfers: f64) -> PerTransfer {
        let each =
            |now: u64, before: u64| if transfers > 0.0 { now.saturating_sub(before) as f64 / transfers } else { 0.0 };
        PerTransfer {
            client: each(self.client, before.client),
            routers: each(self.routers, before.routers),
            nodes: each(self.nodes, before.nodes),
            postgres: each(self.postgres, before.postgres),
        }
    }
}

/// The processor time of one process of this machine with its ended children, in microseconds.
pub fn process_us(pid: i32) -> anyhow::Result<f64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let stat = Stat::parse(&line).ok_or_else(|| anyhow::anyhow!("process {pid} tells no times"))?;
    Ok(stat.with_ended_children_us() as f64)
}

/// A process and its living children.
pub fn family(pid: i32) -> anyhow::Result<Vec<i32>> {
    let stats = all_stats()?;
    Ok(stats.iter().filter(|stat| stat.pid == pid || stat.parent == pid).map(|stat| stat.pid).collect())
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pid: i32,
    parent: i32,
    ticks: u64,
    ended_children_ticks: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        let (pid, _) = line.split_once(' ')?;
        // The program's name stands in parentheses and may hold anything.
        let (_, rest) = line.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: number(11)? + number(12)?,
            ended_children_ticks: number(13)? + number(14)?,
        })
    }

    fn with_ended_children_us(&self) -> u64 {
        (self.ticks + self.ended_children_ticks) * US_PER_TICK
    }
}

fn all_stats() -> anyhow::Result<Vec<Stat>> {
    let mut stats = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // Whoever ends while the folder is read is not there any more.
        let Ok(line) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        stats.extend(Stat::parse(&line));
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_give_processor_time() {
        let line = "42 (a (b) c) S 7 42 42 0 -1 4194304 1 0 0 0 5 6 70 80 20 0 1 0 777 1 1 1";
        assert_eq!(Stat::parse(line), Some(Stat { pid: 42, parent: 7, ticks: 11, ended_children_ticks: 150 }));
        assert_eq!(Stat::parse("42 (x"), None);
    }

    #[test]
    fn time_is_shared_among_transfers() {
        let before = Spent { client: 100, routers: 0, nodes: 0, postgres: 50 };
        let now = Spent { client: 300, routers: 50, nodes: 0, postgres: 50 };
        let expected = PerTransfer { client: 20.0, routers: 5.0, nodes: 0.0, postgres: 0.0 };
        assert_eq!(now.per_transfer(&before, 10.0), expected);
        assert_eq!(now.per_transfer(&before, 0.0).client, 0.0);
    }
}
