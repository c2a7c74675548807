//! `shardctl shard …`

mod add;
mod drain;
mod failover;
mod list;
mod remove;

use std::process::ExitCode;

use super::Context;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Add a shard without slots. On this machine, without --node, its PostgreSQL and node are started as well
    Add(add::Args),
    /// Move every slot of a shard to the others, and delete what was moved. This cannot be reversed; for options use `move plan --drain` and `move apply`
    Drain(drain::Args),
    /// Take an empty shard out of the map. Refused while the shard still has client data
    Remove(remove::Args),
    /// Make a shard's stand-by its primary, and the former primary its stand-by (`up --standby`)
    Failover(failover::Args),
    /// Show each shard with its slots, accounts, size and share of the load
    List(list::Args),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Add(args) => add::run(args, context).await,
        Command::Drain(args) => drain::run(args, context).await,
        Command::Remove(args) => remove::run(args, context).await,
        Command::Failover(args) => failover::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
    }
}
