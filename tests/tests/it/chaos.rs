//! Processes are killed with `kill -9`, again and again, under a mixed load of payments, holds and reversals through two routers.
//! [`rounds`] has rounds of random faults.

mod faults;
mod report;
mod rounds;

use std::{
    collections::BTreeMap,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::ensure;
use testkit::{
    audit::audit,
    cluster::{Cluster, Member},
    seed::{Random, Seed},
    workload::{History, Load, Mix, Seen},
};

/// The environment variable with the length of the run.
const SECONDS_VARIABLE: &str = "CHAOS_SECONDS";
const DEFAULT_SECONDS: u64 = 60;
/// The environment variable with the number of processes that are killed at the same moment. The default is one.
const AT_ONCE_VARIABLE: &str = "CHAOS_AT_ONCE";
/// Every process is killed at least this often, however long that takes.
const ROUNDS: usize = 2;
/// The run goes on until it has seen each of these events this often. Without them, the faults or the load had no effect, and the run
/// proves nothing.
const ENOUGH: [(Seen, usize); 6] = [
    (Seen::InDoubt, 1),
    (Seen::CrossShard, 101),
    (Seen::Rejected, 1),
    (Seen::Captured, 5),
    (Seen::Released, 5),
    (Seen::Expired, 5),
];
/// The run ends after this time in any case.
const LONGEST: Duration = Duration::from_secs(300);

const MIX: Mix = Mix {
    single_clients: 6,
    batch_clients: 2,
    two_phase_clients: 4,
    batch_items: 40,
    gives_up: true,
    request_timeout: Duration::from_secs(4),
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_every_acknowledged_transfer_is_there_once() -> anyhow::Result<()> {
    let seed = Seed::announce("chaos");
    let mut cluster = Cluster::start(4, 2).await?;
    // One node folds all the time, one never does, and the others fold now and then.
    cluster.set_fold_interval(0, Duration::from_millis(1)).await?;
    cluster.set_fold_interval(1, Duration::from_secs(24 * 60 * 60)).await?;
    cluster.set_fold_interval(2, Duration::from_millis(100)).await?;
    let load = Load::start(&cluster, 8, &mut seed.random(), &seed, MIX).await?;

    let kills = kill_again_and_again(&mut cluster, &load, &mut seed.random()).await?;

    let history = load.finish().await?;
    eprintln!("chaos: {kills} kills; the clients were answered\n{}", history.answers());
    let summary = audit(&cluster, &history).await?;
    eprintln!("chaos: {summary:?}; holds: {:?}", how_holds_ended(&history));
    ensure!(
        summary.was_unknown > 0 && summary.cross_shard > 100 && summary.rejected > 0 && summary.holds >= 15,
        "the load was too small: {summary:?}"
    );
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

fn has_seen_enough(load: &Load) -> bool {
    ENOUGH.iter().all(|(what, count)| load.progress().of(*what) >= *count)
}

/// Kills processes, each after the one before is back. Returns the number of kills.
async fn kill_again_and_again(cluster: &mut Cluster, load: &Load, random: &mut Random) -> anyhow::Result<usize> {
    let length = length();
    let at_once = from_environment(AT_ONCE_VARIABLE).unwrap_or(1);
    let begun = Instant::now();
    let mut kills = 0;
    for round in 0.. {
        let mut members: Vec<Member> = cluster.members();
        random.shuffle(&mut members);
        for victims in members.chunks(at_once) {
            let elapsed = begun.elapsed();
            if round >= ROUNDS && elapsed >= length && (has_seen_enough(load) || elapsed >= LONGEST.max(length)) {
                return Ok(kills);
            }
            // The load runs for a moment between two faults, so that each fault meets work under way.
            tokio::time::sleep(Duration::from_millis(100 + random.below(400) as u64)).await;
            let killed = Instant::now();
            cluster.kill_and_recover(victims).await?;
            eprintln!("chaos: {victims:?} back {:.1?} after kill -9", killed.elapsed());
            kills += victims.len();
        }
    }
    Ok(kills)
}
