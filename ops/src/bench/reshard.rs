//! `shardctl bench reshard`: a cluster under load grows and shrinks, and its clients must not notice.

mod clients;
mod probes;
mod report;

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use report::Report;

use super::{
    own_cluster::OwnCluster,
    subject::{Sample, Spec, Subject},
    workload::{Locality, Workload},
};
use crate::{
    http_client::HttpClient,
    output,
    resharding::{nodes::Nodes, view::MoveView},
};
use clients::Clients;
use probes::Probes;

/// The share of the peak that the load keeps.
const SHARE: f64 = 0.5;
/// Transfers in one batch.
const BATCH: usize = 50;
/// The share of the transfers that is sent in batches.
const BATCHED: f64 = 0.2;
/// Before the first move, and after the last one.
const QUIET: Duration = Duration::from_secs(10);
/// Longer than any run.
const LONGEST_S: u32 = 6 * 3600;
const WINDOW: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How far the cluster grows, and under which load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    pub shards: u16,
    pub added: u16,
    pub accounts: usize,
    pub peak_seconds: u32,
    pub seed: u64,
}

/// Something that an operator ordered.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: String,
    /// Seconds since the load began.
    pub from_s: f64,
    pub to_s: f64,
}

/// A cut-over, as the target and as clients saw it.
#[derive(Debug, Clone, Serialize)]
pub struct CutOver {
    pub from: String,
    pub to: String,
    pub slots: u32,
    pub bookings: u64,
    pub accounts: u64,
    pub bytes: u64,
    /// Seconds since the load began.
    pub at_s: f64,
    /// From the release until the take, as the target measured it.
    pub pause_ms: f64,
    pub source_locked_ms: f64,
    /// The longest that a client waited for an answer about one of the slots while they were handed over. `None` if no client of the
    /// probes asked in this time.
    pub seen_by_clients_ms: Option<f64>,
}

/// Measures in a cluster below `folder` that is gone afterwards.
pub async fn run(plan: Plan, folder: &Path) -> anyhow::Result<Report> {
    let subject = Subject::start(folder, "reshard", plan.shards, 2, plan.accounts).await?;
    let base =
        Spec { workload: Workload::Mix, locality: Locality::Any, routers: 2, seed: plan.seed, ..Spec::SINGLES };
    let peak = subject.measure(&Spec { seconds: plan.peak_seconds, ..base.clone() }).await?;
    let peak_per_s = peak.ours.as_ref().map_or(0.0, |ours| ours.requests_per_s);
    ensure!(peak_per_s > 10.0, "the peak is {peak_per_s} requests a second");
    output::note(&format!("peak {peak_per_s:.0} transfers/s; keeping {:.0} % of it", SHARE * 100.0));

    let urls: Vec<String> = subject.cluster.description.routers.iter().map(|router| router.url()).collect();
    let probes = Probes::open(&urls).await?;
    let clients = Clients::open(&urls, probes.tags()).await?;
    let before = sum(&urls[0]).await?;

    let stop = CancellationToken::new();
    // The probes are a part of the load.
    let rate = (peak_per_s * SHARE - probes::RATE).max(100.0);
    let singles = Spec { window: Some(WINDOW), seconds: LONGEST_S, ..base.clone().at_rate(rate * (1.0 - BATCHED)) };
    let batches = Spec {
        batch: BATCH,
        connections: 8,
        seed: plan.seed.wrapping_add(1),
        ..Spec { rate: Some(rate * BATCHED / BATCH as f64), window: Some(WINDOW), seconds: LONGEST_S, ..base }
    };
    let begun_us = telemetry::clock::now_us() + i64::try_from(super::WARM_UP.as_micros()).unwrap_or(0);
    let load = async {
        let both = tokio::try_join!(
            subject.measure_until(&singles, stop.clone()),
            subject.measure_until(&batches, stop.clone())
        );
        both
    };
    let operator = async {
        let done = operate(&subject.cluster, plan, begun_us).await;
        stop.cancel();
        done
    };
    let (mut counts, (singles, batches), phases) = {
        let (probing, clients) = (probes.run(&stop), clients.run(&stop));
        let (load, operated, (), counts) = tokio::join!(load, operator, probing, clients);
        // What the operator was refused is the cause of what else may have failed.
        let phases = operated?;
        (counts, load?, phases)
    };
    counts.failures.extend(probes.failures());
    let nodes = nodes(&subject.cluster)?;
    let waits = waits_in_routers(&subject.cluster).await?;
    let cut_overs = cut_overs(&subject.cluster, &nodes, &probes, begun_us).await?;
    let verified = subject.cluster.is_clean().await?;
    let after = sum(&urls[0]).await?;
    let sum_unchanged = before == after;
    let samples: [Sample; 2] = [singles, batches];
    Ok(Report::new(plan, peak_per_s, &samples, phases, cut_overs, waits, counts, verified && sum_unchanged))
}

