//! Tests of settings of databases, servers and environments that would lose or damage writes, and of tables that are not the ledger's.

use std::time::{Duration, Instant};

use anyhow::ensure;
use ledger::{Limit, outcome::Reply};
use testkit::{
    database,
    node::{Node, NodeConfig, open},
    wait::{section, until},
    workload::open_account,
};

use super::{NOTICED_WITHIN, Payments, ShardSetup, UNREADY, node_says, says};

/// The time within which a refusal must come. It is far below the request's deadline, and long enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_would_lose_or_damage_a_write_is_overridden_or_refused_by_name() -> anyhow::Result<()> {
    let setup = ShardSetup::behind_a_proxy(1).await?;
    section("encodings", other_encodings_are_refused(&setup)).await?;
    setup.found().await?;
    section("defaults", defaults_of_role_and_database_are_overruled(&setup)).await?;
    section("pooler", a_pooler_that_drops_startup_parameters_is_refused(&setup)).await?;
    section("fsync", without_fsync_reads_work_and_writes_do_not(&setup)).await?;
    section("read-only", a_read_only_database_refuses_writes_at_once_until_it_is_reset(&setup)).await
}

async fn other_encodings_are_refused(setup: &ShardSetup) -> anyhow::Result<()> {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let how = format!("ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        let name = encoding.to_lowercase();
        let url = setup.postgres.create_database(&name, &how).await?;
        let config = NodeConfig::write_in(&setup.folder, &name, setup.map.cluster, "s0", &url)?;
        let map = setup.write_map(&name, &setup.map)?;
        let said = config.run(&["init", "--map", &map.display().to_string()])?.refused()?;
        says(&said, &["server_encoding: expected UTF8", encoding])?;
    }
    Ok(())
}

async fn defaults_of_role_and_database_are_overruled(setup: &ShardSetup) -> anyhow::Result<()> {
    setup.postgres.sql("postgres", "ALTER ROLE shardledger SET synchronous_commit = off").await?;
    setup.postgres.sql("postgres", "ALTER DATABASE s0 SET synchronous_commit = off").await?;
    let node = Node::start(&setup.nodes[0]).await?;
    ensure!(node.found("synchronous_commit").await? == "on");
    node.execute_until_definite(&open("overruled", Limit::ZERO)?).await?;
    node_says(&node, &["\"status\":\"ready\""]).await?;
    Ok(())
}

/// The role still has the defaults of the previous section. The pooler loses the settings that the session requests.
async fn a_pooler_that_drops_startup_parameters_is_refused(setup: &ShardSetup) -> anyhow::Result<()> {
    let Some(proxy) = &setup.proxy else { return Ok(()) };
    proxy.drop_options(true);
    let said = Node::start_refused(&setup.nodes[0]).await?;
    says(&said, &["the database is refused", "pooler", "search_path: expected pg_catalog"])?;
    proxy.drop_options(false);

    // The same fault occurs while a node runs.
    let node = Node::start(&setup.nodes[0]).await?;
    proxy.drop_options(true);
    proxy.cut();
    node_says(&node, &[UNREADY, "pooler", "search_path"]).await?;
    is_refused(&node, "pooler").await?;
    proxy.drop_options(false);
    proxy.cut();
    node.becomes_ready().await?;
    setup.postgres.sql("postgres", "ALTER ROLE shardledger RESET synchronous_commit").await?;
    setup.postgres.sql("postgres", "ALTER DATABASE s0 RESET synchronous_commit").await
}

async fn without_fsync_reads_work_and_writes_do_not(setup: &ShardSetup) -> anyhow::Result<()> {
    let node = Node::start(&setup.nodes[0]).await?;
    setup.postgres.set("fsync", "off").await?;
    let readiness = node_says(&node, &["fsync: expected on, found off"]).await?;
    expect!(readiness["status"] == "degraded" && readiness["reads"] == true, "{readiness}");
    is_refused(&node, "fsync").await?;
    node.account("overruled").await?;
    setup.postgres.reset("fsync").await?;
    node.becomes_ready().await
}

