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
    let map = match &args.file {
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
        json!({"id": shard.id, "number": shard.number, "slots": slots, "endpoints": shard.nodes})
    });
    json!({"version": map.version, "shards": shards.collect::<Vec<_>>()})
}

fn print(map: &Value) -> anyhow::Result<()> {
    let source = map["source"].as_str().map(|source| format!("  from {source}")).unwrap_or_default();
    output::data(&format!("version {}{source}\n", map["version"]))?;
    let shards = map["shards"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<[String; 5]> = shards
        .iter()
        .map(|shard| {
            [
                output::cell(&shard["id"]),
                output::cell(&shard["number"]),
                words(&shard["slots"]),
                words(&shard["endpoints"]),
                output::cell(&shard["health"]),
            ]
        })
        .collect();
    output::table(["shard", "number", "slots", "nodes", "health"], &rows)
}

/// A list as words beside each other.
fn words(list: &Value) -> String {
    match list.as_array() {
        Some(items) => items.iter().map(output::cell).collect::<Vec<_>>().join(" "),
        None => output::cell(list),
    }
}
