//! Starts a prepared cluster, under its own supervisor or in the foreground.

use std::{
    fs::OpenOptions,
    future,
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use rustix::process::Signal;
use telemetry::{logging, shutdown};
use tokio_util::sync::CancellationToken;

use super::announce;
use crate::{
    cluster::{
        Description, Layout, environment,
        lock::Lock,
        process::Process,
        readiness::{self, Watch},
        supervisor::{Orders, RestartPolicy, supervise},
    },
    commands::Context,
};

/// Starts a supervisor in the background and returns once the cluster is ready.
pub async fn in_background(layout: &Layout, orders: Orders, context: &Context) -> anyhow::Result<ExitCode> {
    let supervisor = start_supervisor(layout, &orders)?;
    let pid = i32::try_from(supervisor.id())?;
    match readiness::wait(layout, Watch::new(orders.policy, supervisor)).await {
        Ok(status) => {
            announce(&status, context)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            // Stop a cluster that does not become ready, but keep its logs.
            if let Some(process) = Process::of(pid) {
                process.signal(Signal::TERM)?;
                process.ended().await;
            }
            Err(error)
        }
    }
}

fn start_supervisor(layout: &Layout, orders: &Orders) -> anyhow::Result<Child> {
    let path = layout.log("supervisor");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("supervise").arg("--data-dir").arg(layout.root());
    if orders.policy == RestartPolicy::LeaveDead {
        command.arg("--no-restart");
    }
    if let Some(shard) = &orders.accept_loss {
        command.args(["--accept-loss", shard]);
    }
    environment::clean(&mut command);
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("cannot start the supervisor")
}

/// Supervises the cluster in this process until a signal arrives.
pub async fn in_foreground(
    layout: Layout,
    description: Description,
    orders: Orders,
    lock: Lock,
    context: &Context,
) -> anyhow::Result<ExitCode> {
    logging::init(&logging::LogConfig::default())?;
    let signal = shutdown::signal()?;
    let stop = CancellationToken::new();
    let supervising = supervise(layout.clone(), description, orders, stop.clone());
    tokio::pin!(supervising);
    let failing_to_come_up = async {
        let come_up = async {
            let status = readiness::wait(&layout, Watch::any()).await?;
            announce(&status, context)
        };
        let came_up = come_up.await;
        // From here on `down` may run.
        drop(lock);
        match came_up {
            Ok(()) => future::pending().await,
            Err(error) => error,
        }
    };
    let outcome = tokio::select! {
        ended = &mut supervising => return ended.map(|()| ExitCode::SUCCESS),
        error = failing_to_come_up => Err(error),
        _ = signal => Ok(ExitCode::SUCCESS),
    };
    stop.cancel();
    supervising.await.and(outcome)
}
