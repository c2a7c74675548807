//! Rounds of random faults, each from a seed of its own: `make chaos SEED=… FAULTS=… SECONDS=… ROUNDS=…`.
//!
//! A round draws some of the faults and causes them one after another under a mixed load, while slots may move. It then lets the cluster
//! heal and come to rest, audits every answer that a client got, and prints one line. The seed in the line repeats the choice of faults,
//! targets and times. The interleaving with the load differs from run to run. `target/chaos/report.html` has a timeline of each round.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use report_page::timeline::Event;
use testkit::{
    audit::audit,
    cluster::Cluster,
    seed::{Random, Seed},
    workload::Load,
};

use super::{
    MIX,
    faults::{Fault, Moving, bring_about},
    from_environment, report,
    report::Report,
};

const SHARDS: u16 = 3;
/// The number of rounds that `make test` runs.
const ROUNDS: usize = 3;
const SECONDS: u64 = 15;
/// The smallest and the largest number of faults that a round draws.
const DRAWN: (usize, usize) = (3, 6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_random_faults_lose_nothing_and_heal() -> anyhow::Result<()> {
    let seed = Seed::announce("chaos rounds");
    let faults = chosen()?;
    let rounds = from_environment("ROUNDS").unwrap_or(ROUNDS);
    let seconds = from_environment("SECONDS").unwrap_or(SECONDS);
    // The first round has the given seed. The seed of any printed line therefore repeats its round as the first round of a new run.
    let mut seeds = seed.random();
    let mut page = Report::begin();
    for number in 1..=rounds {
        let of_round = if number == 1 { Seed::of(seed.value()) } else { Seed::of(seeds.bits()) };
        let line = round(&of_round, &faults, Duration::from_secs(seconds), &mut page).await;
        let line = line.with_context(|| format!("round {number}, SEED={}", of_round.value()))?;
        eprintln!("round {number} SEED={} {line}", of_round.value());
    }
    Ok(())
}

/// All faults, or those of the variable `FAULTS`, separated by commas.
fn chosen() -> anyhow::Result<Vec<Fault>> {
    let Some(names) = from_environment::<String>("FAULTS").filter(|names| !names.is_empty()) else {
        return Ok(Fault::ALL.to_vec());
    };
    let known = || Fault::ALL.map(Fault::name).join(", ");
    names
        .split(',')
        .map(|name| {
            Fault::named(name.trim())
                .with_context(|| format!("there is no fault {name:?}, but there are {}", known()))
        })
        .collect()
}

async fn round(seed: &Seed, faults: &[Fault], length: Duration, page: &mut Report) -> anyhow::Result<String> {
    let mut random = seed.random();
    let drawn = draw(faults, &mut random);
    let mut cluster = Cluster::start(SHARDS, 2).await?;
    let placement = cluster.placement()?;
    let load = Load::start(&cluster, 8, &mut random, seed, MIX).await?;
    let (begun, mut moving) = (Instant::now(), Moving::default());
    let mut proofs: BTreeMap<Fault, Vec<String>> = BTreeMap::new();
    let mut events = Vec::new();
    // Each drawn fault is caused at least once.
    let mut turn = 0;
    while turn < drawn.len() || begun.elapsed() < length {
        let fault = drawn.get(turn).copied().unwrap_or_else(|| *random.choose(&drawn));
        turn += 1;
        let from_s = begun.elapsed().as_secs_f64();
        let proof = bring_about(fault, &mut cluster, &mut moving, &mut random).await;
        let proof = proof.with_context(|| format!("fault {}, after {proofs:?}", fault.name()))?;
        let to_s = begun.elapsed().as_secs_f64();
        events.push(Event { kind: fault.name().to_owned(), from_s, to_s, detail: proof.clone() });
        proofs.entry(fault).or_default().push(proof);
        // The load runs for a moment between two faults.
        tokio::time::sleep(Duration::from_millis(100 + random.below(400) as u64)).await;
    }
    let from_s = begun.elapsed().as_secs_f64();
    moving.end().await?;
    cluster.wait_until_ready("everything has healed", &[]).await?;
    let went_on = begun.elapsed();
    let detail = "no further faults; moves end, processes are back".to_owned();
    events.push(Event { kind: "healing".to_owned(), from_s, to_s: went_on.as_secs_f64(), detail });
    let history = load.finish().await?;
    let timeline = report::timeline(&history.records, &placement, events, went_on);
    let attempts: usize = history.records.iter().map(|record| record.attempts.len()).sum();
    let audited = audit(&cluster, &history).await.with_context(|| format!("after {proofs:?}"));
    let (is_clean, line) = match &audited {
        Ok(summary) => (true, format!("{summary:?}")),
        Err(error) => (false, format!("{error:#}")),
    };
    page.add(report::RoundReport { seed: seed.value(), timeline, line, is_clean })?;
    let summary = audited?;
    ensure!(summary.posted > 0, "the load did nothing: {summary:?}");
    cluster.finish().await?;
    let faults: Vec<String> =
        proofs.iter().map(|(fault, proofs)| format!("{} [{}]", fault.name(), proofs.join("; "))).collect();
    Ok(format!(
        "{}: {} orders in {attempts} attempts, {} posted ({} between shards), {} rejected, {} absent, {} once unknown, {} moves; clean",
        faults.join(", "),
        history.records.len(),
        summary.posted,
        summary.cross_shard,
        summary.rejected,
        summary.absent,
        summary.was_unknown,
        moving.finished,
    ))
}

fn draw(faults: &[Fault], random: &mut Random) -> Vec<Fault> {
    let mut drawn = faults.to_vec();
    random.shuffle(&mut drawn);
    drawn.truncate(DRAWN.0 + random.below(DRAWN.1 - DRAWN.0 + 1));
    drawn
}
