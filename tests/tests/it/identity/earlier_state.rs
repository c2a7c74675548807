//! Tests of a shard's database that went back in time, through a restored backup or a snapshot of a volume. What was acknowledged in
//! between is missing, and every participant that was told of it remembers the mark.

use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::{
    database,
    node::{Node, NodeConfig},
    process::Process,
    wait::until,
};
use uuid::Uuid;

use super::{NOTICED_WITHIN, Payments, ShardSetup, UNREADY, are_refused, is_unavailable, node_says, says};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_on_an_earlier_state_that_another_shard_remembers_until_the_loss_is_accepted()
-> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(2).await?;
    let mut nodes = setup.found().await?;
    let router = setup.router("router").await?;
    let mut kept = Payments::open(router.client(), &setup.placement()?, "s0", "s1").await?;
    kept.make(router.client(), 3).await?;
    setup.snapshot("s0", "early").await?;
    let mut lost = Payments { acknowledged: Vec::new(), ..kept };
    lost.make(router.client(), 4).await?;
    let before = next_position(&setup).await?;

    // Every process ends, so only the other shard's database remembers the mark.
    drop(router);
    stop_all(&mut nodes).await?;
    setup.postgres.swap("s0", "late", "early").await?;
    let s1 = Node::start_waiting(&setup.nodes[1]).await?;
    node_says(&s1, &[UNREADY, "no other shard has answered", "--alone"]).await?;
    let said = Node::start_refused(&setup.nodes[0]).await?;
    says(
        &said,
        &["the database is refused", "position", "as shard s1 remembers", "accept --accept-loss --config FILE"],
    )?;

    let refused = setup.nodes[0].run(&["accept"])?.refused()?;
    says(&refused, &["shard s1 remembers", "in between is missing", "--accept-loss", "Nothing was changed"])?;
    ensure!(incarnation(&setup).await? == 1);
    let accepted = setup.nodes[0].run(&["accept", "--accept-loss"])?.successful()?;
    says(&accepted, &["given up", "incarnation 2"])?;
    ensure!(next_position(&setup).await? > before, "positions are used twice");

    let _s0 = Node::start(&setup.nodes[0]).await?;
    s1.becomes_ready().await?;
    let router = setup.router("another-router").await?;
    // A payment whose debit side is lost is executed again. The other shard knows that it was credited.
    for id in &lost.acknowledged {
        let answer = until("the router reaches the shards", NOTICED_WITHIN, async || {
            let answer = lost.send(router.client(), *id).await?;
            Ok((!is_unavailable(&answer)).then_some(answer))
        })
        .await?;
        expect!(answer.status == 201 || answer.status == 200, "{} {}", answer.status, answer.text());
    }
    lost.are_posted(router.client(), 7).await?;
    let first = database::number(&setup.database("s0"), "SELECT max(position) FROM journal").await?;
    ensure!(first > before, "position {first} is not beyond {before}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_back_under_a_running_node_is_noticed_and_no_acknowledged_id_is_executed_twice()
-> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(2).await?;
    let nodes = setup.found().await?;
    let router = setup.router("router").await?;
    let client = router.client();
    let mut payments = Payments::open(client, &setup.placement()?, "s0", "s0").await?;
    payments.make(client, 2).await?;
    setup.snapshot("s0", "early").await?;
    payments.make(client, 3).await?;

    let newest = payments.acknowledged[4];
    setup.postgres.swap("s0", "late", "early").await?;
    is_never_executed_again(&payments, client, newest, &nodes[0], &[UNREADY, "position", "remembers"]).await?;
    are_refused(&payments, client).await?;
    until("the router reports the disagreement", NOTICED_WITHIN, async || {
        let said = router.readiness().await?;
        expect!(said["reads"] == "some" && said["writes"] == "some", "{said}");
        says(&said["degraded"].to_string(), &["position"])?;
        Ok(Some(()))
    })
    .await?;

    // When the right database is back, the node serves again by itself.
    setup.postgres.swap("s0", "early", "late").await?;
    nodes[0].becomes_ready().await?;
    payments.are_there_once(client).await?;

    // The operator accepts the loss while the node runs, and while the router remembers more.
    let before = next_position(&setup).await?;
    setup.postgres.swap("s0", "late", "early").await?;
    node_says(&nodes[0], &[UNREADY, "position", "remembers"]).await?;
    setup.nodes[0].run(&["accept", "--accept-loss"])?.successful()?;
    nodes[0].becomes_ready().await?;
    payments.acknowledged.truncate(2);
    payments.make(client, 1).await?;
    payments.are_there_once(client).await?;
    ensure!(nodes[0].mark().await?.incarnation == 2);
    let newest = database::number(&setup.database("s0"), "SELECT max(position) FROM journal").await?;
    ensure!(newest > before, "position {newest} is not beyond {before}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_alone_remembers_a_cluster_of_one_shard() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let mut nodes = setup.found().await?;
    let router = setup.router("router").await?;
    let client = router.client();
    let mut payments = Payments::open(client, &setup.placement()?, "s0", "s0").await?;
    payments.make(client, 1).await?;
    setup.snapshot("s0", "early").await?;
    payments.make(client, 2).await?;
    stop_all(&mut nodes).await?;
    setup.postgres.swap("s0", "late", "early").await?;

    // No participant tells the node before the router does.
    router.process().freeze().await?;
    let node = Node::start(&setup.nodes[0]).await?;
    router.process().thaw()?;
    let newest = payments.acknowledged[2];
    is_never_executed_again(&payments, client, newest, &node, &[UNREADY, "position", "as router"]).await?;
    are_refused(&payments, client).await?;
    let refused = setup.nodes[0].run(&["accept"])?.refused()?;
    says(&refused, &["the node of shard s0 remembers", "in between is missing", "--accept-loss"])?;
    setup.nodes[0].run(&["accept", "--accept-loss"])?.successful()?;
    node.becomes_ready().await?;
    payments.acknowledged.truncate(1);
    payments.make(client, 1).await?;
    payments.are_there_once(client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_the_same_server_made_is_refused_until_it_is_accepted() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let nodes = setup.found().await?;
    setup.postgres.copy("s0", "copy").await?;
    nodes[0].becomes_ready().await?;
    let copy = setup.database("copy");
    let of_the_copy = NodeConfig::write_in(&setup.folder, "copy", setup.map.cluster, "s0", &copy)?;
    let refused = of_the_copy.run(&["accept"])?.refused()?;
    says(&refused, &["serves another database", "stop that node"])?;
    setup.postgres.swap("s0", "original", "copy").await?;
    node_says(&nodes[0], &[UNREADY, "database oid", "TEMPLATE", "shard-node accept"]).await?;
    setup.nodes[0].run(&["accept"])?.successful()?;
    nodes[0].becomes_ready().await?;
    ensure!(nodes[0].mark().await?.incarnation == 2);
    // Two databases have one history. The original is refused from now on.
    setup.postgres.swap("s0", "copy", "original").await?;
    node_says(&nodes[0], &[UNREADY, "incarnation"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_witness_waits_unless_it_is_started_alone() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(2).await?;
    let mut nodes = setup.found().await?;
    stop_all(&mut nodes).await?;
    let waiting = Node::start_waiting(&setup.nodes[0]).await?;
    node_says(&waiting, &[UNREADY, "no other shard has answered", "--alone"]).await?;
    // A router that remembers nothing of the shard is no witness, although it greets the node again and again.
    let router = setup.router("router-without-memory").await?;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let readiness = waiting.readiness().await?;
        says(&readiness.to_string(), &[UNREADY, "no other shard has answered"])?;
    }
    drop((router, waiting));
    let alone = Node::start_alone(&setup.nodes[0]).await?;
    let _s1 = Node::start(&setup.nodes[1]).await?;
    alone.becomes_ready().await
}

/// Sends an acknowledged id until the node has reported why it does not serve. Each answer must be the stored result or "not executed".
async fn is_never_executed_again(
    payments: &Payments,
    client: &testkit::client::Client,
    id: Uuid,
    node: &Node,
    words: &[&str],
) -> anyhow::Result<()> {
    let mut executed = Vec::new();
    until("the node says that its database went back", NOTICED_WITHIN, async || {
        let answer = payments.send(client, id).await?;
        if !(answer.is_replay() || is_unavailable(&answer)) {
            executed.push(format!("{} {}", answer.status, answer.text()));
        }
        says(&node.readiness().await?.to_string(), words)?;
        Ok(Some(()))
    })
    .await?;
    ensure!(executed.is_empty(), "an acknowledged payment was executed again: {executed:?}");
    Ok(())
}

async fn stop_all(nodes: &mut Vec<Node>) -> anyhow::Result<()> {
    let processes: Vec<Process> = nodes.iter().map(Node::process).collect();
    for process in processes {
        process.terminate(NOTICED_WITHIN).await?;
    }
    nodes.clear();
    Ok(())
}

async fn next_position(setup: &ShardSetup) -> anyhow::Result<i64> {
    database::number(&setup.database("s0"), "SELECT coalesce(max(position), 0) + 1 FROM journal").await
}

async fn incarnation(setup: &ShardSetup) -> anyhow::Result<i64> {
    database::number(&setup.database("s0"), "SELECT incarnation FROM shard_state").await.context("no incarnation")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_in_place_of_a_shard_is_served_by_no_node_and_initialised_by_no_command()
-> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(2).await?;
    let mut nodes = setup.found().await?;
    let router = setup.router("router").await?;
    let client = router.client();
    let mut payments = Payments::open(client, &setup.placement()?, "s0", "s1").await?;
    payments.make(client, 3).await?;
    let s0 = nodes.remove(0);
    s0.process().terminate(NOTICED_WITHIN).await?;
    drop(s0);
    setup.postgres.create_database("empty", "").await?;
    setup.postgres.swap("s0", "lost", "empty").await?;

    let s0 = Node::start_waiting(&setup.nodes[0]).await?;
    let readiness = node_says(&s0, &["never initialised", "restore"]).await?;
    expect!(readiness["status"] == "unready", "{readiness}");
    are_refused(&payments, client).await?;
    let map = setup.write_map("again", &setup.map)?;
    let said = setup.nodes[0].run(&["init", "--map", &map.display().to_string()])?.refused()?;
    says(&said, &["shard s1 remembers that shard s0", "never initialised again"])?;

    // The other shard's node does not answer, so nothing proves that this shard is new.
    nodes.remove(0).process().terminate(NOTICED_WITHIN).await?;
    let said = setup.nodes[0].run(&["init", "--map", &map.display().to_string()])?.refused()?;
    says(&said, &["shard s1 cannot be asked"])?;
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'shardledger'";
    ensure!(database::number(&setup.database("s0"), schemas).await? == 0);

    // The volume is mounted again.
    let _s1 = Node::start(&setup.nodes[1]).await?;
    setup.postgres.swap("s0", "empty", "lost").await?;
    s0.becomes_ready().await?;
    payments.are_there_once(client).await
}