/// Adds shards, balances, and drains the added shards.
async fn operate(cluster: &OwnCluster, plan: Plan, begun_us: i64) -> anyhow::Result<Vec<Phase>> {
    let now_s = || (telemetry::clock::now_us() - begun_us) as f64 / 1e6;
    let mut phases = Vec::new();
    tokio::time::sleep(QUIET).await;
    let added: Vec<String> = (plan.shards..plan.shards + plan.added).map(|number| format!("s{number}")).collect();
    let file = cluster.layout().root().join("plan.toml").display().to_string();
    let drained = added.join(",");
    let mut orders: Vec<(String, Vec<&str>)> = Vec::new();
    for shard in &added {
        orders.push((format!("add {shard}"), vec!["shard", "add", shard]));
    }
    orders.push(("plan".to_owned(), vec!["move", "plan", "--balance", "-o", &file]));
    // Both ends of all moves share the two cores.
    orders.push(("balance".to_owned(), vec!["move", "apply", &file, "--finish", "--parallel", "1"]));
    orders.push(("plan".to_owned(), vec!["move", "plan", "--drain", &drained, "-o", &file]));
    orders.push(("drain".to_owned(), vec!["move", "apply", &file, "--finish", "--parallel", "1"]));
    for (name, arguments) in orders {
        let from_s = now_s();
        output::note(&format!("{from_s:.0} s: shardctl {}", arguments.join(" ")));
        cluster.shardctl(&arguments).await?;
        phases.push(Phase { name, from_s, to_s: now_s() });
    }
    tokio::time::sleep(QUIET).await;
    Ok(phases)
}

fn nodes(cluster: &OwnCluster) -> anyhow::Result<Nodes> {
    let text = std::fs::read_to_string(cluster.layout().shard_map()).context("the cluster's map")?;
    Ok(Nodes { map: shard_map::ShardMap::parse(&text)? })
}

/// What the moves did, and what the probes saw of them. Removes the drained shards afterwards: a removed shard lists no moves.
async fn cut_overs(
    cluster: &OwnCluster,
    nodes: &Nodes,
    probes: &Probes,
    begun_us: i64,
) -> anyhow::Result<Vec<CutOver>> {
    let (moves, failures) = nodes.list().await;
    ensure!(failures.is_empty(), "{failures:?}");
    let of_move = |(target, status): &(String, wire::MoveStatus)| {
        let view = MoveView::of(target, status);
        let pause_ms = view.pause_ms.unwrap_or(0.0);
        let released_us = view.released_at_us;
        let seen = probes.longest_wait(&view, (pause_ms * 1e3) as i64);
        CutOver {
            from: view.from.clone(),
            to: view.to.clone(),
            slots: view.slot_count,
            bookings: view.bookings,
            accounts: view.accounts,
            bytes: view.bytes,
            at_s: (released_us - begun_us) as f64 / 1e6,
            pause_ms,
            source_locked_ms: view.source_locked_ms.unwrap_or(0.0),
            seen_by_clients_ms: seen.map(|us| us as f64 / 1e3),
        }
    };
    let cut_overs = moves.iter().filter(|(_, status)| status.phase == "finished").map(of_move).collect();
    for shard in nodes.map.shards.iter().filter(|shard| shard.slots.is_empty()) {
        cluster.shardctl(&["shard", "remove", &shard.id]).await?;
    }
    Ok(cut_overs)
}

/// How many operations waited in the routers for how many microseconds, in ascending order.
async fn waits_in_routers(cluster: &OwnCluster) -> anyhow::Result<Vec<(u64, u64)>> {
    let client = HttpClient::new(ANSWER_TIMEOUT);
    let mut waits: Vec<(u64, u64)> = Vec::new();
    for router in &cluster.description.routers {
        let answer: Value = client.get(&format!("{}/admin/handovers", router.admin_url())).await?;
        for handover in answer["data"].as_array().into_iter().flatten() {
            waits.extend(serde_json::from_value::<Vec<(u64, u64)>>(handover["waits"].clone())?);
        }
    }
    waits.sort_unstable();
    Ok(waits)
}

/// What all accounts of the load hold together.
async fn sum(url: &str) -> anyhow::Result<Value> {
    let sums: Value = HttpClient::new(ANSWER_TIMEOUT).get(&format!("{url}/v1/balances?prefix=bench:")).await?;
    ensure!(sums["partial"] == false, "a shard did not tell its sums");
    Ok(sums["data"].clone())
}
