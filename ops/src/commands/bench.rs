//! `shardctl bench`: load on routers, or the whole comparison with a PL/pgSQL transfer function (`bench suite`).

mod load;
mod suite;

use std::process::ExitCode;

use super::Context;

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
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    match args.command {
        None => load::run(args.load, context).await,
        Some(Command::Suite(args)) => suite::run(args, context).await,
    }
}
