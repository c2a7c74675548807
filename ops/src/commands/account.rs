//! `shardctl account …`

mod entries;
mod list;
mod show;

use std::process::ExitCode;

use super::Context;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show an account with its balances, slot and shard
    Show(show::Args),
    /// List accounts of all shards in the order of their ids
    List(list::Args),
    /// Show what changed an account, newest first
    Entries(entries::Args),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(args) => show::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
        Command::Entries(args) => entries::run(args, context).await,
    }
}
