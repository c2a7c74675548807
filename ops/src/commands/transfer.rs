//! `shardctl transfer …`

mod create;
mod list;
pub mod show;

use std::process::ExitCode;

use super::Context;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show a transfer, and where it is cross-shard, its steps
    Show(show::Args),
    /// List an account's transfers, newest first
    List(list::Args),
    /// Pay one amount from one account to another
    Create(create::Args),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(args) => show::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
        Command::Create(args) => create::run(args, context).await,
    }
}
