//! `shardctl map diff OLD NEW`

use std::{path::PathBuf, process::ExitCode};

use serde_json::json;
use shard_map::{MapDiff, ShardMap};

use crate::{commands::Context, output};

#[derive(clap::Args)]
pub struct Args {
    /// The map as it is
    old: PathBuf,
    /// The map as it is to be
    new: PathBuf,
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let (old, new) = (super::read(&args.old)?, super::read(&args.new)?);
    let diff = old.diff(&new);
    if context.json {
        output::json(&as_json(&old, &new, &diff))?;
    } else {
        print(&old, &new, &diff)?;
    }
    // Shown whole, but such a map would be refused.
    if !diff.is_empty()
        && let Err(error) = old.check_successor(&new)
    {
        output::note(&format!("a router with {} would refuse {}: {error}", args.old.display(), args.new.display()));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn as_json(old: &ShardMap, new: &ShardMap, diff: &MapDiff) -> serde_json::Value {
    let moves = diff.moves.iter().map(|m| json!({"slots": m.slots.to_string(), "from": m.from, "to": m.to}));
    let endpoints = diff.endpoints.iter().map(|e| json!({"shard": e.shard, "old": e.old, "new": e.new}));
    json!({
        "old_version": old.version,
        "new_version": new.version,
        "slots_moved": diff.slots_moved(),
        "moves": moves.collect::<Vec<_>>(),
        "added": diff.added,
        "removed": diff.removed,
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

pub fn print(old: &ShardMap, new: &ShardMap, diff: &MapDiff) -> anyhow::Result<()> {
    let slots_moved = diff.slots_moved();
    let slots_move = if slots_moved == 1 { "slot moves" } else { "slots move" };
    output::data(&format!("version {} to {}, {slots_moved} {slots_move}", old.version, new.version))?;
    let shards = diff.added.iter().map(|id| [format!("+{id}"), String::new(), "new".to_owned()]);
    let removed = diff.removed.iter().map(|id| [format!("-{id}"), String::new(), "gone".to_owned()]);
    let endpoints = diff
        .endpoints
        .iter()
        .map(|e| [e.shard.clone(), String::new(), format!("{} to {}", e.old.join(" "), e.new.join(" "))]);
    let moves = diff.moves.iter().map(|m| [m.from.clone(), m.slots.to_string(), format!("to {}", m.to)]);
    let rows: Vec<[String; 3]> = shards.chain(removed).chain(endpoints).chain(moves).collect();
    if rows.is_empty() { Ok(()) } else { output::table(["shard", "slots", "change"], &rows) }
}
