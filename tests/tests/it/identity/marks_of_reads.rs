//! Reads through a node that did not execute the acknowledged operations.

use std::time::Duration;

use anyhow::ensure;
use identity::Mark;
use ledger::Limit;
use shard_map::ShardMap;
use testkit::{
    node::{Node, NodeConfig, open, order, transfer},
    router::Router,
    wait::until,
};
use wire::get_account_response::Outcome;

use super::{payments::Payments, stage::Stage};

/// Time limit for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_through_another_node_includes_every_acknowledged_write_or_is_refused() -> anyhow::Result<()> {
    let stage = Stage::with_shards(1).await?;
    let first = stage.found().await?.remove(0);
    let config = NodeConfig::write_in(&stage.folder, "second", stage.map.cluster, "s0", &stage.database("s0"))?;
    let second = Node::start(&config).await?;
    first.execute_until_definite(&open("payer", Limit::Unlimited)?).await?;
    first.execute_until_definite(&open("payee", Limit::ZERO)?).await?;
    for paid in 1..=20 {
        first.execute_until_definite(&transfer(&order("payer", "payee", 1), false)?).await?;
        let answer = second.account_at_least("payee", first.mark().await?).await?;
        ensure!(matches!(&answer.outcome, Some(Outcome::Account(a)) if a.posted == paid), "{paid}: {answer:?}");
    }
    let mark = first.mark().await?;
    let beyond = Mark { position: mark.position + 1, ..mark };
    let refused = second.account_at_least("payee", beyond).await;
    let named = |status: &tonic::Status| {
        status.code() == tonic::Code::FailedPrecondition && status.message().contains("position")
    };
    ensure!(refused.as_ref().is_err_and(named), "{refused:?}");
    Ok(())
}

/// A rolling restart of two nodes on one shard: the second node last looked at the database up to a second ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_refused_because_another_node_of_its_shard_committed() -> anyhow::Result<()> {
    let stage = Stage::with_shards(1).await?;
    let mut nodes = stage.found().await?;
    let config = NodeConfig::write_in(&stage.folder, "second", stage.map.cluster, "s0", &stage.database("s0"))?;
    nodes.push(Node::start(&config).await?);
    let mut shards = stage.map.shards.clone();
    shards[0].nodes.push(config.url());
    let map = ShardMap::new(stage.map.cluster, 2, shards)?;
    let router = Router::start(&stage.router_config("router", &map, "")?).await?;
    let mut payments = Payments::open(router.client(), &stage.placement()?, "s0", "s0").await?;
    payments.make(router.client(), 50).await?;
    nodes[0].process().terminate(PATIENCE).await?;
    until("the second node is used", PATIENCE, async || payments.make(router.client(), 1).await.map(Some)).await?;
    payments.are_there_once(router.client()).await?;
    ensure!(!router.log().contains("is refused"), "{}", router.log());
    Ok(())
}
