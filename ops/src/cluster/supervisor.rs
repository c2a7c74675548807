//! The supervisor starts the processes of a cluster in order, restarts a process that dies, and stops all processes in the opposite order.
//!
//! There is one [`worker`] for each process. A killed supervisor leaves its processes running. The next supervisor finds them in the kernel's
//! process table and takes them over. `run/processes.json` ([`SupervisorReport`]) is for operators and for `up`, which gives up early if a
//! process keeps dying. The supervisor itself does not rely on this file.

mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use telemetry::Tasks;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use worker::Worker;

use super::{
    description::Description,
    files::{self, Audience},
    layout::Layout,
    member::{Member, ProcessRole},
};

/// Whether a process that died is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Restart,
    LeaveDead,
}

impl RestartPolicy {
    /// The policy that `--no-restart` selects.
    pub fn of(no_restart: bool) -> Self {
        if no_restart { Self::LeaveDead } else { Self::Restart }
    }
}

/// The orders of the operator at a start of the cluster.
#[derive(Debug, Clone)]
pub struct Orders {
    pub policy: RestartPolicy,
    /// The shard whose database is accepted once although it lacks acknowledged payments.
    pub accept_loss: Option<String>,
}

/// How often the supervisor looks for shards that were added.
const LOOK_FOR_SHARDS: Duration = Duration::from_millis(500);
/// A process that only looks at the lock releases it at once.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Runs the cluster until `stop` is cancelled, and then stops the cluster.
pub async fn supervise(
    layout: Layout,
    description: Description,
    orders: Orders,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Some(_lock) = files::take_lock(&layout.supervisor_lock(), LOCK_PATIENCE).await? else {
        bail!("another supervisor runs the cluster in {}", layout.root().display());
    };
    let reporter = Arc::new(Reporter::new(&layout));
    let tasks = Tasks::new();
    let mut stages: Vec<RoleGroup> = ProcessRole::STOP_ORDER.map(RoleGroup::new).into();
    // For each shard: whether its database is migrated and accepted. The second node of the shard waits for that.
    let mut prepared: HashMap<String, watch::Sender<bool>> = HashMap::new();
    let mut start_new = |stages: &mut [RoleGroup], description: &Description| -> anyhow::Result<()> {
        for member in Member::all(&layout, description) {
            let stage =
                stages.iter_mut().find(|stage| stage.role == member.role).context("a role without its group")?;
            if stage.workers.iter().any(|worker| worker.name == member.name) {
                continue;
            }
            let (name, stop) = (member.name.clone(), stage.stop.child_token());
            let worker = Worker::new(member, &layout, description, &orders, Arc::clone(&reporter), &mut prepared);
            let task = tasks.spawn("worker", worker.run(stop.clone()));
            stage.workers.push(Supervised { name, stop, task });
        }
        Ok(())
    };
    start_new(&mut stages, &description)?;
    tracing::info!(data_dir = %layout.root().display(), policy = ?orders.policy, "supervising");
    // `shardctl shard add` and `shardctl shard remove` change the description.
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_FOR_SHARDS)).await.is_some() {
        match Description::load(&layout) {
            Ok(Some(description)) => {
                start_new(&mut stages, &description)?;
                stop_gone(&mut stages, &Member::all(&layout, &description), &reporter).await;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot read the cluster's description"),
        }
    }

    tracing::info!("stopping the cluster");
    // A process that does not end must not prevent an orderly shutdown of the databases.
    let mut outcome = Ok(());
    for stage in stages {
        outcome = outcome.and(stage.finish().await);
    }
    tracing::info!(clean = outcome.is_ok(), "the cluster is stopped");
    outcome
}

/// Stops the processes that no longer belong to the cluster. A node stops before its database.
async fn stop_gone(stages: &mut [RoleGroup], members: &[Member], reporter: &Reporter) {
    for stage in stages {
        let is_member = |worker: &Supervised| members.iter().any(|member| member.name == worker.name);
        let (kept, gone) = std::mem::take(&mut stage.workers).into_iter().partition(is_member);
        stage.workers = kept;
        for worker in gone {
            tracing::info!(process = worker.name, "not a part of the cluster any more: stopping it");
            worker.stop.cancel();
            // A failure here must not end the supervision of the other processes.
            if let Err(error) = worker.task.await.map_err(anyhow::Error::from).and_then(|ended| ended) {
                tracing::error!(process = worker.name, error = format!("{error:#}"), "it could not be stopped");
            }
            reporter.forget(&worker.name);
        }
    }
}

/// The processes of one role, which are stopped together.
struct RoleGroup {
    role: ProcessRole,
    stop: CancellationToken,
    workers: Vec<Supervised>,
}

/// One process and the task that keeps it running.
struct Supervised {
    name: String,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl RoleGroup {
    fn new(role: ProcessRole) -> Self {
        Self { role, stop: CancellationToken::new(), workers: Vec::new() }
    }

    async fn finish(self) -> anyhow::Result<()> {
        self.stop.cancel();
        let ended = join_all(self.workers.into_iter().map(|worker| worker.task)).await;
        ended.into_iter().try_for_each(|worker| worker?)
    }
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// The death of a process that ran at least this long does not count as a part of a crash loop.
pub const WELL_AFTER: Duration = Duration::from_secs(2);

/// The pause before a process is started again. The pause doubles with each early death. Its bound lets a cluster recover by itself within
/// half a minute.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The pause after a process has run for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= WELL_AFTER {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

/// The reports of all processes, by the name of the process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SupervisorReport(pub BTreeMap<String, ProcessReport>);

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct ProcessReport {
    pub pid: Option<i32>,
    /// Deaths since the supervisor started.
    pub deaths: u32,
    /// Consecutive deaths, each within [`WELL_AFTER`] of the start.
    pub early_deaths: u32,
    /// How the process ended last.
    pub last_end: Option<String>,
}

impl SupervisorReport {
    /// Reads the newest report. Returns an empty one if none has been written.
    pub fn read(layout: &Layout) -> Self {
        let text = fs::read_to_string(layout.report()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// Keeps the report up to date.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    report: Mutex<SupervisorReport>,
}

impl Reporter {
    pub fn new(layout: &Layout) -> Self {
        let reporter = Self { path: layout.report(), report: Mutex::default() };
        reporter.change(|_| {});
        reporter
    }

    pub fn started(&self, member: &Member, pid: i32) {
        self.change(|report| report.0.entry(member.name.clone()).or_default().pid = Some(pid));
    }

    pub fn ended(&self, member: &Member, how: &str, early: bool) {
        self.change(|report| {
            let process = report.0.entry(member.name.clone()).or_default();
            process.pid = None;
            process.deaths += 1;
            process.early_deaths = if early { process.early_deaths + 1 } else { 0 };
            process.last_end = Some(how.to_owned());
        });
    }

    /// Removes a process that the supervisor has stopped and does not start again. A failover waits for that.
    pub fn forget(&self, name: &str) {
        self.change(|report| {
            report.0.remove(name);
        });
    }

    fn change(&self, change: impl FnOnce(&mut SupervisorReport)) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut report);
        let written = serde_json::to_string_pretty(&*report)
            .map_err(anyhow::Error::from)
            .and_then(|text| files::replace(&self.path, &text, Audience::Everyone));
        // A full disk must not stop the cluster.
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the report");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_deaths_wait_longer_and_a_long_life_forgives() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after(WELL_AFTER).as_millis(), 100);
    }
}
