//! `shardctl down` stops a cluster, even if its supervisor is gone.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::{
    cluster::{Description, Layout, description::FoundDescription, files, member, process::Process},
    context::Context,
    exit::NotConfirmed,
    output::{self, note},
};

/// Longer than the supervisor needs to stop all its processes.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(240);

#[derive(clap::Args)]
pub struct DownArgs {
    /// Remove the data as well
    #[arg(long)]
    wipe: bool,
    /// Do not ask before removing data
    #[arg(long, requires = "wipe")]
    yes: bool,
}

pub async fn run(args: DownArgs, context: &Context) -> anyhow::Result<ExitCode> {
    if !context.data_dir.join("cluster.json").exists() {
        note(&format!("there is no cluster in {}", context.data_dir.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let layout = Layout::find(&context.data_dir)?;
    if args.wipe && !args.yes && !output::is_confirmed(&format!("remove all data in {}?", layout.root().display()))? {
        return Err(NotConfirmed.into());
    }
    let _lock = super::alone(&layout).await?;
    let FoundDescription { description, place } =
        Description::find(&layout)?.context("the cluster's description is missing")?;
    let supervised = stop_supervisor(&layout).await?;
    // Stop the processes that a killed supervisor left running, or that the supervisor could not stop.
    let mut orphans = member::stop_all(&layout, &description).await?;
    if let Some(former) = place.former() {
        orphans += member::stop_all(&former, &description).await?;
    }
    note(match (supervised, orphans) {
        (false, 0) => "the cluster was down already",
        _ => "the cluster is down",
    });
    if args.wipe {
        description.postgres.home.remove(&layout)?;
        layout.wipe()?;
        note(&format!("removed the data in {}", layout.root().display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns whether there was a supervisor to stop.
async fn stop_supervisor(layout: &Layout) -> anyhow::Result<bool> {
    let Some(supervisor) = files::lock_holder(&layout.supervisor_lock())?.and_then(Process::of) else {
        return Ok(false);
    };
    supervisor.signal(Signal::TERM)?;
    ensure!(
        supervisor.ended_within(SUPERVISOR_PATIENCE).await,
        "the supervisor (process {}) does not end; see {}",
        supervisor.pid(),
        layout.log("supervisor").display()
    );
    Ok(true)
}
