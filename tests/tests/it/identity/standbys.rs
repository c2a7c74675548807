//! Tests of a stand-by behind a shard's address. The node does not read it while it is a stand-by. After a promotion the node accepts it if
//! it has everything, and refuses it if it lacks something.

use anyhow::{Context, ensure};
use testkit::{client::Client, database, node::Node, postgres::Postgres, proxy::TcpProxy, wait::until};

use super::{NOTICED_WITHIN, Payments, ShardSetup, UNREADY, are_refused, node_says, says};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_never_read_and_once_promoted_serves_only_if_it_has_everything() -> anyhow::Result<()> {
    let mut setup = ShardSetup::behind_a_proxy(2).await?;
    let nodes = setup.found().await?;
    let router = setup.router("router").await?;
    let mut payments = Payments::open(router.client(), &setup.placement()?, "s0", "s1").await?;
    payments.make(router.client(), 3).await?;
    let mut first_standby = setup.postgres.standby(&setup.folder, "first-standby").await?;
    first_standby.has_caught_up(&setup.postgres).await?;

    // The stand-by lags, and the databases' address leads to it.
    first_standby.stops_following().await?;
    payments.make(router.client(), 2).await?;
    proxy(&setup)?.retarget(first_standby.address());
    is_noticed(&payments, router.client(), &nodes[0], "a stand-by (in recovery)").await?;
    are_refused(&payments, router.client()).await?;
    proxy(&setup)?.retarget(setup.postgres.address());
    both_become_ready(&nodes).await?;
    payments.are_there_once(router.client()).await?;

    // A stand-by that has everything is promoted, which is a failover without loss.
    first_standby.follows(&setup.postgres).await?;
    payments.make(router.client(), 1).await?;
    first_standby.has_caught_up(&setup.postgres).await?;
    setup.postgres.stop()?;
    first_standby.promote().await?;
    proxy(&setup)?.retarget(first_standby.address());
    both_become_ready(&nodes).await?;
    payments.are_there_once(router.client()).await?;
    payments.make(router.client(), 2).await?;
    until("the node has remembered the new timeline", NOTICED_WITHIN, async || {
        Ok((nodes[0].mark().await?.timeline == 2).then_some(()))
    })
    .await?;

    // The former primary comes back, and the address leads to it.
    setup.postgres.start_again().await?;
    proxy(&setup)?.retarget(setup.postgres.address());
    is_noticed(&payments, router.client(), &nodes[0], "timeline 1. this is a former primary").await?;
    are_refused(&payments, router.client()).await?;
    proxy(&setup)?.retarget(first_standby.address());
    both_become_ready(&nodes).await?;
    payments.are_there_once(router.client()).await?;

    // A stand-by that lacks the last payments is promoted.
    let second_standby = first_standby.standby(&setup.folder, "second-standby").await?;
    second_standby.has_caught_up(&first_standby).await?;
    second_standby.stops_following().await?;
    payments.make(router.client(), 2).await?;
    first_standby.stop()?;
    second_standby.promote().await?;
    proxy(&setup)?.retarget(second_standby.address());
    for node in &nodes {
        node_says(node, &[UNREADY, "position", "promote the stand-by that has everything"]).await?;
    }
    are_refused(&payments, router.client()).await
}

fn proxy(setup: &ShardSetup) -> anyhow::Result<&TcpProxy> {
    setup.proxy.as_ref().context("an setup without a proxy")
}

/// Reads until the node has reported what is wrong. Each successful read must include every acknowledged payment.
async fn is_noticed(payments: &Payments, client: &Client, node: &Node, what: &str) -> anyhow::Result<()> {
    let acknowledged = payments.acknowledged.len().to_string();
    let mut stale = Vec::new();
    until(&format!("the node says {what:?}"), NOTICED_WITHIN, async || {
        let answer = payments.read(client, &payments.payer).await?;
        if answer.status != 503 && answer.json()?["posted"] != format!("-{acknowledged}.00") {
            stale.push(format!("{} {}", answer.status, answer.text()));
        }
        let readiness = node.readiness().await?;
        says(&readiness.to_string(), &[UNREADY, what])?;
        Ok(Some(()))
    })
    .await?;
    ensure!(stale.is_empty(), "reads are older than acknowledged payments: {stale:?}");
    Ok(())
}

async fn both_become_ready(nodes: &[Node]) -> anyhow::Result<()> {
    for node in nodes {
        node.becomes_ready().await?;
    }
    Ok(())
}

/// A node in front of a stand-by does not start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_in_front_of_a_standby() -> anyhow::Result<()> {
    let setup = ShardSetup::behind_a_proxy(1).await?;
    drop(setup.found().await?);
    let standby: Postgres = setup.postgres.standby(&setup.folder, "standby").await?;
    standby.has_caught_up(&setup.postgres).await?;
    proxy(&setup)?.retarget(standby.address());
    let said = Node::start_refused(&setup.nodes[0]).await?;
    says(&said, &["server: expected a primary, found a stand-by", "point it to the primary"])
}

/// The address moves to the promoted stand-by, while the former primary and the node's connections to it stay alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_former_primary_are_dropped_once_another_primary_is_accepted() -> anyhow::Result<()> {
    let setup = ShardSetup::behind_a_proxy(1).await?;
    let node = setup.found().await?.remove(0);
    let router = setup.router("router").await?;
    let mut payments = Payments::open(router.client(), &setup.placement()?, "s0", "s0").await?;
    payments.make(router.client(), 3).await?;
    let standby = setup.postgres.standby(&setup.folder, "standby").await?;
    standby.has_caught_up(&setup.postgres).await?;
    standby.promote().await?;
    proxy(&setup)?.retarget_new(standby.address());
    until("the node has accepted the new primary", NOTICED_WITHIN, async || {
        Ok((node.mark().await?.timeline == 2).then_some(()))
    })
    .await?;

    payments.make(router.client(), 5).await?;
    payments.are_there_once(router.client()).await?;
    let stored = database::number(&standby.url("s0"), "SELECT count(*) FROM journal WHERE role = 1").await?;
    ensure!(stored == i64::try_from(payments.acknowledged.len())?, "the new primary has {stored} payments");
    let left_behind = database::number(&setup.database("s0"), "SELECT count(*) FROM journal WHERE role = 1").await?;
    ensure!(left_behind == 3, "the former primary was written to: {left_behind} payments");
    Ok(())
}
