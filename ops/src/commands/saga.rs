//! `shardctl saga …`: cross-shard transfers under way.

mod list;
mod retry;

use std::process::ExitCode;

use super::{Context, transfer};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List them, oldest first
    List(list::Args),
    /// Show one with its steps, under way or finished
    Show(transfer::show::Args),
    /// Make one due now, whatever its next attempt says
    Retry(retry::Args),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(args) => list::run(args, context).await,
        // A saga is a transfer: its steps are part of it.
        Command::Show(args) => transfer::show::run(args, context).await,
        Command::Retry(args) => retry::run(args, context).await,
    }
}
