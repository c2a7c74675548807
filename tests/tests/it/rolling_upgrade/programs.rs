//! The programs of two versions: the folder from which the cluster runs them, and the version that each process runs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use http::Method;
use testkit::{
    client::Client,
    cluster::{Cluster, Status},
    node::Folder,
    process::Process,
    programs::program,
    wait::until,
};
use tokio::process::Command;

/// The variable that names the folder of the programs of the version before.
const OLD_PROGRAMS_VARIABLE: &str = "SHARDLEDGER_OLD_BIN";
const SERVICES: [&str; 2] = ["router", "shard-node"];
/// The time that a drain may take. It includes the longest request.
const DRAIN: Duration = Duration::from_secs(40);
/// The time that a start may take on a busy machine.
const START: Duration = Duration::from_secs(60);

/// The folder from which a cluster runs its programs, as an installation has them.
pub struct Programs {
    folder: Folder,
    /// Whether old and new are the same programs.
    pub are_same: bool,
}

impl Programs {
    /// Installs the version before, or this version if the programs of that one are not given.
    pub fn of_the_version_before() -> anyhow::Result<Self> {
        let old = std::env::var_os(OLD_PROGRAMS_VARIABLE).map(PathBuf::from);
        let programs = Self { folder: Folder::create()?, are_same: old.is_none() };
        for name in SERVICES.into_iter().chain(["shardctl"]) {
            let from = old.as_ref().map_or_else(|| program(name), |old| Ok(old.join(name)))?;
            programs.install(name, &from)?;
        }
        Ok(programs)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Installs the nodes and routers of this version. Running processes keep the program that they were started with.
    pub fn install_new(&self) -> anyhow::Result<()> {
        SERVICES.into_iter().try_for_each(|name| self.install(name, &program(name)?))
    }

    /// Replaces the file in one step, as a package manager does.
    fn install(&self, name: &str, from: &Path) -> anyhow::Result<()> {
        let (new, place) = (self.folder.path().join(format!("{name}.new")), self.folder.path().join(name));
        let link = || std::fs::hard_link(from, &new).or_else(|_| std::fs::copy(from, &new).map(drop));
        link()
            .and_then(|()| std::fs::rename(&new, &place))
            .with_context(|| format!("cannot install {}", from.display()))?;
        // `rename` leaves the new name if both names are links to the same file.
        let _ = std::fs::remove_file(&new);
        Ok(())
    }
}

/// Runs `shard-node migrate` of this version for a shard, and returns what it printed.
pub async fn migrate(cluster: &Cluster, shard: usize, how: &str) -> anyhow::Result<String> {
    let config = cluster.data_dir().join("config").join(format!("{}.toml", cluster.status().shards[shard].id));
    let mut command = Command::new(program("shard-node")?);
    let output = command.args(["migrate", how, "--config"]).arg(config).output().await?;
    ensure!(output.status.success(), "migrate {how}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceProcess {
    FirstNode(usize),
    SecondNode(usize),
    Router(usize),
}

impl ServiceProcess {
    pub fn all(status: &Status) -> Vec<Self> {
        let nodes = (0..status.shards.len()).flat_map(|shard| [Self::FirstNode(shard), Self::SecondNode(shard)]);
        nodes.chain((0..status.routers.len()).map(Self::Router)).collect()
    }

    pub fn process(self, status: &Status) -> anyhow::Result<Process> {
        let pid = match self {
            Self::FirstNode(shard) => status.shards[shard].node_pid,
            Self::SecondNode(shard) => status.shards[shard].second_node.as_ref().and_then(|node| node.pid),
            Self::Router(router) => status.routers[router].pid,
        };
        pid.and_then(Process::of).with_context(|| format!("{self:?} does not run"))
    }

    fn admin_url(self, status: &Status) -> anyhow::Result<&str> {
        match self {
            Self::FirstNode(shard) => Some(status.shards[shard].node_admin_url.as_str()),
            Self::SecondNode(shard) => status.shards[shard].second_node.as_ref().map(|node| node.admin_url.as_str()),
            Self::Router(router) => Some(status.routers[router].admin_url.as_str()),
        }
        .with_context(|| format!("there is no {self:?}"))
    }

    /// Ends the process, which drains.
    pub async fn stop(self, status: &Status) -> anyhow::Result<()> {
        self.process(status)?.terminate(DRAIN).await.with_context(|| format!("{self:?}"))
    }

    /// Waits until the new process reports `ready`. The former one must have ended.
    pub async fn ready(self, client: &Client, status: &Status) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.admin_url(status)?);
        until(&format!("{self:?} is ready"), START, async || {
            let answer = client.request(Method::GET, &url, None).await?;
            Ok((answer.status == 200 && answer.json()?["status"] == "ready").then_some(()))
        })
        .await
    }

    /// Replaces the process. The supervisor starts the program that is installed by then.
    pub async fn replace(self, client: &Client, status: &Status) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.stop(status).await?;
        let ended = begun.elapsed();
        self.ready(client, status).await?;
        eprintln!(
            "  {self:?}: ended {ended:.1?} after SIGTERM, its successor was ready after {:.1?}",
            begun.elapsed()
        );
        Ok(())
    }

    /// The number of operations that a node has executed so far.
    pub async fn operations(self, client: &Client, status: &Status) -> anyhow::Result<u64> {
        let url = format!("{}/status", self.admin_url(status)?);
        let of_node = client.request(Method::GET, &url, None).await?.json()?;
        of_node["operations"].as_u64().with_context(|| format!("a node does not count its operations: {of_node}"))
    }
}

/// The commit from which each process was built, as the process reports it.
pub async fn commits(client: &Client, status: &Status) -> anyhow::Result<BTreeMap<ServiceProcess, String>> {
    let mut commits = BTreeMap::new();
    for place in ServiceProcess::all(status) {
        let url = format!("{}/version", place.admin_url(status)?);
        let version = client.request(Method::GET, &url, None).await?.json()?;
        commits.insert(
            place,
            version["commit"].as_str().with_context(|| format!("expected commit in {version}"))?.to_owned(),
        );
    }
    Ok(commits)
}
