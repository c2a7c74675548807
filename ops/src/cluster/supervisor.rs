//! The supervisor: starts a cluster's processes in order, starts again what dies, stops all in the opposite order.
//!
//! One [`worker`] a process. A supervisor that was killed leaves its processes running; the next one finds them in the
//! kernel's process table and takes them over.

pub mod backoff;
pub mod report;
mod worker;

use std::sync::Arc;

use anyhow::{Context, bail};
use telemetry::Tasks;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{
    description::Description,
    layout::Layout,
    lock,
    member::{Member, Role},
};
use report::Reporter;
use worker::Worker;

/// Whether a process that died is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Restart,
    LeaveDead,
}

impl RestartPolicy {
    /// What `--no-restart` asks for.
    pub fn of(no_restart: bool) -> Self {
        if no_restart { Self::LeaveDead } else { Self::Restart }
    }
}

/// Runs the cluster until `stop` is cancelled, and stops it then.
pub async fn supervise(
    layout: Layout,
    description: Description,
    policy: RestartPolicy,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Some(_lock) = lock::take(&layout.supervisor_lock()).await? else {
        bail!("another supervisor runs the cluster in {}", layout.root().display());
    };
    let reporter = Arc::new(Reporter::new(&layout));
    let tasks = Tasks::new();
    let mut stages: Vec<Stage> = Role::STOP_ORDER.map(Stage::new).into();
    for member in Member::all(&layout, &description) {
        let stage = stages.iter_mut().find(|stage| stage.role == member.role).context("a role without its stage")?;
        let worker = Worker::new(member, &layout, &description, policy, Arc::clone(&reporter));
        stage.workers.push(tasks.spawn("worker", worker.run(stage.stop.clone())));
    }
    tracing::info!(data_dir = %layout.root().display(), ?policy, "supervising");
    stop.cancelled().await;

    tracing::info!("stopping the cluster");
    for stage in stages {
        stage.finish().await?;
    }
    tracing::info!("the cluster is stopped");
    Ok(())
}

/// The processes of one role: they are stopped together.
struct Stage {
    role: Role,
    stop: CancellationToken,
    workers: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Stage {
    fn new(role: Role) -> Self {
        Self { role, stop: CancellationToken::new(), workers: Vec::new() }
    }

    async fn finish(self) -> anyhow::Result<()> {
        self.stop.cancel();
        for worker in self.workers {
            worker.await??;
        }
        Ok(())
    }
}
