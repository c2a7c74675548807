//! `shardctl bench`: load on routers, the whole comparison with a PL/pgSQL transfer function (`bench suite`), or
//! statements of a long history (`bench statements`).

mod load;
mod long;
mod mock_nodes;
mod overload;
mod own_cluster;
mod prototype;
mod reshard;
mod scaling;
mod soak;
mod statements;
mod suite;
mod takeover;

use std::{fs, path::Path, process::ExitCode};

use anyhow::Context as _;

use super::Context;
use crate::{
    bench::figures::{FIGURE_HEADER, Figure},
    exit, output,
};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(flatten)]
    load: load::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Measure clusters of its own beside a PL/pgSQL transfer function on the same PostgreSQL, in turn
    Suite(suite::Args),
    /// Measure what each choice of the append path costs, apart from the services
    Prototype(prototype::Args),
    /// Measure whether throughput grows with the number of shards, in clusters of its own
    Scaling(scaling::Args),
    /// Keep half of the peak for a long time, in a cluster of its own
    Soak(soak::Args),
    /// Grow a cluster of its own under load, shrink it again, and measure what clients notice
    Reshard(reshard::Args),
    /// Measure what takes too long for the suite: many accounts, a long history, an open snapshot
    Long(long::Args),
    /// Serve nodes without databases
    #[command(hide = true)]
    MockNodes(mock_nodes::Args),
    /// Measure statements of an account with a long history, in a cluster of its own
    Statements(statements::Args),
    /// Offer 1, 2, 5 and 10 times the capacity of a cluster of its own, freeze a shard of it, and see it recover
    Overload(overload::Args),
    /// Kill the first of two nodes under load, and measure how long payments wait, in a cluster of its own
    Takeover(takeover::Args),
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    match args.command {
        None => load::run(args.load, context).await,
        Some(Command::Suite(args)) => suite::run(args, context).await,
        Some(Command::Prototype(args)) => prototype::run(args, context).await,
        Some(Command::Scaling(args)) => scaling::run(args, context).await,
        Some(Command::Soak(args)) => soak::run(args, context).await,
        Some(Command::Reshard(args)) => reshard::run(args, context).await,
        Some(Command::Long(args)) => long::run(args, context).await,
        Some(Command::MockNodes(args)) => mock_nodes::run(args).await,
        Some(Command::Statements(args)) => statements::run(args, context).await,
        Some(Command::Overload(args)) => overload::run(args, context).await,
        Some(Command::Takeover(args)) => takeover::run(args, context).await,
    }
}

/// Of a measurement: 3 where the ledger that was measured does not balance, 1 where a bar was missed.
fn exit_code(verified: bool, all_met: bool) -> ExitCode {
    match (verified, all_met) {
        (false, _) => exit::violation(),
        (true, false) => exit::failure(),
        (true, true) => ExitCode::SUCCESS,
    }
}

/// The figures against their bars, as a table.
fn print_figures(figures: &[Figure]) -> anyhow::Result<()> {
    let rows: Vec<[String; 5]> = figures.iter().map(Figure::cells).collect();
    output::table(FIGURE_HEADER, &rows)
}

/// Writes a report's page to the file, where one is named.
fn write_page(file: Option<&Path>, page: impl FnOnce() -> String) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    fs::write(file, page()).with_context(|| format!("cannot write {}", file.display()))
}
