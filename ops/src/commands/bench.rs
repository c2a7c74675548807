//! `shardctl bench`: load on routers, the whole comparison with a PL/pgSQL transfer function (`bench suite`), or
//! statements of a long history (`bench statements`).

mod load;
mod own_cluster;
mod prototype;
mod statements;
mod suite;

use std::process::ExitCode;

use super::Context;
use crate::exit;

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
    /// Measure statements of an account with a long history, in a cluster of its own
    Statements(statements::Args),
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    match args.command {
        None => load::run(args.load, context).await,
        Some(Command::Suite(args)) => suite::run(args, context).await,
        Some(Command::Prototype(args)) => prototype::run(args, context).await,
        Some(Command::Statements(args)) => statements::run(args, context).await,
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
