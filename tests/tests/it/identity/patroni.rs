//! A failover that Patroni decides. The node's URL names both members; Patroni's synchronous mode keeps what is acknowledged.

use std::{sync::Arc, time::Instant};

use testkit::{
    node::Folder,
    patroni::{Etcd, Member, Programs, url_of_all},
    postgres::Postgres,
    section::section,
    wait::until,
};

use super::{
    NOTICED_WITHIN,
    payments::Payments,
    promotion::{Load, books_are_clean, two_shards},
};

/// Payments that are acknowledged in each part.
const PAYMENTS: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_follows_a_failover_of_patroni_and_loses_nothing_in_synchronous_mode() -> anyhow::Result<()> {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => {
            eprintln!("skipped: {missing} (Debian has it in the packages patroni and etcd-server)");
            return Ok(());
        }
    };
    // Declared before the members, so that it is removed after they have ended.
    let home = Folder::create()?;
    let etcd = Etcd::start(&programs, &home).await?;
    let mut first = Member::start(&programs, &home, "first", &etcd)?;
    section("the first member leads", first.becomes("primary")).await?;
    // In strict mode a commit waits for a stand-by.
    let second = Member::start(&programs, &home, "second", &etcd)?;
    section("the second member is synchronous", second.becomes("synchronous")).await?;
    first.create_database("s0").await?;
    let folder = Folder::create()?;
    let other = Postgres::start(&folder, "other").await?;
    let stage = two_shards(folder, url_of_all(&[&first, &second], "s0"), other).await?;
    let nodes = stage.found().await?;
    let router = Arc::new(stage.router("router").await?);
    let mut payments = Payments::open(router.client(), &stage.placement()?, "s0", "s1").await?;
    let load = Load::start(&router, &payments);
    section("before", load.makes(PAYMENTS)).await?;

    first.kill().await?;
    let killed = Instant::now();
    section("Patroni promotes the second member", second.becomes("primary")).await?;
    let promoted = Instant::now();
    // In strict mode nothing is acknowledged before a stand-by is there again.
    first.start_again()?;
    section("the first member is a stand-by", first.becomes("replica")).await?;
    section("payments are made again", load.makes(PAYMENTS)).await?;
    eprintln!(
        "patroni: {:.1?} from the kill to the promotion, {:.1?} more until {PAYMENTS} payments",
        promoted - killed,
        promoted.elapsed()
    );
    payments.acknowledged = load.finish().await?;
    payments.are_there_once(router.client()).await?;
    until("the shard's mark has the new timeline", NOTICED_WITHIN, async || {
        Ok((nodes[0].mark().await?.timeline == 2).then_some(()))
    })
    .await?;
    books_are_clean(&stage)
}
