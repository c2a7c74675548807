//! `shardctl map new-cluster-id` prints an id for a new cluster's map and nodes.

use std::process::ExitCode;

use shard_map::ClusterId;

use crate::{commands::Context, output};

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let id = ClusterId::generate();
    if context.json {
        output::json(&id)?
    } else {
        output::data(&id.to_string())?
    }
    Ok(ExitCode::SUCCESS)
}
