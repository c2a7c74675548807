//! A cluster of real processes with real PostgreSQL, started and stopped by `shardctl` as an operator would.

mod status;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::process::Command;

pub use status::{Member, Placement, RouterStatus, SecondNodeStatus, ShardStatus, Status};

use crate::{audit, client::Client, leash::Leash, process::Process, programs::program, wait::until_every};

/// The time that recovery from a fault may take on a busy machine. It includes the database's recovery and the supervisor's back-off.
pub const RECOVERY: Duration = Duration::from_secs(120);

/// The time that a drain may take. It includes the longest request.
const DRAIN: Duration = Duration::from_secs(40);

/// The pause between two looks at the cluster. It is long, because each look starts a process that asks every other process.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The exit code of `shardctl verify` after a violation.
const EXIT_VIOLATION: i32 = 3;

/// A running cluster in its own folder. Dropping it takes the cluster down and removes the folder.
#[derive(Debug)]
pub struct Cluster {
    shardctl: PathBuf,
    data_dir: PathBuf,
    status: Status,
    /// `None` if another process started the cluster and takes it down.
    leash: Option<Leash>,
    // This field is the last one, so that the lock is released after everything else is dropped.
    _turn: Option<File>,
}

impl Cluster {
    /// Waits for this test's turn and starts a cluster on free ports.
    pub async fn start(shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_in(&new_data_dir(), shards, routers).await
    }

    /// [`Cluster::start`] with additional environment variables for every process.
    pub async fn start_with(variables: &[(&str, &str)], shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(None, &new_data_dir(), variables, shards, routers, &[]).await
    }

    /// Starts a cluster whose shards have stand-bys. `mode` is `sync` or `async`.
    pub async fn start_with_standbys(mode: &str, shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(None, &new_data_dir(), &[], shards, routers, &["--standby", mode]).await
    }

    /// Starts a cluster with additional options of `shardctl up`.
    pub async fn start_with_options(options: &[&str], shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(None, &new_data_dir(), &[], shards, routers, options).await
    }

    /// The cluster in this folder, which another process started and takes down. [`Cluster::finish`] checks it and leaves it running.
    pub async fn running_in(data_dir: &Path) -> anyhow::Result<Self> {
        let shardctl = program("shardctl")?;
        let status = look(&shardctl, data_dir).await?;
        Ok(Self { shardctl, data_dir: data_dir.to_owned(), status, leash: None, _turn: None })
    }

    /// Starts a cluster in a folder that does not exist yet.
    pub async fn start_in(data_dir: &Path, shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(None, data_dir, &[], shards, routers, &[]).await
    }

    /// [`Cluster::start`] with a second node for each shard.
    pub async fn start_with_second_nodes(shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(None, &new_data_dir(), &[], shards, routers, &["--nodes", "2"]).await
    }

    /// [`Cluster::start_with_options`] with the programs in a folder, including its `shardctl`. Commands after the start use the `shardctl`
    /// of the present build.
    pub async fn start_from(programs: &Path, options: &[&str], shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(Some(programs), &new_data_dir(), &[], shards, routers, options).await
    }

    async fn start_all(
        programs: Option<&Path>,
        data_dir: &Path,
        variables: &[(&str, &str)],
        shards: u16,
        routers: u16,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let asked = Instant::now();
        let turn = wait_for_turn().await?;
        let began = Instant::now();
        let shardctl = program("shardctl")?;
        for service in ["router", "shard-node"] {
            program(service)?;
        }
        let data_dir = data_dir.to_owned();
        let leash = Some(Leash::on_cluster(&shardctl, &data_dir)?);
        let (shards, routers) = (shards.to_string(), routers.to_string());
        let size = ["--shards", &shards, "--routers", &routers, "--port-base", "0"];
        let starter = programs.map_or_else(|| shardctl.clone(), |folder| folder.join("shardctl"));
        let up = [&["up", "--json"][..], &size[..], more].concat();
        run_with(&starter, &data_dir, variables, &up).await?.successful()?;
        let status = look(&shardctl, &data_dir).await?;
        eprintln!("a cluster is up after {:.1?}, its turn came after {:.1?}", began.elapsed(), began - asked);
        Ok(Self { shardctl, data_dir, status, leash, _turn: turn })
    }

