//! `shardctl shard list`

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    commands::{Context, router_address::AdminAddress, slot_move},
    output,
    resharding::{plan::Weights, view::MoveView},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = slot_move::nodes(&args.address, context).await?;
    let owners = nodes.owners().await?;
    let loads = nodes.loads().await?;
    let ids: Vec<String> = nodes.map.shards.iter().map(|shard| shard.id.clone()).collect();
    let shares = Weights::of(&loads).shares(&owners, &ids);
    let (moves, _) = nodes.list().await;
    let open: Vec<MoveView> =
        moves.iter().map(|(target, status)| MoveView::of(target, status)).filter(MoveView::is_open).collect();
    let shards: Vec<Value> = nodes
        .map
        .shards
        .iter()
        .map(|shard| {
            let load = loads.get(&shard.id);
            let accounts: i64 = load.map_or(0, |load| load.slots.iter().map(|slot| slot.accounts).sum());
            let of_shard = open.iter().filter(|view| view.from == shard.id || view.to == shard.id);
            json!({
                "id": shard.id,
                "number": shard.number,
                "slots": owners.slots_of(&shard.id).count(),
                "accounts": accounts,
                "bytes": load.map_or(0, |load| load.bytes),
                "share": shares.get(&shard.id),
                "nodes": shard.nodes,
                "moves": of_shard.map(|view| view.id).collect::<Vec<_>>(),
            })
        })
        .collect();
    if context.json {
        output::json(&json!({"map_version": nodes.map.version, "shards": shards}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 7]> = shards
        .iter()
        .map(|shard| {
            [
                output::cell(&shard["id"]),
                output::cell(&shard["number"]),
                output::cell(&shard["slots"]),
                output::cell(&shard["accounts"]),
                format!("{:.1}", shard["bytes"].as_f64().unwrap_or(0.0) / 1e6),
                format!("{:.1} %", shard["share"].as_f64().unwrap_or(0.0).max(0.0) * 100.0),
                shard["nodes"].as_array().into_iter().flatten().map(output::cell).collect::<Vec<_>>().join(" "),
            ]
        })
        .collect();
    output::table(["shard", "number", "slots", "accounts", "MB", "share", "nodes"], &rows)?;
    Ok(ExitCode::SUCCESS)
}
