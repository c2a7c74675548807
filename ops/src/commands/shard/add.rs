//! `shardctl shard add`

use std::{process::ExitCode, time::Duration};

use anyhow::{bail, ensure};
use serde_json::json;
use shard_map::{Shard, ShardMap};
use tokio::time::Instant;
use tonic::transport::Endpoint;
use wire::shard_node_client::ShardNodeClient;

use crate::{
    cluster::{Layout, files, prepare},
    commands::{self, slot_move},
    context::Context,
    output,
    resharding::{Nodes, map_file},
    trust,
};

/// Within this time, the database is made and the node is started and initialised.
const STARTED_WITHIN: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub struct ShardAddArgs {
    /// Id of the new shard
    id: String,
    /// Addresses of the shard's nodes, in order of preference [default: start one on this machine]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    node: Vec<String>,
    /// Number of the shard, which no shard has or had [default: one more than the highest number of the map]
    #[arg(long, value_name = "N")]
    number: Option<u16>,
    /// Check everything and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: slot_move::ClusterAddress,
}

pub async fn run(args: ShardAddArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    // Every other shard must answer: the new node asks them before it is initialised.
    without(&nodes, &args.id).owners().await?;
    let known = nodes.map.shards.iter().find(|shard| shard.id == args.id);
    let number = known.map(|shard| shard.number).or(args.number).unwrap_or_else(|| nodes.map.next_number());
    let file = args.cluster.map_file(context);
    let is_local = args.node.is_empty();
    if args.dry_run {
        let how =
            if is_local { "with a database and a node on this machine".to_owned() } else { args.node.join(" ") };
        for url in &args.node {
            preflight(&nodes.map, &args.id, number, url).await?;
        }
        let sentence = format!("would add shard {} with number {number}, {how}", args.id);
        output::would(context.json, &sentence, json!({"id": args.id, "number": number, "nodes": args.node}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut is_empty = false;
    let urls = if is_local {
        ensure!(args.cluster.address.named().is_none(), "name the addresses of the shard's nodes with --node");
        let layout = Layout::find(&context.data_dir)?;
        let _lock = commands::alone(&layout).await?;
        ensure!(
            files::lock_holder(&layout.supervisor_lock())?.is_some(),
            "the cluster in {} is down: run `shardctl up` first",
            layout.root().display()
        );
        output::note(&format!("making the database of shard {}", args.id));
        let (id, own) = (args.id.clone(), layout.clone());
        let prepared = tokio::task::spawn_blocking(move || prepare::prepare_shard(&own, &id, number)).await??;
        let urls = vec![prepared.node_url()];
        // The node's `init` reads the map, so the map names the shard before the supervisor starts the node.
        let map = publish(&nodes, &args.id, number, &urls, file.as_deref()).await?;
        prepare::announce_shard(&layout, prepared)?;
        output::note(&format!("map version {} names shard {}", map.version, args.id));
        urls
    } else {
        for url in &args.node {
            is_empty |= preflight(&nodes.map, &args.id, number, url).await? == DatabaseState::EmptyDatabase;
        }
        let map = publish(&nodes, &args.id, number, &args.node, file.as_deref()).await?;
        output::note(&format!("map version {} names shard {}", map.version, args.id));
        args.node.clone()
    };
    if is_empty {
        output::note(&format!(
            "the database of shard {} is not initialised. Next, beside its node: shard-node --config FILE init --map {}",
            args.id,
            file.map_or_else(|| "MAP".to_owned(), |file| file.display().to_string())
        ));
        return Ok(ExitCode::SUCCESS);
    }
    wait_until_it_serves(&args.id, &urls).await?;
    let next = "shardctl move plan --balance";
    if context.json {
        output::json(&json!({"id": args.id, "number": number, "nodes": urls, "slots": 0, "next": next}))?;
    } else {
        output::data(&format!("shard {} serves and owns no slots", args.id))?;
        output::note(&format!("next: {next}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The nodes of the other shards. The new shard is left out, because an earlier run may have put it into the map while its database is still
/// empty.
fn without(nodes: &Nodes, id: &str) -> Nodes {
    let mut map = nodes.map.clone();
    map.shards.retain(|shard| shard.id != id);
    Nodes { map }
}

/// Publishes a map with the shard to the file and to every other shard.
async fn publish(
    nodes: &Nodes,
    id: &str,
    number: u16,
    urls: &[String],
    file: Option<&std::path::Path>,
) -> anyhow::Result<ShardMap> {
    let is_same = |known: &Shard| known.number == number && known.nodes == urls;
    let differs = format!("the map has a shard {id} with other nodes or another number");
    let newest = nodes.newest_map().await;
    let map = if let Some(known) = newest.shards.iter().find(|shard| shard.id == id) {
        ensure!(is_same(known), differs);
        let refused = without(nodes, id).offer(&newest).await;
        ensure!(
            refused.is_empty(),
            "not every shard took the map: {}. Correct the cause, and repeat the command",
            refused.join("; ")
        );
        newest
    } else {
        nodes
            .publish(|newest| {
                // The previous attempt may have reached some of the shards.
                if let Some(known) = newest.shards.iter().find(|shard| shard.id == id) {
                    ensure!(is_same(known), differs.clone());
                    return Ok(newest.clone());
                }
                let mut shards = newest.shards.clone();
                shards.push(Shard { id: id.to_owned(), number, nodes: urls.to_vec(), slots: Vec::new() });
                Ok(newest.successor(shards)?)
            })
            .await?
    };
    if let Some(file) = file {
        map_file::write(&map, file)?;
    }
    Ok(map)
}

/// The state of the database behind a node of the new shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DatabaseState {
    /// An operator runs `shard-node init` once the map names the shard.
    EmptyDatabase,
    Shard,
}

/// Checks that the node is reachable, that its database is empty or belongs to this shard, and that the node reports no other disagreement.
async fn preflight(map: &ShardMap, id: &str, number: u16, url: &str) -> anyhow::Result<DatabaseState> {
    let channel = trust::connect(Endpoint::from_shared(url.to_owned())?.connect_timeout(CONNECT_TIMEOUT)).await;
    let channel = channel.map_err(|reason| anyhow::anyhow!("cannot reach the node {url}: {reason}"))?;
    let mut node = ShardNodeClient::new(channel);
    let request = wire::IdentifyRequest::expecting(map.cluster, id, number, "shardctl shard add");
    let answer = node.identify(request).await.map_err(|status| anyhow::anyhow!("{url}: {}", status.message()))?;
    let answer = answer.into_inner();
    if let Some(refused) = answer.refused.first() {
        bail!("{url}: {} is {}, expected {}. {}", refused.fact, refused.found, refused.expected, refused.remedy);
    }
    let is_expected =
        |fact: &str| matches!(fact, "reads" | "writes" | "shard") || (answer.uninitialised && fact == "database");
    let facts = node
        .examine(wire::ExamineRequest {})
        .await
        .map_err(|status| anyhow::anyhow!("{url}: {}", status.message()))?;
    for fact in facts.into_inner().facts {
        if fact.verdict() == wire::fact::Verdict::Disagrees
            && let Some(what) = fact.fact
            && !is_expected(&what.fact)
        {
            bail!("{url}: {} is {}, expected {}. {}", what.fact, what.found, what.expected, what.remedy);
        }
    }
    Ok(if answer.uninitialised { DatabaseState::EmptyDatabase } else { DatabaseState::Shard })
}

/// Waits until a node of the shard takes writes. A node that was just initialised asks the other shards first.
async fn wait_until_it_serves(id: &str, urls: &[String]) -> anyhow::Result<()> {
    let stack = output::Bars::new();
    let bar = stack.steps(id, 1);
    bar.set_message("waiting for the node");
    let overdue = Instant::now() + STARTED_WITHIN;
    loop {
        for url in urls {
            let asked = async {
                let endpoint = Endpoint::from_shared(url.clone())?.connect_timeout(CONNECT_TIMEOUT);
                let channel = trust::connect(endpoint).await.map_err(anyhow::Error::msg)?;
                let status = ShardNodeClient::new(channel).status(wire::StatusRequest {}).await?;
                anyhow::Ok(status.into_inner())
            };
            if asked.await.is_ok_and(|status| status.writes.is_some_and(|writes| writes.works)) {
                bar.finish_and_clear();
                return Ok(());
            }
        }
        ensure!(Instant::now() < overdue, "the node of shard {id} does not serve; its log says why");
        tokio::time::sleep(LOOK).await;
    }
}
