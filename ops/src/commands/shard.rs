//! `shardctl shard …`

mod add;
mod failover;
mod remove;

use std::process::ExitCode;

use anyhow::ensure;
use serde_json::{Value, json};
use wire::MoveWishes;

use super::slot_move::{self, apply};
use crate::{
    context::{AdminAddress, Context},
    output,
    resharding::{
        Nodes,
        plan::{self, Goal, Weights},
        view::MoveView,
    },
};

#[derive(clap::Subcommand)]
pub enum ShardCommand {
    /// Add a shard without slots. Without --node, its PostgreSQL and node are started on this machine
    Add(add::ShardAddArgs),
    /// Move every slot of a shard to the others, and delete what was moved. This cannot be reversed; for options use `move plan --drain` and `move apply`
    Drain(DrainArgs),
    /// Take an empty shard out of the map. Refused while the shard still has client data
    Remove(remove::ShardRemoveArgs),
    /// Make a shard's stand-by its primary, and the former primary its stand-by (`up --standby`)
    Failover(failover::ShardFailoverArgs),
    /// Show each shard with its slots, accounts, size and share of the load
    List(ShardListArgs),
}

pub async fn run(command: ShardCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        ShardCommand::Add(args) => add::run(args, context).await,
        ShardCommand::Drain(args) => drain(args, context).await,
        ShardCommand::Remove(args) => remove::run(args, context).await,
        ShardCommand::Failover(args) => failover::run(args, context).await,
        ShardCommand::List(args) => list(args, context).await,
    }
}

#[derive(clap::Args)]
pub struct ShardListArgs {
    #[command(flatten)]
    address: AdminAddress,
}

async fn list(args: ShardListArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.address, context).await?;
    let owners = nodes.owners().await?;
    let loads = nodes.loads().await?;
    let ids: Vec<String> = nodes.map.shards.iter().map(|shard| shard.id.clone()).collect();
    let shares = Weights::of(&loads).shares(&owners, &ids);
    let (moves, _) = nodes.views().await;
    let open: Vec<MoveView> = moves.into_iter().filter(MoveView::is_open).collect();
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

#[derive(clap::Args)]
pub struct DrainArgs {
    /// The shard to empty
    id: String,
    /// Print what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: slot_move::ClusterAddress,
}

/// Moves every slot away, and deletes what was moved.
async fn drain(args: DrainArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    let owners = nodes.owners().await?;
    nodes.shard(&args.id)?;
    let (views, _) = nodes.views().await;
    if owners.slots_of(&args.id).next().is_none() {
        // An earlier drain may have ended before it finished its moves.
        for view in views.iter().filter(|view| view.from == args.id && view.phase == "taken" && !args.dry_run) {
            let stack = output::Bars::new();
            let bar = stack.percent(&view.to);
            nodes.control(&view.to, view.id, MoveWishes { finish: Some(true), ..Default::default() }).await?;
            apply::watch(&nodes, &view.to, view.id, &bar, |view| view.phase == "finished").await?;
            output::note(&format!("move {} to {} is finished", view.id, view.to));
        }
        output::data(&format!("shard {} owns no slots", args.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let weights = Weights::of(&nodes.loads().await?);
    let plan = plan::decide(&nodes, &owners, &weights, &Goal::Drain(vec![args.id.clone()]))?;
    let blockers = plan::blockers(&plan, &views)?;
    ensure!(args.dry_run || blockers.is_empty(), "the drain is blocked by {}", blockers.join(", and by "));
    if args.dry_run && context.json {
        output::json(&json!({"id": args.id, "dry_run": true, "plan": plan, "blockers": blockers}))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        for blocker in &blockers {
            output::data(&format!("BLOCKED BY {blocker}"))?;
        }
        for planned in &plan.moves {
            output::data(&format!(
                "would move {} slots with {} accounts from {} to {}",
                planned.slot_count(),
                planned.accounts,
                planned.from,
                planned.to
            ))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.cluster.map_file(context);
    let resume = format!("`shardctl shard drain {}` continues", args.id);
    apply::carry_out_and_show(&nodes, &plan, &apply::MoveApplyOptions::finishing(), file.as_deref(), &resume, context)
        .await
}
