//! Other tables with the names of the ledger's, and additional columns in the ledger's tables.

use anyhow::ensure;
use testkit::{database, node::Node, workload::open_account};

use super::{NOTICED_WITHIN, payments::Payments, stage::Stage};

const LEDGER_TABLES: &str = "SELECT string_agg(format('CREATE TABLE decoy.%I (LIKE shardledger.%I INCLUDING ALL);', \
     tablename, tablename), ' ') FROM pg_tables WHERE schemaname = 'shardledger'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_schema_in_the_search_path_and_added_columns_change_nothing() -> anyhow::Result<()> {
    let stage = Stage::with_shards(1).await?;
    let mut nodes = stage.found().await?;
    let router = stage.router("router").await?;
    let client = router.client();
    let mut payments = Payments::open(client, &stage.placement()?, "s0", "s0").await?;
    payments.make(client, 1).await?;

    // A decoy schema with tables of the same names, such as `"$user", public` may find.
    let decoys = stage.postgres.ask("s0", LEDGER_TABLES).await?;
    stage.postgres.sql("s0", &format!("CREATE SCHEMA decoy AUTHORIZATION shardledger; {decoys}")).await?;
    stage.postgres.sql("s0", "GRANT ALL ON ALL TABLES IN SCHEMA decoy TO shardledger").await?;
    stage.postgres.sql("postgres", "ALTER DATABASE s0 SET search_path = decoy").await?;
    // Columns added by an operator.
    for table in ["account", "journal", "hold", "waypoint"] {
        let columns = "ADD COLUMN note TEXT, ADD COLUMN checked BOOLEAN NOT NULL DEFAULT false";
        stage.postgres.sql("s0", &format!("ALTER TABLE shardledger.{table} {columns}")).await?;
    }
    open_account(client, "while-running", "0.00").await?;
    payments.make(client, 1).await?;

    nodes.remove(0).process().terminate(NOTICED_WITHIN).await?;
    let _node = Node::start(&stage.nodes[0]).await?;
    open_account(client, "after-restart", "0.00").await?;
    payments.make(client, 1).await?;
    payments.are_there_once(client).await?;
    let strays = "SELECT (SELECT count(*) FROM decoy.account) + (SELECT count(*) FROM decoy.journal) + \
                  (SELECT count(*) FROM decoy.shard_state)";
    ensure!(database::number(&stage.database("s0"), strays).await? == 0, "the decoy was written to");
    Ok(())
}
