//! `shardctl bench overload` measures a cluster beyond its capacity: open loops at 1, 2, 5 and 10 × the peak, a frozen shard, a spike, and
//! clients that retry at twice the peak while a shard is frozen.
//!
//! The shards get a small part of the machine, so that their capacity is small. Ten times that capacity then leaves processor time for the
//! load generator and the router, as if they had machines of their own.

mod report;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, ensure};
use http::Method;
use report::OverloadReport;
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    Experiment,
    driver::Load,
    limits::Limits,
    load::{Measurement, WARM_UP, measure},
    request::Ids,
    subject::MeasuredCluster,
    tally::Window,
    workload::{Locality, Picker, Workload},
};
use crate::{cluster::member::ProcessRole, http_client::HttpClient, output};

/// Measures the peak, then 1, 2, 5 and 10 × the peak in the open loop, a frozen shard, a spike, and clients that retry. Exit code 1: a figure
/// misses its bar. 3: the ledger does not balance
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct OverloadPlan {
    /// Seconds of each load
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(3..=600))]
    seconds: u32,
    /// Cores of each shard, for PostgreSQL and node together
    #[arg(long, value_name = "CORES", default_value_t = 0.1)]
    cores: f64,
    #[arg(skip)]
    seed: u64,
}

const SHARDS: u16 = 2;
const ACCOUNTS: usize = 2_000;
/// Requests that the router lets in at once; half of them may wait for one shard. This bounds how long an accepted request waits.
pub const IN_FLIGHT: usize = 512;
/// More connections than the router lets in, so that there is always a request to refuse.
pub const CONNECTIONS: usize = 1_536;
/// The connections of the peak measurement, a closed loop that keeps both shards busy and is never refused.
const PEAK_CONNECTIONS: usize = 448;
pub const FACTORS: [f64; 4] = [1.0, 2.0, 5.0, 10.0];
/// The load of the working shard beside a frozen shard, as a share of its peak.
const BESIDE_FROZEN: f64 = 0.9;
const WINDOW: Duration = Duration::from_millis(500);
/// The spike: a load of half of the peak that rises to ten times the peak for three seconds.
pub const SPIKE: Spike = Spike { base: 0.5, factor: 10.0, from_s: 4.0, to_s: 7.0, end_s: 18 };
/// Clients that retry offer twice the peak until the frozen shard is thawed, and this share of the peak after that.
pub const AFTER_THAW: f64 = 0.8;
pub const FREEZE_S: f64 = 2.0;
pub const THAW_S: f64 = 12.0;
const RETRY_END_S: u32 = 26;
/// How many times a request without a result is sent again.
pub const RETRIES: u32 = 3;
const LOOK_AT_MEMORY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause after each load, in which the queues empty and connections are released.
const REST: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub struct Spike {
    pub base: f64,
    pub factor: f64,
    pub from_s: f64,
    pub to_s: f64,
    pub end_s: u32,
}

/// One open loop.
#[derive(Debug, Serialize)]
pub struct OverloadStep {
    pub factor: f64,
    pub measured: Measurement,
    /// Resident memory in bytes by process, sampled every half second.
    pub memory: Vec<BTreeMap<String, f64>>,
}

/// The load of one shard while the other one works, and while it is frozen.
#[derive(Debug, Serialize)]
pub struct Frozen {
    pub beside_working: Measurement,
    pub beside_frozen: Measurement,
}

/// One load on the measured cluster.
#[derive(Debug, Clone, Copy)]
struct ClusterLoad {
    /// The shard whose accounts are used. `None`: all shards.
    shard: Option<u16>,
    rate: Option<f64>,
    connections: usize,
    warm_up: Duration,
    seconds: u32,
    window: Option<Duration>,
    retries: u32,
    seed: u64,
}

