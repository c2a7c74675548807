//! `shardctl bench reshard` grows and shrinks a cluster under load, and checks that its clients notice nothing.

mod clients;
mod report;

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use clients::{Clients, Probes};
use report::ReshardReport;
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    Experiment,
    load::WARM_UP,
    own_cluster::OwnCluster,
    subject::{LoadSpec, MeasuredCluster, Sample},
    workload::{Locality, Workload},
};
use crate::{
    http_client::HttpClient,
    output,
    resharding::{Nodes, view::MoveView},
};

/// Measures the peak, keeps half of it in the open loop, adds shards and balances, then drains and removes them. Further clients hold,
/// capture, reverse, page through statements and lists, and send old transfers again. Each client checks its answers. Exit code 1: a figure
/// misses its bar. 3: a client got a wrong answer, or the ledger does not balance.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct ReshardPlan {
    /// Shards at the beginning and at the end
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    shards: u16,
    /// Shards that are added and removed again
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    added: u16,
    /// Accounts
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=50_000_000))]
    accounts: u32,
    /// Seconds of the measurement of the peak
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    peak_seconds: u32,
    #[arg(skip)]
    seed: u64,
}

/// The share of the peak that the load keeps.
const SHARE: f64 = 0.5;
/// Transfers in one batch.
const BATCH: usize = 50;
/// The share of the transfers that is sent in batches.
const BATCHED: f64 = 0.2;
/// The time of load before the first move and after the last one.
const QUIET: Duration = Duration::from_secs(10);
/// Longer than any run, in seconds.
const LONGEST_S: u32 = 6 * 3600;
const WINDOW: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An order of the operator.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: String,
    /// Seconds since the load began.
    pub from_s: f64,
    pub to_s: f64,
}

/// A cut-over as the target and as the clients saw it.
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
    /// The time from the release until the take, as the target measured it.
    pub pause_ms: f64,
    pub source_locked_ms: f64,
    /// The longest time that a client waited for an answer about one of the slots while they were handed over. `None` if no probe sent a
    /// request in this time.
    pub seen_by_clients_ms: Option<f64>,
}

impl Experiment for ReshardPlan {
    type Report = ReshardReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        self.seed = seed;
        output::note(&format!("seed {seed}: {} to {} shards and back", self.shards, self.shards + self.added));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<ReshardReport> {
        let subject = MeasuredCluster::start(folder, "reshard", self.shards, 2, self.accounts as usize).await?;
        let base = LoadSpec {
            workload: Workload::Mix,
            locality: Locality::Any,
            routers: 2,
            seed: self.seed,
            ..LoadSpec::SINGLES
        };
        let peak = subject.measure(&LoadSpec { seconds: self.peak_seconds, ..base.clone() }).await?;
        let peak_per_s = peak.ours.as_ref().map_or(0.0, |ours| ours.requests_per_s);
        ensure!(peak_per_s > 10.0, "the peak is {peak_per_s} requests a second");
        output::note(&format!("peak {peak_per_s:.0} transfers/s; keeping {:.0} % of it", SHARE * 100.0));

        let urls: Vec<String> = subject.cluster.description.routers.iter().map(|router| router.url()).collect();
        let probes = Probes::open(&urls).await?;
        let clients = Clients::open(&urls, probes.tags()).await?;
        let before = sum(&urls[0]).await?;

        let stop = CancellationToken::new();
        // The probes are a part of the load.
        let rate = (peak_per_s * SHARE - clients::RATE).max(100.0);
        let singles =
            LoadSpec { window: Some(WINDOW), seconds: LONGEST_S, ..base.clone().at_rate(rate * (1.0 - BATCHED)) };
        let batches = LoadSpec {
            batch: BATCH,
            connections: 8,
            seed: self.seed.wrapping_add(1),
            ..LoadSpec { rate: Some(rate * BATCHED / BATCH as f64), window: Some(WINDOW), seconds: LONGEST_S, ..base }
        };
        let begun_us = telemetry::clock::now_us() + i64::try_from(WARM_UP.as_micros()).unwrap_or(0);
        let load = async {
            tokio::try_join!(
                subject.measure_until(&singles, stop.clone()),
                subject.measure_until(&batches, stop.clone())
            )
        };
        let operator = async {
            let done = operate(&subject.cluster, &self, begun_us).await;
            stop.cancel();
            done
        };
        let (mut counts, (singles, batches), phases) = {
            let (probing, clients) = (probes.run(&stop), clients.run(&stop));
            let (load, operated, (), counts) = tokio::join!(load, operator, probing, clients);
            // If the operator's command failed, its failure is the cause of all others.
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
        Ok(ReshardReport::new(
            self,
            peak_per_s,
            &samples,
            phases,
            cut_overs,
            waits,
            counts,
            verified && sum_unchanged,
        ))
    }
}

/// Adds shards, balances, and drains the added shards.
async fn operate(cluster: &OwnCluster, plan: &ReshardPlan, begun_us: i64) -> anyhow::Result<Vec<Phase>> {
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
    // One move at a time, because both ends of all moves share two cores.
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

/// Returns what the moves did and what the probes saw of them. Removes the drained shards afterwards: a removed shard lists no moves.
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

/// The sum of all accounts of the load.
async fn sum(url: &str) -> anyhow::Result<Value> {
    let sums: Value = HttpClient::new(ANSWER_TIMEOUT).get(&format!("{url}/v1/balances?prefix=bench:")).await?;
    ensure!(sums["partial"] == false, "a shard did not report its sums");
    Ok(sums["data"].clone())
}
