//! `shardctl map …`

mod apply;
mod check;
mod diff;
mod new_cluster_id;
mod reload;
mod show;

use std::{fs, path::Path, process::ExitCode};

use anyhow::Context as _;
use shard_map::ShardMap;

use super::Context;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the map that a router uses, or the map in a file
    Show(show::Args),
    /// Check a file before it is put in place, and name each problem with its line
    Check(check::Args),
    /// Show what changes from one file to another
    Diff(diff::Args),
    /// Give every node and router a changed map. Slots stay where they are: only a move changes their shard
    Apply(apply::Args),
    /// Print an id for a new cluster, for its map and its nodes' configurations
    NewClusterId(new_cluster_id::Args),
    /// Make the routers read their files again now
    Reload(reload::Args),
}

pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(args) => show::run(args, context).await,
        Command::Check(args) => check::run(args, context).await,
        Command::Diff(args) => diff::run(args, context),
        Command::Apply(args) => apply::run(args, context).await,
        Command::NewClusterId(args) => new_cluster_id::run(args, context),
        Command::Reload(args) => reload::run(args, context).await,
    }
}

/// Reads the map in a file.
pub fn read(path: &Path) -> anyhow::Result<ShardMap> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    ShardMap::parse(&text).with_context(|| path.display().to_string())
}
