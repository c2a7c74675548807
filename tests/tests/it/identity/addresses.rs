//! A map whose addresses lead to the wrong nodes.

use anyhow::ensure;
use shard_map::{ClusterId, ShardMap};
use testkit::{
    database,
    node::{Node, NodeConfig},
    router::Router,
    wait::until,
};

use super::{
    NOTICED_WITHIN,
    payments::{Payments, are_refused},
    says,
    stage::Stage,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_addresses_are_refused_by_name_and_nothing_is_executed() -> anyhow::Result<()> {
    let stage = Stage::with_shards(2).await?;
    let _nodes = stage.found().await?;
    let router = stage.router("router").await?;
    let mut payments = Payments::open(router.client(), &stage.placement()?, "s0", "s1").await?;
    payments.make(router.client(), 2).await?;
    let entries = entries(&stage).await?;

    let mut shards = stage.map.shards.clone();
    shards[0].nodes = stage.map.shards[1].nodes.clone();
    shards[1].nodes = stage.map.shards[0].nodes.clone();
    let swapped = ShardMap::new(stage.map.cluster, 2, shards)?;
    // One router starts with the swapped map, and another takes it while running.
    let started = Router::start(&stage.router_config("started", &swapped, "")?).await?;
    names(&started, &["expected s0, found s1", "expected s1, found s0"]).await?;
    are_refused(&payments, started.client()).await?;
    stage.write_map("router", &swapped)?;
    names(&router, &["expected s0, found s1", "expected s1, found s0"]).await?;
    are_refused(&payments, router.client()).await?;
    ensure!(self::entries(&stage).await? == entries, "something was executed");

    // The corrected map.
    stage.write_map("router", &ShardMap::new(stage.map.cluster, 3, stage.map.shards.clone())?)?;
    payments.make(router.client(), 1).await?;
    payments.are_there_once(router.client()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused_by_name() -> anyhow::Result<()> {
    let stage = Stage::with_shards(1).await?;
    let nodes = stage.found().await?;
    let url = stage.postgres.create_database("foreign", "").await?;
    let foreign = NodeConfig::write_in(&stage.folder, "foreign", ClusterId::generate(), "s0", &url)?;
    let mut shards = stage.map.shards.clone();
    shards[0].nodes = vec![foreign.url()];
    stage.init(&foreign, &ShardMap::new(foreign.cluster, 1, shards.clone())?)?;
    let _foreign = Node::start(&foreign).await?;

    let router = stage.router("router").await?;
    let mut payments = Payments::open(router.client(), &stage.placement()?, "s0", "s0").await?;
    payments.make(router.client(), 1).await?;
    stage.write_map("router", &ShardMap::new(stage.map.cluster, 2, shards)?)?;
    names(&router, &[&format!("cluster: expected {}, found {}", stage.map.cluster, foreign.cluster)]).await?;
    are_refused(&payments, router.client()).await?;
    ensure!(database::number(&url, "SELECT count(*) FROM journal").await? == 0);
    nodes[0].becomes_ready().await
}

/// Waits until the degraded shards in the router's `/readyz?verbose` contain each of the words.
async fn names(router: &Router, words: &[&str]) -> anyhow::Result<()> {
    until(&format!("the router says {words:?}"), NOTICED_WITHIN, async || {
        let readiness = router.readiness().await?;
        says(&readiness["degraded"].to_string(), words)?;
        Ok(Some(()))
    })
    .await
}

async fn entries(stage: &Stage) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM journal";
    Ok(database::number(&stage.database("s0"), count).await? + database::number(&stage.database("s1"), count).await?)
}
