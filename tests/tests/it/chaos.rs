//! `kill -9` of any one process, again and again, under a mixed load of payments, holds and reversals through two routers.

use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use testkit::{
    audit::audit,
    cluster::{Cluster, Member},
    seed::{Random, Seed},
    workload::{Accounts, History, Load, Mix},
};

/// Environment variable with the length of the run.
const SECONDS_VARIABLE: &str = "CHAOS_SECONDS";
const DEFAULT_SECONDS: u64 = 60;
/// Environment variable with the number of processes that are killed at one moment; one unless somebody looks for trouble.
const AT_ONCE_VARIABLE: &str = "CHAOS_AT_ONCE";
/// Every process is killed at least so often, however long that takes.
const ROUNDS: usize = 2;

const MIX: Mix = Mix { single_clients: 6, batch_clients: 2, two_phase_clients: 4, batch_items: 40, gives_up: true };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_every_acknowledged_transfer_is_there_once() -> anyhow::Result<()> {
    let seed = Seed::announce("chaos");
    let mut cluster = Cluster::start(4, 2).await?;
    let (accounts, opening) = Accounts::open(&cluster, 8, &mut seed.random()).await?;
    let load = Load::start(&cluster, &Arc::new(accounts), &seed, MIX);

    let kills = kill_again_and_again(&mut cluster, &mut seed.random(), length()).await?;

    let mut history = load.finish().await?;
    eprintln!("chaos: {kills} kills; the clients were answered\n{}", history.answers());
    history.records.extend(opening.records);
    let summary = audit(&cluster, &history).await?;
    eprintln!("chaos: {summary:?}; holds: {:?}", how_holds_ended(&history));
    // Faults that nobody noticed, or a load that did nothing, would prove nothing.
    ensure!(summary.was_unknown > 0, "no answer was ever in doubt: {summary:?}");
    ensure!(
        summary.cross_shard > 100 && summary.rejected > 0 && summary.holds > 20,
        "too little was done: {summary:?}"
    );
    let ends = how_holds_ended(&history);
    ensure!(["captured", "released", "expired"].iter().all(|end| ends.contains_key(end)), "{ends:?}");
    cluster.finish().await
}

fn how_holds_ended(history: &History) -> BTreeMap<&'static str, usize> {
    let mut ends = BTreeMap::new();
    for status in history.lives.iter().filter_map(|life| life.status().ok()) {
        *ends.entry(status).or_default() += 1;
    }
    ends
}

fn length() -> Duration {
    Duration::from_secs(from_environment(SECONDS_VARIABLE).unwrap_or(DEFAULT_SECONDS))
}

fn from_environment<T: FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The next when the last is back. Gives the number of kills.
async fn kill_again_and_again(cluster: &mut Cluster, random: &mut Random, length: Duration) -> anyhow::Result<usize> {
    let at_once = from_environment(AT_ONCE_VARIABLE).unwrap_or(1);
    let begun = Instant::now();
    let mut kills = 0;
    for round in 0.. {
        let mut members: Vec<Member> = cluster.members();
        random.shuffle(&mut members);
        for victims in members.chunks(at_once) {
            if round >= ROUNDS && begun.elapsed() >= length {
                return Ok(kills);
            }
            // Some traffic between two faults, so that each one meets work under way.
            tokio::time::sleep(Duration::from_millis(100 + random.below(400) as u64)).await;
            let killed = Instant::now();
            cluster.kill_and_recover(victims).await?;
            eprintln!("chaos: {victims:?} back {:.1?} after kill -9", killed.elapsed());
            kills += victims.len();
        }
    }
    Ok(kills)
}
