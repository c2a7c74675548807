//! `shardctl map …`

mod check;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use shard_map::{ClusterId, MapDiff, ShardMap};

use super::slot_move;
use crate::{
    cluster::files::{self, Audience},
    context::{AdminAddress, Context},
    exit::{self, Unreachable},
    output,
    resharding::{Nodes, map_file},
};

#[derive(clap::Subcommand)]
pub enum MapCommand {
    /// Show the map that a router uses, or the map in a file
    Show(MapShowArgs),
    /// Check a map file before it is used, and name each problem with its line
    Check(check::MapCheckArgs),
    /// Show what changes from one file to another
    Diff(DiffArgs),
    /// Publish a changed map to every node and router. Slots stay where they are, because only a move changes their shard
    Apply(ApplyArgs),
    /// Print an id for the map and the node configurations of a new cluster
    NewClusterId,
    /// Make every router read its map file again now
    Reload(ReloadArgs),
}

pub async fn run(command: MapCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        MapCommand::Show(args) => show(args, context).await,
        MapCommand::Check(args) => check::run(args, context).await,
        MapCommand::Diff(args) => diff(args, context),
        MapCommand::Apply(args) => apply(args, context).await,
        MapCommand::NewClusterId => new_cluster_id(context),
        MapCommand::Reload(args) => reload(args, context).await,
    }
}

#[derive(clap::Args)]
pub struct MapShowArgs {
    /// Show the map in this file instead of the map that a router uses
    #[arg(long, value_name = "FILE", conflicts_with = "admin_url")]
    file: Option<PathBuf>,
    #[command(flatten)]
    address: AdminAddress,
}

async fn show(args: MapShowArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let map: Value = match &args.file {
        Some(path) => of_file(&map_file::read(path)?),
        None => args.address.routers(context)?.get("/admin/shard-map").await?,
    };
    if context.json {
        output::json(&map)?;
    } else {
        print_map(&map)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The map as JSON, with those fields of a router's answer that a map file has.
fn of_file(map: &ShardMap) -> Value {
    let shards = map.shards.iter().map(|shard| {
        let slots: Vec<String> = shard.slots.iter().map(ToString::to_string).collect();
        json!({"id": shard.id, "number": shard.number, "nodes": shard.nodes, "slots": slots})
    });
    json!({"version": map.version, "shards": shards.collect::<Vec<_>>()})
}

fn print_map(map: &Value) -> anyhow::Result<()> {
    let source = map["source"].as_str().map(|source| format!("  from {source}")).unwrap_or_default();
    output::data(&format!("version {}{source}\n", map["version"]))?;
    let rows: Vec<[String; 5]> = output::items(&map["shards"])
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
    let overrides: Vec<[String; 4]> = output::items(&map["overrides"])
        .iter()
        .map(|slots| ["slots", "in_map", "owner", "epoch"].map(|field| output::cell(&slots[field])))
        .collect();
    if !overrides.is_empty() {
        output::data("\naccording to the shards:")?;
        output::table(["slots", "in the map", "owner", "epoch"], &overrides)?;
    }
    // A router refused a newer map, so the printed map is not the one that the operator wanted.
    if let Some(reason) = map["refused"]["reason"].as_str() {
        output::note(&format!("refused: {reason}"));
    }
    Ok(())
}

/// Joins the items of a list with blanks.
fn words(list: &Value) -> String {
    match list.as_array() {
        Some(items) => items.iter().map(output::cell).collect::<Vec<_>>().join(" "),
        None => output::cell(list),
    }
}

#[derive(clap::Args)]
pub struct DiffArgs {
    /// The map as it is
    old: PathBuf,
    /// The map as it is to be
    new: PathBuf,
}

fn diff(args: DiffArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let (old, new) = (map_file::read(&args.old)?, map_file::read(&args.new)?);
    let diff = old.diff(&new);
    if context.json {
        output::json(&diff_as_json(&old, &new, &diff))?;
    } else {
        print_diff(&old, &new, &diff)?;
    }
    // The difference is printed in full, although a router would refuse the new map.
    if !diff.is_empty()
        && let Err(error) = old.check_successor(&new)
    {
        output::note(&format!("a router with {} would refuse {}: {error}", args.old.display(), args.new.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn diff_as_json(old: &ShardMap, new: &ShardMap, diff: &MapDiff) -> serde_json::Value {
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

fn print_diff(old: &ShardMap, new: &ShardMap, diff: &MapDiff) -> anyhow::Result<()> {
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

#[derive(clap::Args)]
pub struct ApplyArgs {
    /// The new map. Its version must be higher than the version of the present map
    file: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: slot_move::ClusterAddress,
}

async fn apply(args: ApplyArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let new = map_file::read(&args.file)?;
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
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
        let mut json = diff_as_json(&old, &new, &diff);
        json["applied"] = json!(!args.dry_run);
        output::json(&json)?;
    } else {
        print_diff(&old, &new, &diff)?;
        output::note(if args.dry_run {
            "nothing was changed"
        } else {
            "every shard has the map; routers read it from the shards"
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// Offers the map to the nodes, and then replaces the routers' file. If a node refuses the map, the file stays unchanged.
async fn publish(args: &ApplyArgs, new: &shard_map::ShardMap, context: &Context) -> anyhow::Result<()> {
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
        files::replace(&watched, &text, Audience::Everyone)?;
    }
    Ok(())
}

/// Prints an id for a new cluster's map and nodes.
fn new_cluster_id(context: &Context) -> anyhow::Result<ExitCode> {
    let id = ClusterId::generate();
    if context.json {
        output::json(&id)?
    } else {
        output::data(&id.to_string())?
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(clap::Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    address: AdminAddress,
}

/// Every router of the cluster reads its file again. Exit code 1 if any refuses, 4 if any is unreachable.
async fn reload(args: ReloadArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let mut answers = Vec::new();
    let (mut refused, mut unreachable) = (false, false);
    for url in &routers.urls {
        match routers.client.post::<Value>(&format!("{url}/admin/shard-map/reload"), "").await {
            Ok(answer) => answers.push(json!({"router": url, "ok": true, "answer": answer})),
            Err(error) => {
                if error.is::<Unreachable>() {
                    unreachable = true
                } else {
                    refused = true
                }
                answers.push(json!({"router": url, "ok": false, "error": error.to_string()}));
            }
        }
    }
    if context.json {
        output::json(&answers)?;
    } else {
        let said = |answer: &Value| if answer["ok"] == true { &answer["answer"] } else { &answer["error"] }.clone();
        let rows: Vec<[String; 2]> =
            answers.iter().map(|answer| [output::cell(&answer["router"]), output::cell(&said(answer))]).collect();
        output::table(["router", "answer"], &rows)?;
    }
    Ok(match (refused, unreachable) {
        (true, _) => exit::failure(),
        (false, true) => exit::unreachable(),
        (false, false) => ExitCode::SUCCESS,
    })
}
