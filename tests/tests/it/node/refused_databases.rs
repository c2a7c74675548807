//! Databases that a node must not serve.

use anyhow::ensure;
use testkit::{
    database,
    node::{Node, NodeConfig},
};

use super::Place;

/// A migration that no released version has.
const FUTURE_MIGRATION: i64 = 999_999;

/// An older binary on a newer schema would write what it does not understand.
pub async fn of_a_newer_version(place: &Place<'_>) -> anyhow::Result<()> {
    let config = place.shard("newer").await?;
    let migrate = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES ({FUTURE_MIGRATION}, 'from the future', true, '\\x00', 0)"
    );
    database::run(&config.database_url, &migrate).await?;
    let said = Node::start_refused(&config).await?;
    ensure!(said.contains(&FUTURE_MIGRATION.to_string()) && said.contains("newer version"), "{said}");
    Ok(())
}

/// An empty database where a ledger should be may be a lost one: nobody begins a new ledger there by accident.
pub async fn never_initialised(place: &Place<'_>) -> anyhow::Result<()> {
    let url = database::create(place.cluster, "empty").await?;
    let config = NodeConfig::write(&place.folder, "empty", "s0", &url)?;
    let said = Node::start_refused(&config).await?;
    ensure!(said.contains("never initialised"), "{said}");
    Ok(())
}

pub async fn of_another_shard(place: &Place<'_>) -> anyhow::Result<()> {
    let config = place.shard("others").await?;
    let wrong = NodeConfig::write(&place.folder, "wrong", "s1", &config.database_url)?;
    let said = Node::start_refused(&wrong).await?;
    ensure!(said.contains("\"s0\"") && said.contains("\"s1\""), "{said}");
    Ok(())
}
