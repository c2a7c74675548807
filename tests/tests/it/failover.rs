//! A shard with two nodes, of which the first freezes under load and thaws again. Routers continue with the second
//! node, and the first node's outdated belief does no harm. Processes are also asked to end under the same load.

use std::time::Duration;

use anyhow::{Context, ensure};
use shard_map::ShardMap;
use testkit::{
    audit::audit,
    cluster::{Cluster, Member},
    database,
    node::{Folder, Node, NodeConfig},
    seed::Seed,
    wait::{section, until},
    workload::{Load, Mix, try_open_account},
};

const SHARD: &str = "s0";
const MIX: Mix = Mix {
    single_clients: 4,
    batch_clients: 1,
    two_phase_clients: 0,
    batch_items: 20,
    gives_up: true,
    request_timeout: Duration::from_secs(4),
};
/// The time within which routers must abandon a frozen node on a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_is_passed_by_and_harms_nobody_when_it_thaws() -> anyhow::Result<()> {
    let seed = Seed::announce("failover");
    let mut cluster = Cluster::start(2, 2).await?;
    let folder = Folder::create()?;
    let second = NodeConfig::write_in(
        &folder,
        "second",
        cluster.placement()?.map().cluster,
        SHARD,
        &cluster.status().shards[0].dsn,
    )?;
    let _second = Node::start(&second).await?;
    announce(&cluster, &second.url()).await?;
    let load = Load::start(&cluster, 6, &mut seed.random(), &seed, MIX).await?;

    let first = cluster.process(Member::Node(0))?;
    first.freeze().await?;
    section("frozen", goes_on(&cluster, "frozen")).await?;
    every_router_uses(&cluster, &second.url()).await?;
    first.thaw()?;
    section("thawed", goes_on(&cluster, "thawed")).await?;
    cluster.wait_until_ready("all is well after the thaw", &[]).await?;
    every_router_uses(&cluster, &cluster.status().shards[0].node_url).await?;
    section("SIGTERM", drains(&mut cluster)).await?;

    let history = load.finish().await?;
    eprintln!("failover: the clients were answered\n{}", history.answers());
    eprintln!("failover: {:?}", audit(&cluster, &history).await?);
    cluster.finish().await
}

/// Publishes a map in which the shard has a second node.
async fn announce(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let map = cluster.placement()?.map().clone();
    let mut shards = map.shards.clone();
    let shard = shards.iter_mut().find(|shard| shard.id == SHARD).context("the shard")?;
    shard.nodes.push(node.to_owned());
    std::fs::write(cluster.shard_map_path(), ShardMap::new(map.cluster, map.version + 1, shards)?.to_toml())?;
    let client = cluster.client();
    until("every router has the new map", NOTICED_WITHIN, async || {
        for router in &cluster.status().routers {
            let url = format!("{}/admin/shard-map", router.admin_url);
            if client.request(http::Method::GET, &url, None).await?.json()?["version"] != map.version + 1 {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

/// Waits until every router uses this node. Routers prefer the nodes in the map's order, and return to it.
async fn every_router_uses(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let client = cluster.client();
    until(&format!("every router uses {node}"), NOTICED_WITHIN, async || {
        for router in &cluster.status().routers {
            let url = format!("{}/admin/shards", router.admin_url);
            let shards = client.request(http::Method::GET, &url, None).await?.json()?;
            if shards["data"][0]["node_in_use"] != node {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

/// Checks that the shard commits through every router again.
async fn goes_on(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let (client, placement) = (cluster.client().with_timeout(MIX.request_timeout), cluster.placement()?);
    let dsn = &cluster.status().shards[0].dsn;
    let committed = "SELECT max(position) FROM journal";
    let before = database::number(dsn, committed).await?;
    for router in 0..client.routers() {
        let id = placement.account_on(SHARD, &format!("{name}{router}"), 0)?;
        until("the shard takes writes", NOTICED_WITHIN, async || {
            // The request goes to the next router in turn. Opening an account twice is harmless.
            try_open_account(&client, &id, "unlimited").await.map(Some)
        })
        .await?;
    }
    ensure!(database::number(dsn, committed).await? > before, "nothing was committed");
    Ok(())
}

/// Sends SIGTERM to processes. Each must become unready, drain, and exit with 0. It leaves sagas under way at a persisted step for another
/// router.
async fn drains(cluster: &mut Cluster) -> anyhow::Result<()> {
    for (member, process) in
        [(Member::Router(0), "router-0"), (Member::Node(1), "s1"), (Member::Router(1), "router-1")]
    {
        cluster.terminate_and_recover(member).await?;
        let said = cluster.supervisor_says(process)?;
        ensure!(said.iter().any(|line| line.contains("exit status: 0")), "{process} should exit with 0: {said:?}");
    }
    Ok(())
}
