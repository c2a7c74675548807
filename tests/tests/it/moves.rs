//! Slots move between shards under load. The clients notice nothing, and nothing is lost.

mod support;

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use testkit::{
    audit::audit,
    cluster::Cluster,
    seed::Seed,
    workload::{Accounts, Load, Mix},
};

use support::{Movement, wait_for};

const MIX: Mix = Mix {
    single_clients: 6,
    batch_clients: 2,
    two_phase_clients: 4,
    batch_items: 40,
    gives_up: true,
    request_timeout: Duration::from_secs(4),
};

/// Half of s0's slots of two.
const HALF: [(u32, u32); 1] = [(0, 4095)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_come_back() -> anyhow::Result<()> {
    let seed = Seed::announce("moves");
    let cluster = Cluster::start(2, 2).await?;
    let (accounts, opening) = Accounts::open(&cluster, 12, &mut seed.random()).await?;
    let load = Load::start(&cluster, &Arc::new(accounts), &seed, MIX);
    tokio::time::sleep(Duration::from_secs(2)).await;

    // There, cleaned up, and back as a move of its own.
    let there = Movement::start(&cluster, "s0", "s1", &HALF).await?;
    there.until("taken").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    there.wish(wire::MoveWishes { finish: Some(true), ..Default::default() }).await?;
    there.until("finished").await?;
    let back = Movement::start(&cluster, "s1", "s0", &HALF).await?;
    back.until("taken").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut history = load.finish().await?;
    eprintln!("moves: the clients were answered\n{}", history.answers());
    history.records.extend(opening.records);
    let summary = audit(&cluster, &history).await?;
    eprintln!("moves: {summary:?}");
    ensure!(summary.cross_shard > 100 && summary.holds >= 10, "too little was done: {summary:?}");
    for movement in [&there, &back] {
        let progress = movement.progress().await?;
        eprintln!("moves: {progress}");
        ensure!(progress["bookings"].as_u64() > Some(100), "{progress}");
    }
    back.wish(wire::MoveWishes { finish: Some(true), ..Default::default() }).await?;
    back.until("finished").await?;
    audit(&cluster, &history).await?;
    wait_for(&cluster, "s1", "SELECT count(*) FROM account WHERE slot BETWEEN 0 AND 4095", 0).await?;
    cluster.finish().await
}