impl Experiment for OverloadPlan {
    type Report = OverloadReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        ensure!((0.01..=64.0).contains(&self.cores), "--cores must be between 0.01 and 64");
        self.seed = seed;
        output::note(&format!("seed {seed}"));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<OverloadReport> {
        let subject = MeasuredCluster::start(folder, "overload", SHARDS, 1, ACCOUNTS).await?;
        bound_requests(&subject).await?;
        let limits = Limits::set(&subject.cluster, self.cores).await?;
        output::counted("parts", FACTORS.len() + 4, async |bar| {
            let usual = ClusterLoad {
                shard: None,
                rate: None,
                connections: CONNECTIONS,
                warm_up: WARM_UP,
                seconds: self.seconds,
                window: None,
                retries: 0,
                seed: self.seed,
            };
            let peak = drive(&subject, ClusterLoad { connections: PEAK_CONNECTIONS, ..usual }).await?;
            let peak_per_s = peak.transfers_per_s;
            ensure!(peak_per_s > 10.0, "the peak is {peak_per_s} transfers a second");
            output::note(&format!("the peak is {peak_per_s:.0} transfers/s"));
            bar.inc(1);
            let mut steps = Vec::new();
            for (factor, number) in FACTORS.into_iter().zip(1..) {
                sleep(REST).await;
                let rate = Some(factor * peak_per_s);
                let load = ClusterLoad { rate, seed: self.seed.wrapping_add(number), ..usual };
                let step = step(&subject, factor, load).await?;
                let part = step.measured.transfers_per_s / peak_per_s;
                output::note(&format!("{factor} × the peak offered: goodput is {part:.2} × the peak"));
                steps.push(step);
                bar.inc(1);
            }
            sleep(REST).await;
            let frozen = beside_a_frozen_shard(&subject, usual, peak_per_s / f64::from(SHARDS)).await?;
            bar.inc(1);
            sleep(REST).await;
            let spike = spike(&subject, usual, peak_per_s).await?;
            bar.inc(1);
            sleep(REST).await;
            let retrying = retrying_clients(&subject, usual, peak_per_s).await?;
            bar.inc(1);
            let limit = limits.to_string();
            drop(limits);
            let verified = subject.cluster.is_clean().await?;
            Ok(OverloadReport::new(self, limit, peak, steps, frozen, spike, retrying, verified))
        })
        .await
    }
}

/// Lowers the number of requests that the router lets in at once, and starts the router again.
async fn bound_requests(subject: &MeasuredCluster) -> anyhow::Result<()> {
    let place = subject.cluster.description.routers.first().context("a cluster without routers")?;
    let path = subject.cluster.layout().config(&place.name);
    let text = std::fs::read_to_string(&path)?;
    let bound = format!("[http]\nmax_requests_in_flight = {IN_FLIGHT}\n");
    ensure!(text.contains("[http]\n"), "{} has no section [http]", path.display());
    std::fs::write(&path, text.replacen("[http]\n", &bound, 1))?;
    let before = subject.cluster.processes(ProcessRole::Router)?;
    for router in &before {
        router.signal(Signal::TERM)?;
        ensure!(router.ended_within(PATIENCE).await, "the router did not end");
    }
    let (client, begun) = (HttpClient::new(PATIENCE), Instant::now());
    let url = format!("{}/readyz", place.admin_url());
    loop {
        let is_new = subject.cluster.processes(ProcessRole::Router)?.iter().any(|router| !before.contains(router));
        let answer = client.send(Method::GET, &url, bytes::Bytes::new()).await;
        if is_new && answer.is_ok_and(|(status, _)| status.is_success()) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the router is not back");
        sleep(LOOK_AT_MEMORY).await;
    }
}

async fn drive(subject: &MeasuredCluster, drive: ClusterLoad) -> anyhow::Result<Measurement> {
    let load = Load {
        routers: subject.routers.clone(),
        connections: drive.connections,
        threads: 1,
        batch: 1,
        rate: drive.rate,
        ids: Ids::TimeOrdered,
        replays: 0.0,
        retries: drive.retries,
        leaves_out_late: true,
        warm_up: drive.warm_up,
        duration: Duration::from_secs(u64::from(drive.seconds)),
        window: drive.window,
        seed: drive.seed,
        stop: Default::default(),
    };
    // The picker uses the first shards of a map, so the wanted shard is put first.
    let home = |home: u16| drive.shard.map_or(home, |shard| (home + SHARDS - shard) % SHARDS);
    let homes = subject.homes.iter().copied().map(home).collect();
    let mut picker = Picker::new(Workload::Uniform, Locality::Local, homes)?;
    if drive.shard.is_some() {
        picker = picker.of_first_shards(1);
    }
    measure(&load, picker).await
}

