//! `shardctl hold …`

mod list;
mod show;

use std::process::ExitCode;

use super::Context;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show a hold, and what remains of it
    Show(show::Args),
    /// List an account's holds, newest first
    List(list::Args),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(args) => show::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
    }
}
