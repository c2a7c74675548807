//! Tests of databases that a node must not serve, and of databases that lack a guard, in which the check of the books must find the damage.

use std::time::Duration;

use anyhow::ensure;
use ledger::{Limit, operation::Operation};
use testkit::{
    database,
    node::{Node, NodeConfig, decide, open, order, transfer},
    wait::until,
};

use super::{NodeFixture, books_are_sound, open_pair};

/// The time within which a node must look at its database. A busy machine needs less to start a process.
const LOOKED_WITHIN: Duration = Duration::from_secs(30);

/// An older program on a newer schema would write rows that the newer one does not expect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_a_newer_schema_is_refused() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("newer").await?;
    database::run(&config.database_url, "UPDATE shard_state SET schema_version = 99").await?;
    let said = Node::start_refused(&config).await?;
    expect!(said.contains("schema version") && said.contains("newer version"), "{said}");
    Ok(())
}

/// An empty database may mean that the ledger is lost. The node waits and serves nothing. Only an operator's command initialises the
/// database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_is_not_served_until_an_operator_initialises_it() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let url = fixture.empty_database("empty").await?;
    let config = NodeConfig::write(&fixture.folder, "empty", "s0", &url)?;
    let node = Node::start_waiting(&config).await?;
    let readiness = until("the node has looked at its database", LOOKED_WITHIN, async || {
        let readiness = node.readiness().await?;
        let cause = readiness["writes_cause"].as_str().unwrap_or_default();
        Ok((cause.contains("never initialised") && cause.contains("restore")).then_some(readiness))
    })
    .await?;
    expect!(readiness["reads"] == false && readiness["writes"] == false, "{readiness}");
    ensure!(node.execute(&[open("alice", Limit::ZERO)?]).await.is_err(), "an empty database was written to");
    // Once the database is initialised, the node serves by itself.
    config.init(super::MAP)?;
    node.becomes_ready().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_of_another_shard_is_refused() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("others").await?;
    let wrong = NodeConfig::write(&fixture.folder, "wrong", "s1", &config.database_url)?;
    let said = Node::start_refused(&wrong).await?;
    expect!(said.contains("shard: expected s1, found s0. database.url leads to another shard"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_carried_out_twice_is_noticed() -> anyhow::Result<()> {
    unguarded("unguarded_transfer", &[], &transfer(&order("payer", "payee", 100), false)?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_credited_twice_is_noticed() -> anyhow::Result<()> {
    let order = order("payer", "payee", 100);
    unguarded("unguarded_register", &[transfer(&order, true)?], &decide(&order, false)?).await
}

/// The unique key of the journal's answers guards against a second effect. Without the key, the second of two equal operations is executed
/// again.
async fn unguarded(name: &str, before: &[Operation], twice: &Operation) -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard(name).await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;
    for operation in before {
        node.execute_until_definite(operation).await?;
    }
    let url = &config.database_url;
    books_are_sound(url).await?;
    database::run(url, "ALTER INDEX journal_answer RENAME TO former; CREATE INDEX journal_answer ON journal (id, payer, role) WHERE id IS NOT NULL; DROP INDEX former").await?;
    node.execute_until_definite(twice).await?;
    // A node has recent ids in memory. A new node reads the ids that are not folded.
    until("everything is folded", Duration::from_secs(10), async || {
        let unfolded = "SELECT max(position) - (SELECT folded_position FROM fold_state) FROM journal";
        Ok((database::number(url, unfolded).await? == 0).then_some(()))
    })
    .await?;
    drop(node);
    let node = Node::start(&config).await?;
    node.execute_until_definite(twice).await?;
    ensure!(
        node.account("payee").await?.posted == 200,
        "without the guard, the operation should have taken effect twice"
    );
    ensure!(books_are_sound(url).await.is_err(), "money moved twice under one id, and no check noticed");
    Ok(())
}