async fn step(subject: &MeasuredCluster, factor: f64, load: ClusterLoad) -> anyhow::Result<OverloadStep> {
    let watch = async {
        let mut memory = Vec::new();
        loop {
            sleep(LOOK_AT_MEMORY).await;
            memory.push(subject.cluster.memory());
            if memory.len() as f64 * LOOK_AT_MEMORY.as_secs_f64() >= f64::from(load.seconds) {
                return memory;
            }
        }
    };
    let (measured, memory) = tokio::join!(drive(subject, load), watch);
    let memory = memory.into_iter().map(|memory| Ok(memory?.0)).collect::<anyhow::Result<_>>()?;
    Ok(OverloadStep { factor, measured: measured?, memory })
}

async fn beside_a_frozen_shard(
    subject: &MeasuredCluster,
    usual: ClusterLoad,
    peak_of_shard: f64,
) -> anyhow::Result<Frozen> {
    let rate = Some(BESIDE_FROZEN * peak_of_shard);
    let of = |shard: u16, seed: u64| ClusterLoad {
        shard: Some(shard),
        rate,
        connections: CONNECTIONS / 2,
        seed: usual.seed.wrapping_add(seed),
        ..usual
    };
    let (beside_working, other) = tokio::join!(drive(subject, of(0, 20)), drive(subject, of(1, 21)));
    other?;
    sleep(REST).await;
    let node = *subject.cluster.processes(ProcessRole::Node)?.get(1).context("the second shard has no node")?;
    node.signal(Signal::STOP)?;
    let both = async { tokio::join!(drive(subject, of(0, 22)), drive(subject, of(1, 23))) };
    let (beside_frozen, other) = both.await;
    node.signal(Signal::CONT)?;
    other?;
    works_again(subject, usual).await?;
    Ok(Frozen { beside_working: beside_working?, beside_frozen: beside_frozen? })
}

/// Waits until a small load on both shards is answered without a failure.
async fn works_again(subject: &MeasuredCluster, usual: ClusterLoad) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let few = ClusterLoad { rate: Some(50.0), connections: 16, seconds: 1, ..usual };
        if drive(subject, few).await?.others.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the thawed shard does not serve");
    }
}

/// Measures a load before, during and after a spike. Returns its windows.
async fn spike(subject: &MeasuredCluster, usual: ClusterLoad, peak_per_s: f64) -> anyhow::Result<Vec<Window>> {
    let base = ClusterLoad {
        rate: Some(SPIKE.base * peak_per_s),
        connections: CONNECTIONS / 2,
        seconds: SPIKE.end_s,
        window: Some(WINDOW),
        seed: usual.seed.wrapping_add(30),
        ..usual
    };
    let spike = async {
        sleep(WARM_UP + Duration::from_secs_f64(SPIKE.from_s)).await;
        let load = ClusterLoad {
            rate: Some(SPIKE.factor * peak_per_s),
            warm_up: Duration::ZERO,
            seconds: (SPIKE.to_s - SPIKE.from_s) as u32,
            seed: usual.seed.wrapping_add(31),
            ..usual
        };
        drive(subject, load).await
    };
    let (base, spike) = tokio::join!(drive(subject, base), spike);
    spike?;
    Ok(base?.windows)
}

/// Freezes a shard while clients that retry offer twice the peak. Returns the windows of the load that continues afterwards.
async fn retrying_clients(
    subject: &MeasuredCluster,
    usual: ClusterLoad,
    peak_per_s: f64,
) -> anyhow::Result<Vec<Window>> {
    let lasting = ClusterLoad {
        rate: Some(AFTER_THAW * peak_per_s),
        connections: CONNECTIONS / 2,
        seconds: RETRY_END_S,
        window: Some(WINDOW),
        retries: RETRIES,
        seed: usual.seed.wrapping_add(40),
        ..usual
    };
    let passing = ClusterLoad {
        rate: Some((2.0 - AFTER_THAW) * peak_per_s),
        seconds: THAW_S as u32,
        window: None,
        seed: usual.seed.wrapping_add(41),
        ..lasting
    };
    let node = *subject.cluster.processes(ProcessRole::Node)?.get(1).context("the second shard has no node")?;
    let fault = async {
        sleep(WARM_UP + Duration::from_secs_f64(FREEZE_S)).await;
        node.signal(Signal::STOP)?;
        sleep(Duration::from_secs_f64(THAW_S - FREEZE_S)).await;
        node.signal(Signal::CONT)
    };
    let (lasting, passing, fault) = tokio::join!(drive(subject, lasting), drive(subject, passing), fault);
    passing?;
    fault?;
    Ok(lasting?.windows)
}
