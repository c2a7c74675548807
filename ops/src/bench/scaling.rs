//! `shardctl bench scaling` measures whether throughput grows with the number of shards.
//!
//! One small machine cannot give each of eight shards a machine. [`Limits`] therefore gives each shard, with its PostgreSQL and its node, the
//! same small part of the processors. The router and the client use the rest. The load then uses the accounts of 1, 2, 4 and 8 of the shards.
//! [`many`] measures the processor time of a router with more shards than a machine can run. The nodes of these shards are mock nodes, which
//! [`mock`] serves.

mod many;
pub mod mock;
mod report;

use std::path::Path;

use report::ScalingReport;
use serde::Serialize;

use super::{
    Experiment,
    ceiling::ACCOUNTS,
    limits::Limits,
    own_cluster::OwnCluster,
    subject::{LoadSpec, MeasuredCluster, Sample},
    workload::{Locality, Workload},
};
use crate::output;

pub use report::throughput;

/// A control group (version 1 or 2) gives each shard, its PostgreSQL and its node together, the same small part of the processors. If this
/// user cannot make a control group, each commit is delayed by the same time instead, and the report says so. Exit code 1: a figure misses
/// its bar. 3: a ledger that was measured does not balance.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct ScalingPlan {
    /// Numbers of shards, in rising order
    #[arg(long, value_name = "N,N…", value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    shards: Vec<u16>,
    /// Shares of cross-shard transfers, from 0 to 1
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', default_values_t = [0.0, 0.1, 0.5, 1.0])]
    cross: Vec<f64>,
    /// Seconds of each point
    #[arg(long, value_name = "S", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Cores of each shard [default: half of the machine shared by the shards]
    #[arg(long, value_name = "CORES")]
    shard_cores: Option<f64>,
    /// Numbers of shards whose nodes are mock nodes
    #[arg(long, value_name = "N,N…", value_delimiter = ',', default_values_t = [4, 64, 1_024])]
    mock_shards: Vec<u16>,
    #[arg(skip)]
    seed: u64,
}

impl ScalingPlan {
    /// The kinds of request for this number of shards. With one shard, all kinds are the same.
    fn requests(&self, shards: u16) -> impl Iterator<Item = Requests> {
        let spread = self.cross.iter().map(|cross| Requests::Spread { cross: *cross });
        std::iter::once(Requests::OneShard).chain(spread.filter(move |_| shards > 1))
    }

    /// A plan of few points, for a plot among others.
    pub fn short(seconds: u32, seed: u64) -> Self {
        let (shards, cross) = (vec![1, 2, 4], vec![0.0, 0.5]);
        Self { shards, cross, seconds, shard_cores: None, mock_shards: Vec::new(), seed }
    }
}

/// One number of shards and one kind of request.
#[derive(Debug, Clone, Serialize)]
pub struct ScalingPoint {
    pub shards: u16,
    pub requests: Requests,
    pub sample: Sample,
    /// The share of time in which the loaded shards had used up their part of the processors; `None` without groups.
    pub throttled: Option<f64>,
}

/// How the transfers of a request are distributed over shards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Requests {
    /// All transfers of a request are local transfers of one shard, drawn for each request. Shards then share nothing, and the requests are
    /// as large with many shards as with one.
    OneShard,
    /// The transfers use all loaded shards, with this share of cross-shard transfers.
    Spread { cross: f64 },
}

/// Connections for each shard, so that the load grows with the number of shards.
const CONNECTIONS_PER_SHARD: usize = 8;

impl Experiment for ScalingPlan {
    type Report = ScalingReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        let rising = self.shards.is_sorted() && self.shards.iter().all(|shards| (1..=64).contains(shards));
        anyhow::ensure!(rising && !self.shards.is_empty(), "--shards must rise from at least 1 to at most 64");
        self.seed = seed;
        output::note(&format!("seed {seed}"));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<ScalingReport> {
        let steps =
            self.shards.iter().map(|shards| self.requests(*shards).count()).sum::<usize>() + self.mock_shards.len();
        let mut many = Vec::new();
        let (limit, points, clean) = output::counted("points", steps, async |bar| {
            let measured = limited(&self, folder, bar).await?;
            for shards in &self.mock_shards {
                bar.set_message("mock nodes");
                many.push(many::measure(*shards, self.seconds, self.seed, folder).await?);
                bar.inc(1);
            }
            anyhow::Ok(measured)
        })
        .await?;
        Ok(ScalingReport::new(self, limit, points, many, clean))
    }
}

/// Measures the points with real shards. Returns how the shards were limited, the points, and whether the ledgers were clean.
pub async fn limited(
    plan: &ScalingPlan,
    folder: &Path,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<(String, Vec<ScalingPoint>, bool)> {
    let most = plan.shards.last().copied().unwrap_or(1);
    let cluster = OwnCluster::start(folder.join("scaling"), most, 1)?;
    let subject = MeasuredCluster::of(cluster, ACCOUNTS).await?;
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    let shard_cores = plan.shard_cores.unwrap_or(cores / 2.0 / f64::from(most));
    let limits = Limits::set(&subject.cluster, shard_cores).await?;
    output::note(&limits.to_string());
    let mut points = Vec::new();
    for &shards in &plan.shards {
        for requests in plan.requests(shards) {
            bar.set_message(format!("{shards} shards"));
            let spec = spec(plan, shards, requests);
            let before = limits.periods(shards)?;
            let sample = subject.measure(&spec).await?;
            let throttled = match (before, limits.periods(shards)?) {
                (Some(before), Some(after)) => Some((after[1] - before[1]) / (after[0] - before[0]).max(1.0)),
                _ => None,
            };
            points.push(ScalingPoint { shards, requests, sample, throttled });
            bar.inc(1);
        }
    }
    let limit = limits.to_string();
    // Lift the limits, because the check after the measurement needs none.
    drop(limits);
    let clean = subject.cluster.is_clean().await?;
    Ok((limit, points, clean))
}

fn spec(plan: &ScalingPlan, shards: u16, requests: Requests) -> LoadSpec {
    let (locality, shards_per_request, seed) = match requests {
        Requests::OneShard => (Locality::Local, Some(1), 0),
        Requests::Spread { cross: 0.0 } => (Locality::Local, None, 1),
        Requests::Spread { cross } => (Locality::Share(cross), None, 1 + (cross * 100.0) as u64),
    };
    LoadSpec {
        workload: Workload::Uniform,
        locality,
        connections: CONNECTIONS_PER_SHARD * usize::from(shards),
        first_shards: Some(usize::from(shards)),
        shards_per_request,
        seconds: plan.seconds,
        seed: plan.seed.wrapping_add(u64::from(shards)).wrapping_add(seed * 1_000),
        ..LoadSpec::BATCHES
    }
}
