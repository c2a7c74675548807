//! `shardctl shard remove`

use std::process::ExitCode;

use serde_json::json;
use shard_map::ShardMap;
use uuid::Uuid;

use crate::{
    cluster::{Layout, prepare},
    commands::{self, slot_move},
    context::{AdminAddress, Context},
    exit, output,
    resharding::Nodes,
};

#[derive(clap::Args)]
pub struct ShardRemoveArgs {
    /// The empty shard
    id: String,
    /// Print what is left on the shard, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: slot_move::ClusterAddress,
}

/// Publishes a map without the shard. On this machine, its node and database are stopped; their folder stays.
pub async fn run(args: ShardRemoveArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    if nodes.map.removed.iter().any(|gone| gone.id == args.id) {
        // An earlier run may have ended before it stopped the processes.
        let folder = forget(&args.id, &args.cluster.address, context).await?;
        return show_removed(&args.id, &nodes.map, folder, context);
    }
    nodes.shard(&args.id)?;
    let (remains, mut left) = if args.dry_run {
        let remains = nodes.client_data(&args.id).await?;
        let left = left(&remains);
        (remains, left)
    } else {
        let remains = nodes.client_data_before_removal(&args.id).await?;
        let left = left(&remains);
        (remains, left)
    };
    left.extend(open_elsewhere(&nodes, &args.id).await?);
    if !left.is_empty() {
        let next = next(&args.id, &remains);
        if context.json {
            output::json(&json!({"id": args.id, "removed": false, "left": left, "next": next}))?;
        } else {
            for what in &left {
                output::data(&format!("shard {} has {what}", args.id))?;
            }
            output::note(&format!("nothing was changed. next: {next}"));
        }
        return Ok(exit::violation());
    }
    if args.dry_run {
        let sentence = format!("shard {} is empty and would be removed from the map", args.id);
        output::would(context.json, &sentence, json!({"id": args.id, "removed": false, "left": []}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let map = nodes.publish(|newest| Ok(newest.successor_without(&args.id)?)).await?;
    let remaining = Nodes { map };
    if let Some(file) = args.cluster.map_file(context) {
        remaining.update_file(&file).await?;
    }
    let folder = forget(&args.id, &args.cluster.address, context).await?;
    show_removed(&args.id, &remaining.map, folder, context)
}

fn show_removed(id: &str, map: &ShardMap, folder: Option<String>, context: &Context) -> anyhow::Result<ExitCode> {
    let version = map.version;
    if context.json {
        output::json(&json!({"id": id, "removed": true, "left": [], "map_version": version, "folder": folder}))?;
    } else {
        output::data(&format!("map version {version} does not have shard {id} any more"))?;
        match folder {
            Some(folder) => output::note(&format!(
                "its node and database are being stopped. The database stays in {folder} until you delete it"
            )),
            None => output::note("stop its nodes and its database; they hold no client data"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The next command while the shard still has data: a drain moves its slots, and a move that is taken must be finished.
fn next(id: &str, remains: &wire::ClientDataResponse) -> String {
    match remains.moves.first().filter(|_| remains.slots == 0) {
        Some(id) => format!("shardctl move finish {}", Uuid::from_slice(id).unwrap_or_default()),
        None => format!("shardctl shard drain {id}"),
    }
}

/// The moves of the shard that are still open at the other shard.
async fn open_elsewhere(nodes: &Nodes, id: &str) -> anyhow::Result<Vec<String>> {
    let (views, failures) = nodes.views().await;
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure.context("every shard must report whether a move is open"));
    }
    let open = views.iter().filter(|view| view.is_open() && view.from == id);
    Ok(open.map(|view| format!("the open move {} to shard {}", view.id, view.to)).collect())
}

/// What keeps the shard from being removed.
fn left(remains: &wire::ClientDataResponse) -> Vec<String> {
    let counted = [
        (remains.slots, "slots"),
        (remains.accounts, "accounts"),
        (remains.holds, "open holds"),
        (remains.sagas, "transfers between shards under way"),
    ];
    let mut left: Vec<String> =
        counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    for id in &remains.moves {
        let id = Uuid::from_slice(id).unwrap_or_default();
        left.push(format!("the open move {id}"));
    }
    for sum in &remains.in_transit {
        left.push(format!("{} minor units of {} in transit", sum.posted, sum.asset));
    }
    left
}

/// Removes the shard from the description of this machine's cluster. The supervisor then stops its processes. Returns the folder of its
/// database.
async fn forget(id: &str, address: &AdminAddress, context: &Context) -> anyhow::Result<Option<String>> {
    if address.named().is_some() {
        return Ok(None);
    }
    let layout = Layout::find(&context.data_dir)?;
    let _lock = commands::alone(&layout).await?;
    Ok(prepare::forget_shard(&layout, id)?.map(|folder| folder.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_left_is_named() {
        assert!(left(&wire::ClientDataResponse::default()).is_empty());
        let remains = wire::ClientDataResponse {
            slots: 0,
            accounts: 3,
            holds: 1,
            sagas: 0,
            moves: vec![Uuid::nil().as_bytes().to_vec().into()],
            orphaned_accounts: 0,
            in_transit: vec![wire::MoveAssetSum { asset: "USD".into(), posted: "-5".into(), shares: "0".into() }],
        };
        assert_eq!(
            left(&remains),
            [
                "3 accounts",
                "1 open holds",
                "the open move 00000000-0000-0000-0000-000000000000",
                "-5 minor units of USD in transit"
            ]
        );
    }
}
