//! `shardctl up --standby` and `shardctl shard failover`: a shard's stand-by becomes its primary under load, and the former primary
//! its stand-by, there and back. The audit holds every answer against the databases.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use testkit::{
    audit::audit,
    cluster::Cluster,
    section::section,
    seed::Seed,
    wait::until,
    workload::{Accounts, Load, Mix, try_open_account},
};

const SHARD: &str = "s0";
/// The load during a failover.
pub const MIX: Mix = Mix {
    single_clients: 3,
    batch_clients: 1,
    two_phase_clients: 0,
    batch_items: 10,
    gives_up: true,
    request_timeout: Duration::from_secs(4),
};
const NOTICED_WITHIN: Duration = Duration::from_secs(60);
const NOT_CONFIRMED: i32 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_fails_over_to_its_synchronous_standby_and_back_under_load() -> anyhow::Result<()> {
    let seed = Seed::announce("shard_failover");
    let mut cluster = Cluster::start_with_standbys("sync", 2, 1).await?;
    for shard in &cluster.status().shards {
        let standby = shard.standby.as_ref().context("no stand-by")?;
        ensure!((standby.mode.as_str(), standby.state.as_str()) == ("sync", "streaming"), "{standby:?}");
    }
    let ports = ports(&cluster)?;
    let (accounts, opening) = Accounts::open(&cluster, 4, &mut seed.random()).await?;
    let load = Load::start(&cluster, &Arc::new(accounts), &seed, MIX);

    let would = cluster.shardctl_json(&["shard", "failover", SHARD, "--dry-run", "--json"]).await?;
    ensure!(
        would["dry_run"] == true && would["primary_port"] == ports.1 && would["bytes_behind"].is_number(),
        "{would}"
    );
    let refused = cluster.shardctl(&["shard", "failover", SHARD]).await?;
    ensure!(refused.code == Some(NOT_CONFIRMED), "{refused:?}");
    cluster.refresh_status().await?;
    ensure!(self::ports(&cluster)? == ports, "something changed without a confirmation");

    section("there", fails_over(&mut cluster, "there", (ports.1, ports.0))).await?;
    section("back", fails_over(&mut cluster, "back", ports)).await?;
    let mut history = load.finish().await?;
    history.records.extend(opening.records);
    eprintln!("shard_failover: the clients were answered\n{}", history.answers());
    eprintln!("shard_failover: {:?}", audit(&cluster, &history).await?);
    let lost = cluster.shardctl(&["reconcile", "--json"]).await?;
    ensure!(lost.code == Some(0), "something was lost: {lost:?}");

    section("down and up", async {
        cluster.down().await?;
        cluster.up().await?;
        ensure!(self::ports(&cluster)? == ports, "the servers have other roles after a restart");
        cluster.verify().await
    })
    .await?;
    cluster.finish().await
}

/// A copy of the data folder would share the ports of its stand-bys with the original, and an existing cluster gets none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_the_standbys_that_it_was_created_with() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let refused = cluster.shardctl(&["up", "--standby", "async"]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("was created without stand-bys"), "{refused:?}");
    let refused = cluster.shardctl(&["shard", "failover", SHARD, "--dry-run"]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("shard s0 has no stand-by"), "{refused:?}");
    cluster.finish().await
}

/// The ports of the primary and of the stand-by.
fn ports(cluster: &Cluster) -> anyhow::Result<(u16, u16)> {
    let shard = &cluster.status().shards[0];
    Ok((shard.postgres_port, shard.standby.as_ref().context("no stand-by")?.port))
}

async fn fails_over(cluster: &mut Cluster, name: &str, expected: (u16, u16)) -> anyhow::Result<()> {
    let done = cluster.shardctl_json(&["shard", "failover", SHARD, "--yes", "--json"]).await?;
    ensure!(done["ready"] == true && done["primary_port"] == expected.0, "{done}");
    let aside = done["former_folder"].as_str().context("no folder of the former primary")?;
    ensure!(std::path::Path::new(aside).join("PG_VERSION").exists(), "{aside} is not there");
    cluster.refresh_status().await?;
    ensure!(ports(cluster)? == expected, "{:?}", cluster.status());
    let standby = cluster.status().shards[0].standby.as_ref().context("no stand-by")?;
    ensure!(standby.state == "streaming", "{standby:?}");
    let (client, placement) = (cluster.client().with_timeout(MIX.request_timeout), cluster.placement()?);
    let id = placement.account_on(SHARD, name, 0)?;
    until("the shard takes writes", NOTICED_WITHIN, async || {
        try_open_account(&client, &id, "unlimited").await.map(Some)
    })
    .await
}
