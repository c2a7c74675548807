//! The memory of a cluster's processes.

use std::{collections::BTreeMap, fs};

use crate::cluster::{
    Description, Layout,
    member::{Member, Role},
    process::ProcessTable,
};

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
                Role::Router | Role::Node => status_bytes(process.pid(), "VmRSS:").unwrap_or_default(),
                Role::Postgres => super::cpu::family(process.pid())?
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
    fn sizes_are_in_bytes() {
        let status = "Name:\tx\nVmRSS:\t   12 kB\nRssAnon:\t    7 kB\n";
        assert_eq!([in_bytes(status, "VmRSS:"), in_bytes(status, "RssAnon:")], [Some(12_288.0), Some(7_168.0)]);
        assert_eq!(in_bytes(status, "VmSwap:"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(status_bytes(own, "VmRSS:").unwrap() > 0.0);
    }
}
