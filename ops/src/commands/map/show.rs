//! `shardctl map show`

use std::{path::PathBuf, process::ExitCode};

use serde_json::{Value, json};
use shard_map::ShardMap;

use crate::{
    commands::{Context, router_address::AdminAddress},
    output,
};

#[derive(clap::Args)]
pub struct Args {
    /// Show this file instead of what a router works with
    #[arg(long, value_name = "FILE", conflicts_with = "admin_url")]
    file: Option<PathBuf>,
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let map: Value = match &args.file {
        Some(path) => of_file(&super::read(path)?),
        None => args.address.routers(context)?.get("/admin/shard-map").await?,
    };
    if context.json {
        output::json(&map)?;
    } else {
        print(&map)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The part of a router's answer that a file can give.
fn of_file(map: &ShardMap) -> Value {
    let shards = map.shards.iter().map(|shard| {
        let slots: Vec<String> = shard.slots.iter().map(ToString::to_string).collect();
        json!({"id": shard.id, "number": shard.number, "nodes": shard.nodes, "slots": slots})
    });
    json!({"version": map.version, "shards": shards.collect::<Vec<_>>()})
}

fn print(map: &Value) -> anyhow::Result<()> {
    let source = map["source"].as_str().map(|source| format!("  from {source}")).unwrap_or_default();
    output::data(&format!("version {}{source}\n", map["version"]))?;
    let rows: Vec<[String; 5]> = items(&map["shards"])
        .iter()
        .map(|shard| {
            [
                output::cell(&shard["id"]),
                output::cell(&shard["number"]),
                words(&shard["slots"]),
                words(&shard["nodes"]),
                output::cell(&shard["health"]),
            ]
        })
        .collect();
    output::table(["shard", "number", "slots", "nodes", "health"], &rows)?;
    let overrides: Vec<[String; 4]> = items(&map["overrides"])
        .iter()
        .map(|slots| ["slots", "in_map", "owner", "epoch"].map(|field| output::cell(&slots[field])))
        .collect();
    if !overrides.is_empty() {
        output::data("\nby the shards' own word:")?;
        output::table(["slots", "in the map", "owner", "epoch"], &overrides)?;
    }
    // The map above is not the one somebody meant to bring into use.
    if let Some(reason) = map["refused"]["reason"].as_str() {
        output::note(&format!("refused: {reason}"));
    }
    Ok(())
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A list as words beside each other.
fn words(list: &Value) -> String {
    match list.as_array() {
        Some(items) => items.iter().map(output::cell).collect::<Vec<_>>().join(" "),
        None => output::cell(list),
    }
}
