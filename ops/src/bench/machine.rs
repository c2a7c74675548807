//! The machine that a report was measured on, and the processor time and memory that the processes of a cluster take. Client, router, node
//! and PostgreSQL share the machine. Processor time for each transfer is therefore the figure that other load on the machine disturbs least.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::Context as _;
use serde::Serialize;

use crate::cluster::{
    Description, Layout,
    member::{Member, ProcessRole},
    process::{ProcessStat, ProcessTable},
};

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub memory_gib: f64,
    pub kernel: String,
}

impl Machine {
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.strip_suffix(" kB")?.trim().parse::<f64>().ok());
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            memory_gib: (memory_kib.unwrap_or_default() / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, processor, memory_gib, kernel } = self;
        write!(f, "{cores} cores of {processor}, {memory_gib} GiB of memory, Linux {kernel}")
    }
}

/// The value of a field of the form `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

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
    /// The time that the processes of a cluster and this one, with their ended children, have spent.
    pub fn now(layout: &Layout, description: &Description) -> anyhow::Result<Self> {
        let table = ProcessTable::read()?;
        let stats = ProcessStat::all()?;
        let mut spent = Self::default();
        let own = i32::try_from(std::process::id())?;
        spent.client = stats.iter().filter(|stat| stat.pid == own).map(with_ended_children_us).sum();
        for member in Member::all(layout, description) {
            let Some(process) = member.running(&table) else { continue };
            let of_role = match member.role {
                ProcessRole::Router => &mut spent.routers,
                ProcessRole::Node => &mut spent.nodes,
                ProcessRole::Postgres => &mut spent.postgres,
            };
            // A PostgreSQL server consists of the postmaster, its children that have ended, and its living children.
            let family = stats.iter().filter(|stat| stat.pid == process.pid() || stat.parent == process.pid());
            *of_role += family.map(with_ended_children_us).sum::<u64>();
        }
        Ok(spent)
    }

    /// The time spent since `before`, for each of `transfers` transfers.
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
    let stat = ProcessStat::read(pid).with_context(|| format!("process {pid} has no times in /proc"))?;
    Ok(with_ended_children_us(&stat) as f64)
}

/// A process and its living children.
pub fn family(pid: i32) -> anyhow::Result<Vec<i32>> {
    let stats = ProcessStat::all()?;
    Ok(stats.iter().filter(|stat| stat.pid == pid || stat.parent == pid).map(|stat| stat.pid).collect())
}

/// The processor time of a process and of its ended children, in microseconds.
fn with_ended_children_us(stat: &ProcessStat) -> u64 {
    (stat.ticks + stat.ended_children_ticks) * US_PER_TICK
}

/// Bytes by process. A service counts with its resident memory. A PostgreSQL server counts with the anonymous memory of all its
/// processes: its shared buffers have a fixed size and fill over time. Workers of autovacuum do not count, because each lives for one
/// table only.
#[derive(Debug, Clone, Default)]
pub struct Memory(pub BTreeMap<String, f64>);

impl Memory {
    pub fn now(layout: &Layout, description: &Description) -> anyhow::Result<Self> {
        let table = ProcessTable::read()?;
        let mut memory = BTreeMap::new();
        for member in Member::all(layout, description) {
            let Some(process) = member.running(&table) else { continue };
            let bytes = match member.role {
                ProcessRole::Router | ProcessRole::Node => status_bytes(process.pid(), "VmRSS:").unwrap_or_default(),
                ProcessRole::Postgres => family(process.pid())?
                    .into_iter()
                    .filter(|pid| !is_autovacuum_worker(*pid))
                    .filter_map(|pid| status_bytes(pid, "RssAnon:"))
                    .sum(),
            };
            memory.insert(member.name, bytes);
        }
        Ok(Self(memory))
    }
}

/// PostgreSQL shows what a process does as its command line.
fn is_autovacuum_worker(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.contains("autovacuum worker"))
}

/// A field of `/proc/<pid>/status`. A process that has ended has none.
fn status_bytes(pid: i32, field: &str) -> Option<f64> {
    in_bytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, field)
}

fn in_bytes(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "model\t\t: 1\nmodel name\t: A B\nMemTotal:   12 kB\n";
        assert_eq!(
            [field(text, "model name"), field(text, "MemTotal")],
            [Some("A B".to_owned()), Some("12 kB".to_owned())]
        );
        assert_eq!(field(text, "x"), None);
        assert!(Machine::this().cores > 0);
    }

    #[test]
    fn time_is_shared_among_transfers() {
        let before = Spent { client: 100, routers: 0, nodes: 0, postgres: 50 };
        let now = Spent { client: 300, routers: 50, nodes: 0, postgres: 50 };
        let expected = PerTransfer { client: 20.0, routers: 5.0, nodes: 0.0, postgres: 0.0 };
        assert_eq!(now.per_transfer(&before, 10.0), expected);
        assert_eq!(now.per_transfer(&before, 0.0).client, 0.0);
    }

    #[test]
    fn sizes_are_in_bytes() {
        let status = "Name:\tx\nVmRSS:\t   12 kB\nRssAnon:\t    7 kB\n";
        assert_eq!([in_bytes(status, "VmRSS:"), in_bytes(status, "RssAnon:")], [Some(12_288.0), Some(7_168.0)]);
        assert_eq!(in_bytes(status, "VmSwap:"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(status_bytes(own, "VmRSS:").unwrap() > 0.0);
    }
}
