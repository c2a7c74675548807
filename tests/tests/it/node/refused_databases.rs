//! Databases that a node must not serve.

use std::time::Duration;

use anyhow::ensure;
use ledger::Limit;
use testkit::{
    database,
    node::{Node, NodeConfig, open},
    wait::until,
};

use super::Place;

/// Longer than a busy machine needs to start a process.
const LOOKED_WITHIN: Duration = Duration::from_secs(30);

/// An older binary on a newer schema would write what it does not understand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_a_newer_schema_is_refused() -> anyhow::Result<()> {
    let place = Place::new().await?;
    let config = place.shard("newer").await?;
    database::run(&config.database_url, "UPDATE shard_state SET schema_version = 99").await?;
    let said = Node::start_refused(&config).await?;
    ensure!(said.contains("schema version") && said.contains("newer version"), "{said}");
    Ok(())
}

/// An empty database may mean that the ledger is lost. The node waits and serves nothing; only an operator's command
/// initialises the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_is_not_served_until_an_operator_initialises_it() -> anyhow::Result<()> {
    let place = Place::new().await?;
    let url = place.empty_database("empty").await?;
    let config = NodeConfig::write(&place.folder, "empty", "s0", &url)?;
    let node = Node::start_waiting(&config).await?;
    let readiness = until("the node has looked at its database", LOOKED_WITHIN, async || {
        let readiness = node.readiness().await?;
        let cause = readiness["writes_cause"].as_str().unwrap_or_default();
        Ok((cause.contains("never initialised") && cause.contains("restore")).then_some(readiness))
    })
    .await?;
    ensure!(readiness["reads"] == false && readiness["writes"] == false, "{readiness}");
    ensure!(node.execute(&[open("alice", Limit::ZERO)?]).await.is_err(), "an empty database was written to");
    // Once the database is initialised, the node serves by itself.
    config.init(super::MAP)?;
    node.becomes_ready().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_of_another_shard_is_refused() -> anyhow::Result<()> {
    let place = Place::new().await?;
    let config = place.shard("others").await?;
    let wrong = NodeConfig::write(&place.folder, "wrong", "s1", &config.database_url)?;
    let said = Node::start_refused(&wrong).await?;
    ensure!(said.contains("shard: expected s1, found s0. database.url leads to another shard"), "{said}");
    Ok(())
}
