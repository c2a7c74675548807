//! Tests of routers whose map leads to the wrong nodes or whose settings do not fit the cluster, and of reads through another node of a
//! shard.

use std::time::Duration;

use anyhow::ensure;
use http::Method;
use identity::Mark;
use ledger::Limit;
use serde_json::json;
use shard_map::{ClusterId, ShardMap};
use testkit::{
    client::{Client, account_path},
    database,
    node::{Node, NodeConfig, open, order, transfer},
    router::Router,
    wait::until,
};
use wire::get_account_response::Outcome;

use super::{NOTICED_WITHIN, Payments, ShardSetup, are_refused, says};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_addresses_are_refused_by_name_and_nothing_is_executed() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(2).await?;
    let _nodes = setup.found().await?;
    let router = setup.router("router").await?;
    let mut payments = Payments::open(router.client(), &setup.placement()?, "s0", "s1").await?;
    payments.make(router.client(), 2).await?;
    let entries = entries(&setup).await?;

    let mut shards = setup.map.shards.clone();
    shards[0].nodes = setup.map.shards[1].nodes.clone();
    shards[1].nodes = setup.map.shards[0].nodes.clone();
    let swapped = ShardMap::new(setup.map.cluster, 2, shards)?;
    // One router starts with the swapped map, and another takes it while running.
    let started = Router::start(&setup.router_config("started", &swapped, "")?).await?;
    names(&started, &["expected s0, found s1", "expected s1, found s0"]).await?;
    are_refused(&payments, started.client()).await?;
    setup.write_map("router", &swapped)?;
    names(&router, &["expected s0, found s1", "expected s1, found s0"]).await?;
    are_refused(&payments, router.client()).await?;
    ensure!(self::entries(&setup).await? == entries, "something was executed");

    // Both routers serve with the corrected map.
    setup.write_map("router", &ShardMap::new(setup.map.cluster, 3, setup.map.shards.clone())?)?;
    payments.make(router.client(), 1).await?;
    payments.are_there_once(router.client()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused_by_name() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let nodes = setup.found().await?;
    let url = setup.postgres.create_database("foreign", "").await?;
    let foreign = NodeConfig::write_in(&setup.folder, "foreign", ClusterId::generate(), "s0", &url)?;
    let mut shards = setup.map.shards.clone();
    shards[0].nodes = vec![foreign.url()];
    setup.init(&foreign, &ShardMap::new(foreign.cluster, 1, shards.clone())?)?;
    let _foreign = Node::start(&foreign).await?;

    let router = setup.router("router").await?;
    let mut payments = Payments::open(router.client(), &setup.placement()?, "s0", "s0").await?;
    payments.make(router.client(), 1).await?;
    setup.write_map("router", &ShardMap::new(setup.map.cluster, 2, shards)?)?;
    names(&router, &[&format!("cluster: expected {}, found {}", setup.map.cluster, foreign.cluster)]).await?;
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

async fn entries(setup: &ShardSetup) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM journal";
    Ok(database::number(&setup.database("s0"), count).await? + database::number(&setup.database("s1"), count).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_with_another_scale_of_an_asset_in_use_does_not_start() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(2).await?;
    let _nodes = setup.found().await?;
    let right = Router::start(&setup.router_config("right", &setup.map, "[assets]\nBTC = 8")?).await?;
    let account = setup.placement()?.account_on("s1", "wallet", 0)?;
    open_wallet(right.client(), &account).await?;
    let wrong = setup.router_config("wrong", &setup.map, "[assets]\nBTC = 6")?;
    let said = Router::start_refused(&wrong).await?;
    says(&said, &["scale of BTC: expected 8, found 6", "shard s1", "declare BTC = 8"])?;
    drop(right);
    let again = Router::start(&setup.router_config("again", &setup.map, "[assets]\nBTC = 8")?).await?;
    until("the router knows the account", NOTICED_WITHIN, async || {
        let found = again.client().get(0, &account_path(&account)).await?;
        says(&found.to_string(), &["1.50000000"])?;
        Ok(Some(()))
    })
    .await
}

/// While an asset has no accounts, routers may declare different scales for it. The first account fixes the scale for
/// the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_ran_before_the_asset_came_into_use_is_refused_as_well() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let _nodes = setup.found().await?;
    let wrong = Router::start(&setup.router_config("wrong", &setup.map, "[assets]\nBTC = 6")?).await?;
    let right = Router::start(&setup.router_config("right", &setup.map, "[assets]\nBTC = 8")?).await?;
    open_wallet(right.client(), "wallet").await?;
    until("the router with the wrong scale reads nothing any more", NOTICED_WITHIN, async || {
        let read = wrong.client().call(0, Method::GET, "/v1/accounts/wallet", None).await?;
        read.expect_status(503)?;
        says(&wrong.readiness().await?["degraded"].to_string(), &["scale of BTC: expected 8, found 6"])?;
        Ok(Some(()))
    })
    .await?;
    right.client().get(0, "/v1/accounts/wallet").await?;
    Ok(())
}

async fn open_wallet(client: &Client, account: &str) -> anyhow::Result<()> {
    let body = json!({"id": account, "asset": "BTC", "overdraft": "1.50000000"});
    until("the account is open", NOTICED_WITHIN, async || client.post(0, "/v1/accounts", &body).await.map(Some))
        .await?;
    Ok(())
}

/// The time limit of requests on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_through_another_node_includes_every_acknowledged_write_or_is_refused() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let first = setup.found().await?.remove(0);
    let config = NodeConfig::write_in(&setup.folder, "second", setup.map.cluster, "s0", &setup.database("s0"))?;
    let second = Node::start(&config).await?;
    first.execute_until_definite(&open("payer", Limit::Unlimited)?).await?;
    first.execute_until_definite(&open("payee", Limit::ZERO)?).await?;
    for paid in 1..=20 {
        first.execute_until_definite(&transfer(&order("payer", "payee", 1), false)?).await?;
        let answer = second.account_at_least("payee", first.mark().await?).await?;
        expect!(matches!(&answer.outcome, Some(Outcome::Account(a)) if a.posted == paid), "{paid}: {answer:?}");
    }
    let mark = first.mark().await?;
    let beyond = Mark { position: mark.position + 1, ..mark };
    let refused = second.account_at_least("payee", beyond).await;
    let named = |status: &tonic::Status| {
        status.code() == tonic::Code::FailedPrecondition && status.message().contains("position")
    };
    expect!(refused.as_ref().is_err_and(named), "{refused:?}");
    Ok(())
}

/// In a rolling restart of two nodes on one shard, the second node may have looked at the database up to a second ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_refused_because_another_node_of_its_shard_committed() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let mut nodes = setup.found().await?;
    let config = NodeConfig::write_in(&setup.folder, "second", setup.map.cluster, "s0", &setup.database("s0"))?;
    nodes.push(Node::start(&config).await?);
    let mut shards = setup.map.shards.clone();
    shards[0].nodes.push(config.url());
    let map = ShardMap::new(setup.map.cluster, 2, shards)?;
    let router = Router::start(&setup.router_config("router", &map, "")?).await?;
    let mut payments = Payments::open(router.client(), &setup.placement()?, "s0", "s0").await?;
    payments.make(router.client(), 50).await?;
    nodes[0].process().terminate(PATIENCE).await?;
    until("the second node is used", PATIENCE, async || payments.make(router.client(), 1).await.map(Some)).await?;
    payments.are_there_once(router.client()).await?;
    expect!(!router.log().contains("is refused"), "{}", router.log());
    Ok(())
}
