//! `shardctl move …`

pub mod apply;
mod orders;
mod plan;
mod report;
mod status;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use uuid::Uuid;

use super::{Context, router_address::AdminAddress};
use crate::{
    cluster::Layout,
    doctor,
    resharding::{nodes::Nodes, view::MoveView},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Decide which slots to move, and write the plan to a file
    Plan(plan::Args),
    /// Carry a plan out. Ctrl-C detaches: moves that have begun go on, others are not started
    Apply(apply::Args),
    /// Show the moves
    Status(status::Args),
    /// Stop the copy; once a move is catching up, delay only the cut-over
    Pause(orders::Args),
    /// Go on with a move that was paused
    Resume(orders::Args),
    /// Bound the rate of the copy
    Throttle(orders::ThrottleArgs),
    /// Compare both sides of a move when its copy is complete, before its cut-over
    Verify(orders::Args),
    /// Cut over a move that was told to wait
    Cutover(orders::Args),
    /// Move the slots back, with what was booked since
    Reverse(orders::Args),
    /// Give a move up before its cut-over, and delete what was copied
    Abort(orders::Args),
    /// Delete at the source what has moved; the move cannot be reversed afterwards
    Finish(orders::Args),
    /// Show what the moves did: pauses, rows, money
    Report(report::Args),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Plan(args) => plan::run(args, context).await,
        Command::Apply(args) => apply::run(args, context).await,
        Command::Status(args) => status::run(args, context).await,
        Command::Pause(args) => orders::pause(args, context).await,
        Command::Resume(args) => orders::resume(args, context).await,
        Command::Throttle(args) => orders::throttle(args, context).await,
        Command::Verify(args) => orders::verify(args, context).await,
        Command::Cutover(args) => orders::cut_over(args, context).await,
        Command::Reverse(args) => orders::reverse(args, context).await,
        Command::Abort(args) => orders::abort(args, context).await,
        Command::Finish(args) => orders::finish(args, context).await,
        Command::Report(args) => report::run(args, context).await,
    }
}

/// The nodes of the newest map that a router uses.
pub async fn nodes(address: &AdminAddress, context: &Context) -> anyhow::Result<Nodes> {
    let routers = address.routers(context)?;
    let mut failure = None;
    for url in &routers.urls {
        match doctor::router_map(&routers.client, url).await {
            Ok(map) => return Ok(Nodes { map }),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.context("there is no router to ask for the map")?)
}

/// A router of the cluster, and the map file to keep up to date.
#[derive(clap::Args)]
pub struct ClusterAddress {
    /// The map file that the routers watch, to be kept up to date [default: that of the cluster in --data-dir; none with --admin-url]
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    #[command(flatten)]
    pub address: AdminAddress,
}

impl ClusterAddress {
    pub fn map_file(&self, context: &Context) -> Option<PathBuf> {
        self.map.clone().or_else(|| map_file(&self.address, context))
    }
}

/// The map file that the routers of the data folder's cluster watch; `None` if another router is named.
pub fn map_file(address: &AdminAddress, context: &Context) -> Option<PathBuf> {
    let own = || Layout::find(&context.data_dir).ok().map(|layout| layout.shard_map());
    if address.named().is_none() { own() } else { None }
}

/// The move that is meant: the named one, or the only one that is open.
pub async fn find(nodes: &Nodes, named: Option<Uuid>) -> anyhow::Result<(String, wire::MoveStatus, MoveView)> {
    let (moves, failures) = nodes.list().await;
    let views = moves.into_iter().map(|(target, status)| {
        let view = MoveView::of(&target, &status);
        (target, status, view)
    });
    let mut meant: Vec<_> = views
        .filter(|(_, _, view)| match named {
            Some(id) => view.id == id,
            None => view.is_open(),
        })
        .collect();
    if meant.is_empty()
        && let Some(failure) = failures.into_iter().next()
    {
        return Err(failure.context("no shard that answers knows of the move"));
    }
    match (meant.pop(), meant.is_empty(), named) {
        (Some(found), true, _) => Ok(found),
        (Some(_), false, _) => bail!("several moves are open: name one (`shardctl move status` lists them)"),
        (None, _, Some(id)) => bail!("no shard knows of a move {id} (`shardctl move status --all` lists the moves)"),
        (None, _, None) => bail!("no move is open (`shardctl move status --all` lists those that are over)"),
    }
}
