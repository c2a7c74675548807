//! The same small part of the machine for each shard.

use std::{fmt, fs, time::Duration};

use anyhow::Context;
use rustix::process::Signal;

use crate::{
    bench::{cgroup::CpuGroup, cpu::family, own_cluster::OwnCluster},
    cluster::member::Role,
    output,
};

/// Where processors cannot be limited, each commit takes so much longer.
const COMMIT_DELAY_US: u32 = 20_000;
/// PostgreSQL reads its settings again within this time.
const SETTINGS_PAUSE: Duration = Duration::from_secs(1);

/// How the shards of a cluster are limited.
pub enum Limits {
    /// A group of processes for each shard.
    Groups { groups: Vec<CpuGroup>, cores: f64 },
    /// A fixed delay of each commit.
    CommitDelay,
}

impl Limits {
    /// Limits every shard of a running cluster.
    pub async fn set(cluster: &OwnCluster, cores: f64) -> anyhow::Result<Self> {
        match Self::groups(cluster, cores) {
            Ok(limits) => Ok(limits),
            Err(error) => {
                output::note(&format!("processors cannot be limited here ({error:#}); commits are delayed instead"));
                Self::delay(cluster).await
            }
        }
    }

    fn groups(cluster: &OwnCluster, cores: f64) -> anyhow::Result<Self> {
        let (servers, nodes) = (cluster.processes(Role::Postgres)?, cluster.processes(Role::Node)?);
        let mut groups = Vec::new();
        for (number, (server, node)) in servers.iter().zip(&nodes).enumerate() {
            let group = CpuGroup::create(&format!("shardledger-bench-{}-{number}", std::process::id()), cores)?;
            // A server that forks in between has its new process in the group.
            group.add(server.pid())?;
            for pid in family(server.pid())? {
                group.add(pid)?;
            }
            group.add(node.pid())?;
            groups.push(group);
        }
        Ok(Self::Groups { groups, cores })
    }

    async fn delay(cluster: &OwnCluster) -> anyhow::Result<Self> {
        for shard in &cluster.description.shards {
            let file = cluster.description.database_folder(cluster.layout(), shard).join("local.conf");
            // Without siblings a commit would not wait.
            let settings = format!("commit_delay = {COMMIT_DELAY_US}\ncommit_siblings = 0\n");
            fs::write(&file, settings).with_context(|| format!("cannot write {}", file.display()))?;
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
            }
        }
        for server in cluster.processes(Role::Postgres)? {
            server.signal(Signal::HUP)?;
        }
        tokio::time::sleep(SETTINGS_PAUSE).await;
        Ok(Self::CommitDelay)
    }

    /// Periods of the first so many shards, and those in which they had used their part up.
    pub fn periods(&self, shards: u16) -> anyhow::Result<Option<[f64; 2]>> {
        let Self::Groups { groups, .. } = self else { return Ok(None) };
        let mut sum = [0.0, 0.0];
        for group in groups.iter().take(usize::from(shards)) {
            let [periods, throttled] = group.periods()?;
            sum = [sum[0] + periods, sum[1] + throttled];
        }
        Ok(Some(sum))
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Groups { cores, .. } => {
                write!(f, "PostgreSQL and node of each shard together have {cores} cores (control groups)")
            }
            Self::CommitDelay => {
                write!(
                    f,
                    "each commit of a shard waits {} ms (commit_delay), because this machine cannot limit \
                    processors",
                    COMMIT_DELAY_US / 1_000
                )
            }
        }
    }
}