    /// The processes and addresses of the cluster, as of the last look.
    pub fn status(&self) -> &Status {
        &self.status
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The map file that all routers watch.
    pub fn shard_map_path(&self) -> PathBuf {
        self.data_dir.join("shard-map.toml")
    }

    /// A client that knows all routers, and trusts the authority of a cluster with TLS.
    pub fn client(&self) -> Client {
        let urls = || self.status.routers.iter().map(|router| router.url.clone()).collect();
        Client::trusting(urls(), &self.tls_dir().join("ca.pem")).unwrap_or_else(|_| Client::new(urls()))
    }

    /// The folder of the certificates of a cluster with TLS.
    pub fn tls_dir(&self) -> PathBuf {
        self.data_dir.join("tls")
    }

    /// The shard of each account id according to the present map file.
    pub fn placement(&self) -> anyhow::Result<Placement> {
        let path = self.shard_map_path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Placement::new(&text)
    }

    pub async fn refresh_status(&mut self) -> anyhow::Result<&Status> {
        self.status = look(&self.shardctl, &self.data_dir).await?;
        Ok(&self.status)
    }

    /// Every process of the cluster.
    pub fn members(&self) -> Vec<Member> {
        let routers = (0..self.status.routers.len()).map(Member::Router);
        let shards = (0..self.status.shards.len()).flat_map(|shard| [Member::Node(shard), Member::Postgres(shard)]);
        routers.chain(shards).collect()
    }

    /// The process behind a member as of the last look.
    pub fn process(&self, member: Member) -> anyhow::Result<Process> {
        let pid = self.status.pid(member).with_context(|| format!("{member} does not run"))?;
        Process::of(pid).with_context(|| format!("{member} (process {pid}) is gone"))
    }

    /// Changes how often the node of a shard folds, and starts the node again.
    pub async fn set_fold_interval(&mut self, shard: usize, interval: Duration) -> anyhow::Result<()> {
        self.write_fold_interval(shard, interval)?;
        self.terminate_and_recover(Member::Node(shard)).await
    }

    /// Changes how often the nodes of all shards fold, and starts the nodes again.
    pub async fn set_fold_intervals(&mut self, interval: Duration) -> anyhow::Result<()> {
        let shards = 0..self.status.shards.len();
        shards.clone().try_for_each(|shard| self.write_fold_interval(shard, interval))?;
        self.kill_and_recover(&shards.map(Member::Node).collect::<Vec<_>>()).await
    }

    /// Adds a section to the configuration of the nodes of all shards, and starts the nodes again.
    pub async fn configure_nodes(&mut self, section: &str) -> anyhow::Result<()> {
        for shard in &self.status.shards {
            let path = self.data_dir.join("config").join(format!("{}.toml", shard.id));
            let config = std::fs::read_to_string(&path)?;
            std::fs::write(&path, format!("{config}\n{section}"))?;
        }
        let nodes: Vec<_> = (0..self.status.shards.len()).map(Member::Node).collect();
        self.kill_and_recover(&nodes).await
    }

    fn write_fold_interval(&self, shard: usize, interval: Duration) -> anyhow::Result<()> {
        let id = &self.status.shards.get(shard).context("no such shard")?.id;
        let path = self.data_dir.join("config").join(format!("{id}.toml"));
        let config = std::fs::read_to_string(&path)?;
        ensure!(!config.contains("[lane]"), "{} has settings of the lane", path.display());
        Ok(std::fs::write(&path, format!("{config}\n[lane]\nfold_interval_ms = {}\n", interval.as_millis()))?)
    }

    /// Sends `kill -9` to several members at once, and waits until the supervisor has started them again and the whole cluster is ready.
    pub async fn kill_and_recover(&mut self, members: &[Member]) -> anyhow::Result<()> {
        let killed: Vec<(Member, Process)> =
            members.iter().map(|member| Ok((*member, self.process(*member)?))).collect::<anyhow::Result<_>>()?;
        try_join_all(killed.iter().map(|(_, process)| process.kill())).await?;
        self.wait_until_ready(&format!("{members:?} are back after kill -9"), &killed).await
    }

    /// Sends `kill -9` and does not wait for the member to come back.
    pub async fn kill(&self, member: Member) -> anyhow::Result<Process> {
        let killed = self.process(member)?;
        killed.kill().await?;
        Ok(killed)
    }

    /// Starts a `shardctl` command on this cluster and does not wait for its end. Dropping the child kills it.
    pub fn spawn_shardctl(&self, arguments: &[&str]) -> anyhow::Result<tokio::process::Child> {
        let mut command = Command::new(&self.shardctl);
        command.arg("--data-dir").arg(&self.data_dir).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn().with_context(|| format!("cannot run {}", self.shardctl.display()))
    }

    /// Sends SIGTERM. The member must drain and end by itself, and the supervisor must restart it.
    pub async fn terminate_and_recover(&mut self, member: Member) -> anyhow::Result<()> {
        let ended = self.process(member)?;
        ended.terminate(DRAIN).await?;
        self.wait_until_ready(&format!("{member} is back after SIGTERM"), &[(member, ended)]).await
    }

    /// Waits until every process answers. The members in `replaced` must run as new processes.
    pub async fn wait_until_ready(&mut self, what: &str, replaced: &[(Member, Process)]) -> anyhow::Result<()> {
        let (shardctl, data_dir) = (&self.shardctl, &self.data_dir);
        self.status = until_every(LOOK_EVERY, what, RECOVERY, async || {
            let status = look(shardctl, data_dir).await?;
            let is_new = |(member, old): &(Member, Process)| status.pid(*member).is_some_and(|pid| pid != old.pid());
            let is_back = replaced.iter().all(is_new) && status.is_ready();
            Ok(is_back.then_some(status))
        })
        .await?;
        Ok(())
    }

    /// The supervisor's log lines about one process of the cluster, such as `router-0` or `s0`.
    pub fn supervisor_says(&self, process: &str) -> anyhow::Result<Vec<String>> {
        let log = std::fs::read_to_string(self.data_dir.join("log").join("supervisor.log"))?;
        let named = format!("process=\"{process}\"");
        Ok(log.lines().filter(|line| line.contains(&named)).map(str::to_owned).collect())
    }

    /// Runs `shardctl down`, which stops everything and keeps the data. No process may be left.
    pub async fn down(&mut self) -> anyhow::Result<()> {
        let running = self.running().await?;
        run(&self.shardctl, &self.data_dir, &["down"]).await?.successful()?;
        all_gone(&running)
    }

    /// Runs `shardctl up` on the existing data.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        run(&self.shardctl, &self.data_dir, &["up", "--json"]).await?.successful()?;
        self.refresh_status().await?;
        Ok(())
    }

