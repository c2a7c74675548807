//! `shardctl supervise`: the background process that `up` starts.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use telemetry::{logging, shutdown};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::cluster::{
    Description, Layout,
    supervisor::{Orders, RestartPolicy, supervise},
};

#[derive(clap::Args)]
pub struct Args {
    /// Do not restart processes that exit
    #[arg(long)]
    no_restart: bool,
    /// Give up the acknowledged payments that the database of this shard lacks
    #[arg(long, value_name = "SHARD")]
    accept_loss: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    logging::init(&logging::LogConfig::default())?;
    // Leave the terminal's session, so that closing the terminal does not end the cluster. This fails only if the
    // process already leads a session.
    let _ = rustix::process::setsid();
    let layout = Layout::find(&context.data_dir)?;
    let description = Description::load(&layout)?.context("no cluster to supervise")?;
    ensure!(description.root == layout.root(), "the data folder was moved: `shardctl up` starts the cluster");
    let stop = CancellationToken::new();
    let signal = shutdown::signal()?;
    let orders = Orders { policy: RestartPolicy::of(args.no_restart), accept_loss: args.accept_loss };
    let supervising = supervise(layout, description, orders, stop.clone());
    tokio::pin!(supervising);
    tokio::select! {
        ended = &mut supervising => return ended.map(|()| ExitCode::SUCCESS),
        signal = signal => tracing::info!(%signal, "asked to stop"),
    }
    stop.cancel();
    supervising.await?;
    Ok(ExitCode::SUCCESS)
}