async fn a_read_only_database_refuses_writes_at_once_until_it_is_reset(setup: &ShardSetup) -> anyhow::Result<()> {
    let node = Node::start(&setup.nodes[0]).await?;
    let router = setup.router("read-only").await?;
    node.execute_until_definite(&open("before", Limit::ZERO)?).await?;
    setup.postgres.set("default_transaction_read_only", "on").await?;
    let readiness = node_says(&node, &["transaction_read_only: expected off, found on"]).await?;
    expect!(readiness["status"] == "degraded" && readiness["reads"] == true, "{readiness}");
    is_refused(&node, "default_transaction_read_only").await?;
    node.account("before").await?;
    let opened = serde_json::json!({"id": "during", "asset": "USD"});
    let asked = Instant::now();
    let answer = router.client().call(0, http::Method::POST, "/v1/accounts", Some(&opened)).await?;
    ensure!(asked.elapsed() < AT_ONCE, "the refusal took {:?}", asked.elapsed());
    expect!(answer.status == 503 && answer.json()?["executed"] == false, "{} {}", answer.status, answer.text());

    setup.postgres.reset("default_transaction_read_only").await?;
    node.becomes_ready().await?;
    node.execute_until_definite(&open("after", Limit::ZERO)?).await?;
    Ok(())
}

/// Checks that a write is certainly not executed, for this reason.
async fn is_refused(node: &Node, reason: &str) -> anyhow::Result<()> {
    until("a write is refused by name", NOTICED_WITHIN, async || {
        let reply = node.execute(&[open("refused", Limit::ZERO)?]).await?.pop();
        Ok(matches!(reply, Some(Reply::NotExecuted { detail, .. }) if detail.contains(reason)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_of_postgresql_are_ignored_or_refused_by_name() -> anyhow::Result<()> {
    let mut setup = ShardSetup::with_shards(1).await?;
    drop(setup.found().await?);
    let set = |variables: &[(&str, &str)]| {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    setup.nodes[0].environment = set(&[("PGOPTIONS", "-c synchronous_commit=off")]);
    says(&Node::start_refused(&setup.nodes[0]).await?, &["PGOPTIONS", "unset it"])?;
    setup.nodes[0].environment = set(&[
        ("PGSSLMODE", "require"),
        ("PGHOST", "192.0.2.1"),
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGPORT", "1"),
        ("PGDATABASE", "nope"),
        ("PGUSER", "nobody"),
        ("PGAPPNAME", "nope"),
    ]);
    Node::start(&setup.nodes[0]).await?;
    Ok(())
}

const LEDGER_TABLES: &str = "SELECT string_agg(format('CREATE TABLE decoy.%I (LIKE shardledger.%I INCLUDING ALL);', \
     tablename, tablename), ' ') FROM pg_tables WHERE schemaname = 'shardledger'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_schema_in_the_search_path_and_added_columns_change_nothing() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(1).await?;
    let mut nodes = setup.found().await?;
    let router = setup.router("router").await?;
    let client = router.client();
    let mut payments = Payments::open(client, &setup.placement()?, "s0", "s0").await?;
    payments.make(client, 1).await?;

    // A decoy schema has tables of the same names. A search path such as `"$user", public` may find it.
    let decoys = setup.postgres.ask("s0", LEDGER_TABLES).await?;
    setup.postgres.sql("s0", &format!("CREATE SCHEMA decoy AUTHORIZATION shardledger; {decoys}")).await?;
    setup.postgres.sql("s0", "GRANT ALL ON ALL TABLES IN SCHEMA decoy TO shardledger").await?;
    setup.postgres.sql("postgres", "ALTER DATABASE s0 SET search_path = decoy").await?;
    // An operator has added columns.
    for table in ["account", "journal", "hold", "waypoint"] {
        let columns = "ADD COLUMN note TEXT, ADD COLUMN checked BOOLEAN NOT NULL DEFAULT false";
        setup.postgres.sql("s0", &format!("ALTER TABLE shardledger.{table} {columns}")).await?;
    }
    open_account(client, "while-running", "0.00").await?;
    payments.make(client, 1).await?;

    nodes.remove(0).process().terminate(NOTICED_WITHIN).await?;
    let _node = Node::start(&setup.nodes[0]).await?;
    open_account(client, "after-restart", "0.00").await?;
    payments.make(client, 1).await?;
    payments.are_there_once(client).await?;
    let strays = "SELECT (SELECT count(*) FROM decoy.account) + (SELECT count(*) FROM decoy.journal) + \
                  (SELECT count(*) FROM decoy.shard_state)";
    ensure!(database::number(&setup.database("s0"), strays).await? == 0, "the decoy was written to");
    Ok(())
}
