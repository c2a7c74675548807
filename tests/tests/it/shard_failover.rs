//! Tests of `shardctl up --standby` and `shardctl shard failover`. Under load, a shard's stand-by becomes its primary and the former
//! primary its stand-by, and back again. The audit compares every answer with the databases. Other tests interrupt a failover at each step,
//! have two nodes for each shard, and have a stand-by that lacks what the primary has.

use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::{
    audit::audit,
    cluster::{Cluster, Member},
    database,
    seed::Seed,
    wait::{section, until},
    workload::{Load, Mix, open_account, try_open_account},
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
        expect!((standby.mode.as_str(), standby.state.as_str()) == ("sync", "streaming"), "{standby:?}");
    }
    let before = ports(&cluster)?;
    let (primary, standby) = before[0];
    let load = Load::start(&cluster, 4, &mut seed.random(), &seed, MIX).await?;

    let would = cluster.shardctl_json(&["shard", "failover", SHARD, "--dry-run", "--json"]).await?;
    expect!(
        would["dry_run"] == true && would["primary_port"] == standby && would["bytes_behind"].is_number(),
        "{would}"
    );
    let refused = cluster.shardctl(&["shard", "failover", SHARD]).await?;
    expect!(refused.code == Some(NOT_CONFIRMED), "{refused:?}");
    cluster.refresh_status().await?;
    ensure!(ports(&cluster)? == before, "something changed without a confirmation");

    section("there", fails_over(&mut cluster, "there", (standby, primary))).await?;
    section("back", fails_over(&mut cluster, "back", (primary, standby))).await?;
    let history = load.finish().await?;
    eprintln!("shard_failover: the clients were answered\n{}", history.answers());
    eprintln!("shard_failover: {:?}", audit(&cluster, &history).await?);
    let lost = cluster.shardctl(&["reconcile", "--json"]).await?;
    ensure!(lost.code == Some(0), "the failover should lose nothing: {lost:?}");

    section("down and up", async {
        cluster.down().await?;
        cluster.up().await?;
        ensure!(ports(&cluster)? == before, "the servers have other roles after a restart");
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
    expect!(refused.code == Some(1) && refused.stderr.contains("was created without stand-bys"), "{refused:?}");
    let refused = cluster.shardctl(&["shard", "failover", SHARD, "--dry-run"]).await?;
    expect!(refused.code == Some(1) && refused.stderr.contains("shard s0 has no stand-by"), "{refused:?}");
    cluster.finish().await
}

async fn fails_over(cluster: &mut Cluster, name: &str, expected: (u16, u16)) -> anyhow::Result<()> {
    let done = cluster.shardctl_json(&["shard", "failover", SHARD, "--yes", "--json"]).await?;
    expect!(done["ready"] == true && done["primary_port"] == expected.0, "{done}");
    let aside = done["former_folder"].as_str().with_context(|| format!("expected former_folder in {done}"))?;
    ensure!(std::path::Path::new(aside).join("PG_VERSION").exists(), "{aside} does not exist");
    cluster.refresh_status().await?;
    expect!(ports(cluster)?[0] == expected, "{:?}", cluster.status());
    let standby = cluster.status().shards[0].standby.as_ref().context("no stand-by")?;
    expect!(standby.state == "streaming", "{standby:?}");
    let (client, placement) = (cluster.client().with_timeout(MIX.request_timeout), cluster.placement()?);
    let id = placement.account_on(SHARD, name, 0)?;
    until("the shard takes writes", NOTICED_WITHIN, async || {
        try_open_account(&client, &id, "unlimited").await.map(Some)
    })
    .await
}

const PATIENCE: Duration = Duration::from_secs(60);
/// The steps of a failover in their order. The failover of one shard is interrupted at each of them.
const STEPS: [&str; 4] = ["stop", "set_aside", "promote", "rebuild"];
/// The variable that ends `shardctl` at a step.
const ABORT: &str = "SHARDLEDGER_FAILOVER_ABORT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_was_interrupted_at_any_step_is_finished_or_undone() -> anyhow::Result<()> {
    let seed = Seed::announce("interrupted failover");
    let mut cluster = Cluster::start_with_standbys("async", 4, 1).await?;
    let load = Load::start(&cluster, 8, &mut seed.random(), &seed, MIX).await?;
    let before = ports(&cluster)?;
    section("interrupted before a step, then run again", async {
        for (shard, step) in STEPS.iter().enumerate() {
            interrupt(&cluster, shard, step, "before").await?;
            let id = format!("s{shard}");
            let done = cluster.shardctl_json(&["shard", "failover", &id, "--yes", "--json"]).await?;
            expect!(done["ready"] == true, "{step}: {done}");
        }
        cluster.refresh_status().await?;
        let exchanged: Vec<(u16, u16)> = before.iter().map(|(primary, standby)| (*standby, *primary)).collect();
        expect!(ports(&cluster)? == exchanged, "{:?}", cluster.status());
        all_stream(&cluster)
    })
    .await?;
    let before = ports(&cluster)?;
    section("interrupted after a step, then down and up", async {
        for (shard, step) in STEPS.iter().enumerate() {
            interrupt(&cluster, shard, step, "after").await?;
        }
        cluster.down().await?;
        cluster.up().await?;
        // Until the failovers are finished or undone, the clients cannot get a definite answer.
        let history = load.finish().await?;
        let found = ports(&cluster)?;
        ensure!(found[0] == before[0], "the failover of s0 had promoted nothing and is undone: {found:?}");
        for shard in 1..STEPS.len() {
            ensure!(found[shard] == (before[shard].1, before[shard].0), "s{shard} is not finished: {found:?}");
        }
        all_stream(&cluster)?;
        eprintln!("interrupted failover: {:?}", audit(&cluster, &history).await?);
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_with_two_nodes_and_an_asynchronous_standby_survives_each_kind_of_failure() -> anyhow::Result<()> {
    let seed = Seed::announce("two nodes and a standby");
    let mut cluster = Cluster::start_with_options(&["--nodes", "2", "--standby", "async"], 2, 2).await?;
    let load = Load::start(&cluster, 6, &mut seed.random(), &seed, MIX).await?;
    let before = ports(&cluster)?;
    let failover = ["shard", "failover", "s0", "--yes", "--json"];
    section("the active node is killed, and the database fails over", async {
        cluster.kill(Member::Node(0)).await?;
        let done = cluster.shardctl_json(&failover).await?;
        expect!(done["ready"] == true && done["primary_port"] == before[0].1, "{done}");
        cluster.wait_until_ready("both nodes are back", &[]).await
    })
    .await?;
    section("back", async {
        let done = cluster.shardctl_json(&failover).await?;
        expect!(done["ready"] == true && done["primary_port"] == before[0].0, "{done}");
        cluster.refresh_status().await.map(drop)
    })
    .await?;
    section("the primary is killed", cluster.kill_and_recover(&[Member::Postgres(0), Member::Node(1)])).await?;
    let history = load.finish().await?;
    eprintln!("two nodes and a standby: {:?}", audit(&cluster, &history).await?);
    section("the folder of a stand-by is gone after a crash", async {
        let gone = cluster.data_dir().join("pg/s1.second").canonicalize()?;
        let supervisor = cluster.status().supervisor_pid.context("no supervisor")?;
        let supervisor = testkit::process::Process::of(supervisor).context("no supervisor")?;
        supervisor.kill().await?;
        for shard in 0..2 {
            cluster.kill(Member::Postgres(shard)).await?;
        }
        cluster.down().await?;
        std::fs::remove_dir_all(&gone)?;
        cluster.up().await?;
        all_stream(&cluster)?;
        cluster.verify().await
    })
    .await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asynchronous_standby_that_lacks_payments_is_not_promoted_unless_the_loss_is_accepted()
-> anyhow::Result<()> {
    let mut cluster = Cluster::start_with_options(&["--standby", "async", "--no-restart"], 1, 1).await?;
    let before = ports(&cluster)?;
    let password = std::fs::read_to_string(cluster.data_dir().join("secrets/s0.postgres.password"))?;
    let standby = format!("postgres://postgres:{}@127.0.0.1:{}/postgres", password.trim(), before[0].1);
    let configure = async |change: &str| {
        database::run(&standby, &format!("ALTER SYSTEM {change}")).await?;
        database::run(&standby, "SELECT pg_reload_conf()").await
    };
    configure("SET primary_conninfo = ''").await?;
    until("the stand-by does not receive the log any more", PATIENCE, async || {
        let receivers = database::number(&standby, "SELECT count(*) FROM pg_stat_wal_receiver").await?;
        Ok((receivers == 0).then_some(()))
    })
    .await?;
    let (client, placement) = (cluster.client(), cluster.placement()?);
    open_account(&client, &placement.account_on("s0", "acknowledged", 0)?, "0.00").await?;
    cluster.kill(Member::Postgres(0)).await?;

    let refused = cluster.shardctl(&["shard", "failover", "s0", "--yes"]).await?;
    for part in ["the stand-by of shard s0 lacks ", " bytes of the log in ", "Nothing was changed", "--accept-loss"] {
        expect!(refused.code == Some(1) && refused.stderr.contains(part), "{refused:?}");
    }
    let would = ["shard", "failover", "s0", "--accept-loss", "--dry-run", "--json"];
    let would = cluster.shardctl_json(&would).await?;
    expect!(would["bytes_behind"].as_u64().is_some_and(|bytes| bytes > 0), "{would}");
    cluster.refresh_status().await?;
    ensure!(ports(&cluster)? == before, "the roles were exchanged: {:?}", cluster.status());

    configure("RESET primary_conninfo").await?;
    cluster.down().await?;
    cluster.up().await?;
    all_stream(&cluster)?;
    cluster.finish().await
}

/// Starts a failover that ends by itself at a step.
async fn interrupt(cluster: &Cluster, shard: usize, step: &str, when: &str) -> anyhow::Result<()> {
    let point = format!("{step}.{when}");
    let id = format!("s{shard}");
    let ended = cluster.shardctl_with(&[(ABORT, &point)], &["shard", "failover", &id, "--yes"]).await?;
    ensure!(ended.code.is_none(), "the failover did not reach {point}: {ended:?}");
    Ok(())
}

/// The ports of the primary and of the stand-by of each shard.
fn ports(cluster: &Cluster) -> anyhow::Result<Vec<(u16, u16)>> {
    let shards = cluster.status().shards.iter();
    shards
        .map(|shard| Ok((shard.postgres_port, shard.standby.as_ref().context("no stand-by")?.port)))
        .collect::<anyhow::Result<_>>()
}

fn all_stream(cluster: &Cluster) -> anyhow::Result<()> {
    for shard in &cluster.status().shards {
        let standby = shard.standby.as_ref().context("no stand-by")?;
        ensure!(standby.state == "streaming", "shard {}: {standby:?}", shard.id);
    }
    Ok(())
}