    /// Renames the data folder, as `mv` does. The cluster may be running.
    pub fn move_to(&mut self, data_dir: &Path) -> anyhow::Result<()> {
        let leash = Leash::on_cluster(&self.shardctl, data_dir)?;
        std::fs::rename(&self.data_dir, data_dir)?;
        self.data_dir = data_dir.to_owned();
        self.leash = Some(leash);
        Ok(())
    }

    /// Copies the data folder with `cp -a`. Dropping the copy takes it down and removes it.
    pub async fn copy(&self) -> anyhow::Result<Copy> {
        self.copy_to(&new_data_dir()).await
    }

    pub async fn copy_to(&self, data_dir: &Path) -> anyhow::Result<Copy> {
        let copy = Copy {
            leash: Leash::on_cluster(&self.shardctl, data_dir)?,
            shardctl: self.shardctl.clone(),
            data_dir: data_dir.to_owned(),
        };
        let copied = Command::new("cp").arg("-a").arg(&self.data_dir).arg(data_dir).status().await?;
        ensure!(copied.success(), "cp -a: {copied}");
        Ok(copy)
    }

    /// Runs `shardctl` on this cluster; the command may fail.
    pub async fn shardctl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        run(&self.shardctl, &self.data_dir, arguments).await
    }

    /// [`Cluster::shardctl`] with additional environment variables.
    pub async fn shardctl_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Output> {
        run_with(&self.shardctl, &self.data_dir, variables, arguments).await
    }

    /// Takes the cluster down and removes it. Fails if a row differs from the journal, if a process or a folder is left, or if a process
    /// has panicked. A cluster that another process started keeps running.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        self.no_panics()?;
        self.refresh_status().await?;
        audit::all_rebuild(&self).await?;
        let Some(mut leash) = self.leash.take() else { return Ok(()) };
        let running = self.running().await?;
        let ended = tokio::task::block_in_place(|| leash.release())?;
        ensure!(ended.success(), "the cluster in {} could not be taken down", self.data_dir.display());
        ensure!(!self.data_dir.exists(), "the folder {} was not removed", self.data_dir.display());
        all_gone(&running)
    }

    /// Checks every invariant on the live cluster, then ends it as [`Cluster::finish`] does.
    pub async fn verify_and_finish(self) -> anyhow::Result<()> {
        self.verify().await?;
        self.finish().await
    }

    /// Runs `shardctl verify`, which checks every invariant on the live cluster.
    pub async fn verify(&self) -> anyhow::Result<()> {
        let output = run(&self.shardctl, &self.data_dir, &["verify", "--json"]).await?;
        ensure!(output.code != Some(EXIT_VIOLATION), "verify found violations:\n{}", output.stdout);
        output.successful()?;
        Ok(())
    }

    /// Runs `shardctl` on this cluster and returns the JSON it prints.
    pub async fn shardctl_json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = run(&self.shardctl, &self.data_dir, arguments).await?.successful()?;
        serde_json::from_str(&output).with_context(|| format!("{arguments:?} printed {output:?}"))
    }

    /// Checks that no process has panicked, because no input and no fault may cause a panic.
    fn no_panics(&self) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(self.data_dir.join("log"))? {
            let path = entry?.path();
            let log = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            let panic = log.lines().find(|line| line.contains("panicked at"));
            ensure!(panic.is_none(), "{}: {}", path.display(), panic.unwrap_or_default());
        }
        Ok(())
    }

    async fn running(&mut self) -> anyhow::Result<Vec<Process>> {
        let status = self.refresh_status().await?;
        Ok(status.pids().into_iter().filter_map(Process::of).collect())
    }
}

