//! Tests of databases whose schema version differs from the node's.

use anyhow::ensure;
use ledger::{Limit, outcome::Reply};
use shard_database::schema::VERSION;
use shard_map::{ClusterId, HASH_SEED, SLOTS, ShardMap};
use testkit::{
    cluster::Cluster,
    database,
    node::{Node, NodeConfig, open, order, transfer},
    wait::until,
};

use super::{NOTICED_WITHIN, Payments, ShardSetup, UNREADY, node_says, says};

/// The number of looks that the test waits for. A refused node looks several times a second.
const LOOKS: i64 = 20;
const FIRST_SCHEMA: &str = include_str!("../../../../migrations/0001_ledger.sql");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_database_is_served_only_after_an_operator_has_migrated_it() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let (config, url) = (&setup.nodes[0], setup.database("s0"));
    database::run(&url, &format!("{FIRST_SCHEMA};{}", shard_of_the_first_version(&setup.map))).await?;
    let said = Node::start_refused(config).await?;
    says(&said, &[&format!("schema version: expected {VERSION}, found 1"), "shard-node migrate"])?;

    let stranger = NodeConfig::write_in(&setup.folder, "stranger", ClusterId::generate(), "s0", &url)?;
    let said = stranger.run(&["migrate", "--apply"])?.refused()?;
    says(&said, &["is not migrated", "cluster"])?;

    let said = config.run(&["migrate", "--dry-run"])?.successful()?;
    says(&said, &["migration 2", "journal: SHARE", "MiB", "lane_fence: SHARE ROW EXCLUSIVE"])?;
    ensure!(version(&url).await? == 1, "a dry run changed something");
    config.run(&["migrate", "--apply"])?.successful()?;
    ensure!(version(&url).await? == i64::from(VERSION));
    says(&config.run(&["migrate", "--apply"])?.successful()?, &["nothing to do"])?;

    let node = Node::start(config).await?;
    node.execute_until_definite(&open("payer", Limit::Unlimited)?).await?;
    node.execute_until_definite(&open("payee", Limit::ZERO)?).await?;
    node.execute_until_definite(&transfer(&order("payer", "payee", 100), false)?).await?;
    ensure!(node.account("payee").await?.posted == 100);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_serving_when_a_newer_version_migrates_its_database() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let (node, url) = (setup.found().await?.remove(0), setup.database("s0"));
    node.execute_until_definite(&open("payer", Limit::Unlimited)?).await?;
    node.execute_until_definite(&open("payee", Limit::ZERO)?).await?;
    let bookings = database::number(&url, "SELECT count(*) FROM journal").await?;
    database::run(&url, "UPDATE shard_state SET schema_version = 99").await?;
    // The next write is refused, even before the node has looked at its database.
    let reply = node.execute(&[transfer(&order("payer", "payee", 100), false)?]).await?.pop();
    expect!(
        matches!(&reply, Some(Reply::NotExecuted { detail, .. }) if detail.contains("schema version")),
        "{reply:?}"
    );
    node_says(&node, &[UNREADY, &format!("schema version: expected {VERSION}, found 99"), "newer version"]).await?;
    let read = node.account("payer").await;
    expect!(read.as_ref().is_err_and(|error| error.to_string().contains("schema version")), "{read:?}");
    ensure!(database::number(&url, "SELECT count(*) FROM journal").await? == bookings, "the write took effect");
    // The node keeps looking, and does not log the same refusal again.
    let said = node.log().lines().count();
    let before = sessions(&setup).await?;
    until("the node has looked at its database many times more", NOTICED_WITHIN, async || {
        node.status().await?;
        Ok((sessions(&setup).await? > before + LOOKS).then_some(()))
    })
    .await?;
    ensure!(node.log().lines().count() == said, "the node logged the same refusal again: {}", node.log());

    database::run(&url, &format!("UPDATE shard_state SET schema_version = {VERSION}")).await?;
    until("the node serves again", NOTICED_WITHIN, async || node.becomes_ready().await.map(Some)).await
}

/// The rows that make a database of the first schema version the only shard of this map.
fn shard_of_the_first_version(map: &ShardMap) -> String {
    let (cluster, seed, last) = (map.cluster, HASH_SEED.cast_signed(), SLOTS - 1);
    format!(
        "INSERT INTO shardledger.shard_identity (cluster_id, shard_id, shard_number, slot_count, hash_seed, founding_map, complete, \
           system_identifier, database_oid, timeline) SELECT '{cluster}', 's0', 0, {SLOTS}, {seed}, NULL, TRUE, system_identifier, (SELECT oid::int8 FROM pg_database WHERE datname = current_database()), 1 \
           FROM pg_control_system(); \
         INSERT INTO shardledger.shard_state (ownership_version, incarnation, schema_version) VALUES (1, 1, 1); \
         INSERT INTO shardledger.fold_state (folded_position) VALUES (0); \
         INSERT INTO shardledger.known_map (version, text) VALUES (1, $map${}$map$); \
         INSERT INTO shardledger.slot_ownership (slot, state, epoch) SELECT slot, 1, 1 FROM generate_series(0, {last}) slot;",
        map.to_toml()
    )
}

/// The number of sessions on the shard's database so far.
async fn sessions(setup: &ShardSetup) -> anyhow::Result<i64> {
    Ok(setup
        .postgres
        .ask("postgres", "SELECT sessions::text FROM pg_stat_database WHERE datname = 's0'")
        .await?
        .parse()?)
}

async fn version(url: &str) -> anyhow::Result<i64> {
    database::number(url, "SELECT schema_version::bigint FROM shard_state").await
}

/// Reverts all migrations but the first.
const BACK_TO_VERSION_1: &str = "DROP FUNCTION apply_erasures; DROP INDEX journal_account_changes; ALTER TABLE journal DROP COLUMN erases, DROP COLUMN ordered_by; ALTER TABLE shard_identity DROP COLUMN timeline_began; DROP TABLE slot_move; DROP FUNCTION advance_move; DROP FUNCTION change_slots; DROP TABLE hold; DROP FUNCTION change_hold; DROP FUNCTION end_hold; DROP INDEX journal_reversal; \
     UPDATE shard_state SET schema_version = 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shardctl_up_migrates_the_databases_of_its_own_cluster() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let client = cluster.client();
    let mut payments = Payments::open(&client, &cluster.placement()?, "s0", "s1").await?;
    payments.make(&client, 2).await?;
    for shard in &cluster.status().shards {
        database::run(&shard.dsn, BACK_TO_VERSION_1).await?;
    }
    cluster.down().await?;
    cluster.up().await?;
    let client = cluster.client();
    payments.make(&client, 2).await?;
    payments.are_there_once(&client).await?;
    cluster.verify_and_finish().await
}
