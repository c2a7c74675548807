//! Gives each shard the same small part of the machine, by a control group (version 1 or 2).

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::Signal;

use super::{machine::family, own_cluster::OwnCluster};
use crate::{cluster::member::ProcessRole, output};

/// If processors cannot be limited, each commit is delayed by this time instead.
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
        let (servers, nodes) = (cluster.processes(ProcessRole::Postgres)?, cluster.processes(ProcessRole::Node)?);
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
            // PostgreSQL delays a commit only if at least `commit_siblings` other transactions are open.
            let settings = format!("commit_delay = {COMMIT_DELAY_US}\ncommit_siblings = 0\n");
            fs::write(&file, settings).with_context(|| format!("cannot write {}", file.display()))?;
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
            }
        }
        for server in cluster.processes(ProcessRole::Postgres)? {
            server.signal(Signal::HUP)?;
        }
        tokio::time::sleep(SETTINGS_PAUSE).await;
        Ok(Self::CommitDelay)
    }

    /// The number of periods of the first `shards` shards, and the number of periods in which they used up their part.
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

/// The kernel meters the processor time of a group in periods of this length, which is the default. A group may exceed its share of a period
/// by a tick of the kernel: with periods of 20 ms, one shard of 0.125 cores got 20 % more than its share.
const PERIOD_US: u64 = 100_000;
const V1: &str = "/sys/fs/cgroup/cpu";
const V2: &str = "/sys/fs/cgroup";
/// The kernel refuses for a moment to remove a group whose processes have just ended.
const REMOVAL_TRIES: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// A group of processes that together get a part of the machine's processors. The group is removed when this value is dropped. Processes that
/// still run then have no limit.
#[derive(Debug)]
pub struct CpuGroup {
    path: PathBuf,
    parent: PathBuf,
}

impl CpuGroup {
    /// Makes a group that gets this number of cores.
    fn create(name: &str, cores: f64) -> anyhow::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if Path::new(V1).join("cgroup.procs").is_file() {
            let parent = under(V1, own_group(&own, |controllers| controllers.split(',').any(|name| name == "cpu")));
            return Self::create_v1(&parent, name, cores);
        }
        if Path::new(V2).join("cgroup.controllers").is_file() {
            let parent = under(V2, own_group(&own, str::is_empty));
            // A group that contains processes cannot contain groups with a limit. Only the root group can.
            return Self::create_v2(&parent, name, cores).or_else(|_| Self::create_v2(Path::new(V2), name, cores));
        }
        bail!("this machine has no control groups for processors")
    }

    fn create_v1(parent: &Path, name: &str, cores: f64) -> anyhow::Result<Self> {
        let group = Self::make(parent, name)?;
        group.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
        group.write("cpu.cfs_quota_us", &quota_us(cores).to_string())?;
        Ok(group)
    }

    fn create_v2(parent: &Path, name: &str, cores: f64) -> anyhow::Result<Self> {
        write(&parent.join("cgroup.subtree_control"), "+cpu")?;
        let group = Self::make(parent, name)?;
        group.write("cpu.max", &format!("{} {PERIOD_US}", quota_us(cores)))?;
        Ok(group)
    }

    fn make(parent: &Path, name: &str) -> anyhow::Result<Self> {
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, parent: parent.to_owned() })
    }

    /// Moves a process into the group. Its later children also belong to the group.
    fn add(&self, pid: i32) -> anyhow::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// The number of periods so far, and the number of periods in which the group used up its share.
    fn periods(&self) -> anyhow::Result<[f64; 2]> {
        let path = self.path.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(["nr_periods", "nr_throttled"].map(|name| stat(&text, name).unwrap_or_default()))
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        write(&self.path.join(file), text)
    }

    fn remove(&self) -> io::Result<()> {
        for pid in fs::read_to_string(self.path.join("cgroup.procs"))?.lines() {
            // The process may have ended in the meantime.
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        fs::remove_dir(&self.path)
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        for _ in 0..REMOVAL_TRIES {
            if self.remove().is_ok() {
                return;
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
        crate::output::note(&format!("{} could not be removed", self.path.display()));
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn quota_us(cores: f64) -> u64 {
    // The kernel refuses a quota below one millisecond.
    ((cores * PERIOD_US as f64).round() as u64).max(1_000)
}

/// This process's group of the hierarchy whose controllers `is_wanted` accepts, in `/proc/self/cgroup`.
fn own_group(text: &str, is_wanted: impl Fn(&str) -> bool) -> &str {
    let group = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        is_wanted(controllers).then_some(group)
    });
    group.unwrap_or("/")
}

fn under(mount: &str, group: &str) -> PathBuf {
    let path = Path::new(mount).join(group.trim_start_matches('/'));
    // In a container, the path of the group may be relative to the host's hierarchy.
    if path.is_dir() { path } else { PathBuf::from(mount) }
}

fn stat(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_by_its_controllers() {
        let text = "9:name=systemd:/x\n4:memory:/m\n2:cpu,cpuacct:/limited\n0::/unified\n";
        assert_eq!(own_group(text, |controllers| controllers.split(',').any(|name| name == "cpu")), "/limited");
        assert_eq!(own_group(text, str::is_empty), "/unified");
        assert_eq!(own_group("", str::is_empty), "/");
    }

    #[test]
    fn shares_become_microseconds() {
        assert_eq!([0.125, 1.0, 0.0001].map(quota_us), [12_500, 100_000, 1_000]);
        assert_eq!(stat("nr_periods 12\nnr_throttled 3\n", "nr_throttled"), Some(3.0));
    }
}
