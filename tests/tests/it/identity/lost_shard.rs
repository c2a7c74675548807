//! A shard whose database is gone: an unmounted volume, or a server that was created anew. The shard is never
//! initialised again.

use anyhow::ensure;
use testkit::{database, node::Node};

use super::{
    NOTICED_WITHIN, node_says,
    payments::{Payments, are_refused},
    says,
    stage::Stage,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_in_place_of_a_shard_is_served_by_no_node_and_initialised_by_no_command()
-> anyhow::Result<()> {
    let stage = Stage::with_shards(2).await?;
    let mut nodes = stage.found().await?;
    let router = stage.router("router").await?;
    let client = router.client();
    let mut payments = Payments::open(client, &stage.placement()?, "s0", "s1").await?;
    payments.make(client, 3).await?;
    let s0 = nodes.remove(0);
    s0.process().terminate(NOTICED_WITHIN).await?;
    drop(s0);
    stage.postgres.create_database("empty", "").await?;
    stage.postgres.swap("s0", "lost", "empty").await?;

    let s0 = Node::start_waiting(&stage.nodes[0]).await?;
    let readiness = node_says(&s0, &["never initialised", "restore"]).await?;
    ensure!(readiness["status"] == "unready", "{readiness}");
    are_refused(&payments, client).await?;
    let map = stage.write_map("again", &stage.map)?;
    let said = stage.nodes[0].run(&["init", "--map", &map.display().to_string()])?;
    ensure!(!said.succeeded, "{}", said.text);
    says(&said.text, &["shard s1 remembers that shard s0", "never initialised again"])?;

    // The other shard's node does not answer, so nothing proves that this shard is new.
    nodes.remove(0).process().terminate(NOTICED_WITHIN).await?;
    let said = stage.nodes[0].run(&["init", "--map", &map.display().to_string()])?;
    ensure!(!said.succeeded, "{}", said.text);
    says(&said.text, &["shard s1 cannot be asked"])?;
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'shardledger'";
    ensure!(database::number(&stage.database("s0"), schemas).await? == 0);

    // The volume is mounted again.
    let _s1 = Node::start(&stage.nodes[1]).await?;
    stage.postgres.swap("s0", "empty", "lost").await?;
    s0.becomes_ready().await?;
    payments.are_there_once(client).await
}