/// Waits until no other test runs a cluster. Under nextest, the test groups of `.config/nextest.toml` limit which clusters run at the same
/// time, and this function does not wait. The kernel releases the lock when its holder ends in any way.
async fn wait_for_turn() -> anyhow::Result<Option<File>> {
    if std::env::var_os("NEXTEST").is_some() {
        return Ok(None);
    }
    let path = program("shardctl")?.with_file_name("cluster-tests.lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    tokio::task::spawn_blocking(move || {
        file.lock()?;
        anyhow::Ok(Some(file))
    })
    .await?
}

async fn look(shardctl: &Path, data_dir: &Path) -> anyhow::Result<Status> {
    Status::parse(&run(shardctl, data_dir, &["status", "--json", "--show-passwords"]).await?.stdout)
}

fn all_gone(processes: &[Process]) -> anyhow::Result<()> {
    let left: Vec<i32> = processes.iter().filter(|process| process.is_alive()).map(|process| process.pid()).collect();
    ensure!(left.is_empty(), "processes {left:?} still run");
    Ok(())
}

/// A copy of a cluster's data folder. It is not started.
#[derive(Debug)]
pub struct Copy {
    shardctl: PathBuf,
    data_dir: PathBuf,
    leash: Leash,
}

impl Copy {
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub async fn shardctl(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        run(&self.shardctl, &self.data_dir, arguments).await
    }

    pub async fn status(&self) -> anyhow::Result<Status> {
        look(&self.shardctl, &self.data_dir).await
    }

    /// Takes the copy down and removes it.
    pub fn remove(mut self) -> anyhow::Result<()> {
        let ended = tokio::task::block_in_place(|| self.leash.release())?;
        ensure!(ended.success(), "the copy in {} could not be taken down", self.data_dir.display());
        Ok(())
    }
}

fn new_data_dir() -> PathBuf {
    std::env::temp_dir().join(format!("shardledger-test-{}", uuid::Uuid::now_v7().simple()))
}

/// The exit and the output of a `shardctl` command.
#[derive(Debug)]
pub struct Output {
    command: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that succeeded.
    pub fn successful(self) -> anyhow::Result<String> {
        ensure!(
            self.code == Some(0),
            "shardctl {} ended with {:?}: {} {}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

async fn run(shardctl: &Path, data_dir: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    run_with(shardctl, data_dir, &[], arguments).await
}

async fn run_with(
    shardctl: &Path,
    data_dir: &Path,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> anyhow::Result<Output> {
    let output = Command::new(shardctl)
        .arg("--data-dir")
        .arg(data_dir)
        .args(arguments)
        .envs(variables.iter().copied())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", shardctl.display()))?;
    Ok(Output {
        command: arguments.join(" "),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
