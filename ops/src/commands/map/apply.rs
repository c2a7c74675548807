//! `shardctl map apply FILE`: a changed map for every node and router.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use super::diff;
use crate::{
    cluster::durable_file::{self, Audience},
    commands::{Context, slot_move},
    output,
    resharding::nodes::Nodes,
};

#[derive(clap::Args)]
pub struct Args {
    /// The map as it is to be. Its version must be higher than the present one
    file: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: slot_move::ClusterAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let new = super::read(&args.file)?;
    let nodes = slot_move::nodes(&args.cluster.address, context).await?;
    let old = nodes.newest_map().await;
    let diff = old.diff(&new);
    if let Some(gone) = diff.removed.first() {
        bail!(
            "the map does not have shard {gone} any more. `shardctl shard remove {gone}` takes an empty shard out of the map"
        );
    }
    old.check_successor(&new).with_context(|| args.file.display().to_string())?;
    if !args.dry_run {
        publish(&args, &new, context).await?;
    }
    if context.json {
        let mut json = diff::as_json(&old, &new, &diff);
        json["applied"] = json!(!args.dry_run);
        output::json(&json)?;
    } else {
        diff::print(&old, &new, &diff)?;
        output::note(if args.dry_run {
            "nothing was changed"
        } else {
            "every shard has the map; routers read it from the shards"
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// Offers the map to the nodes, and then replaces the routers' file: a node that refuses the map leaves the file as it is.
async fn publish(args: &Args, new: &shard_map::ShardMap, context: &Context) -> anyhow::Result<()> {
    let nodes = Nodes { map: new.clone() };
    let refused = nodes.offer(new).await;
    ensure!(
        refused.is_empty(),
        "these shards did not take map version {}: {}. The other shards have it. Correct the cause, then run `shardctl doctor --fix`",
        new.version,
        refused.join("; ")
    );
    let Some(watched) = args.cluster.map_file(context) else { return Ok(()) };
    let is_same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if !is_same(&watched, &args.file) {
        let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
        durable_file::replace(&watched, &text, Audience::Everyone)?;
    }
    Ok(())
}
