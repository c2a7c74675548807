//! `shardctl bench scaling`: whether throughput grows with the number of shards.
//!
//! A small machine cannot give eight shards a machine each. [`limits`] therefore gives each shard, its PostgreSQL and its node
//! together, the same small part of the processors; what is left is for the router and the client. The load then uses
//! the accounts of 1, 2, 4 and 8 of the shards. [`many`] measures what a router spends where there are more shards than a
//! machine can run: their nodes are mock nodes, which [`mock`] serves.

pub mod limits;
mod many;
pub mod mock;
mod report;

use std::path::Path;

use serde::Serialize;

pub use many::ManyShards;
pub use report::{MANY_HEADER, POINT_HEADER, Report, throughput};

use limits::Limits;

use super::{
    ceiling::ACCOUNTS,
    own_cluster::OwnCluster,
    subject::{Sample, Spec, Subject},
    workload::{Locality, Workload},
};
use crate::{output, progress};

/// What is measured, and how long.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Numbers of shards, rising; the last is that of the cluster.
    pub shards: Vec<u16>,
    /// Shares of cross-shard transfers.
    pub cross: Vec<f64>,
    /// Of each point.
    pub seconds: u32,
    /// Cores of each shard; `None` leaves half of the machine to router and client.
    pub shard_cores: Option<f64>,
    /// Numbers of shards with mock nodes.
    pub mock_shards: Vec<u16>,
    pub seed: u64,
}

impl Plan {
    /// The kinds of request for this number of shards. For one shard they are all the same.
    fn requests(&self, shards: u16) -> impl Iterator<Item = Requests> {
        let spread = self.cross.iter().map(|cross| Requests::Spread { cross: *cross });
        std::iter::once(Requests::OneShard).chain(spread.filter(move |_| shards > 1))
    }

    /// A few points, for a plot beside others.
    pub fn short(seconds: u32, seed: u64) -> Self {
        let (shards, cross) = (vec![1, 2, 4], vec![0.0, 0.5]);
        Self { shards, cross, seconds, shard_cores: None, mock_shards: Vec::new(), seed }
    }
}

/// One number of shards and one kind of request.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub shards: u16,
    pub requests: Requests,
    pub sample: Sample,
    /// The share of time in which the loaded shards had used up their part of the processors; `None` without groups.
    pub throttled: Option<f64>,
}

/// What the transfers of a request have to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Requests {
    /// All transfers of a request are local transfers of one shard, drawn anew for each request. Shards then share nothing,
    /// and the requests are as large with many shards as with one.
    OneShard,
    /// Over all loaded shards, with this share of cross-shard transfers.
    Spread { cross: f64 },
}

/// For each shard, so that the load grows with the shards.
const CONNECTIONS_PER_SHARD: usize = 8;

/// Measures in clusters below `folder` that are gone afterwards.
pub async fn run(plan: Plan, folder: &Path) -> anyhow::Result<Report> {
    let steps =
        plan.shards.iter().map(|shards| plan.requests(*shards).count()).sum::<usize>() + plan.mock_shards.len();
    let mut many = Vec::new();
    let (limit, points, clean) = progress::counted("points", steps, async |bar| {
        let measured = limited(&plan, folder, bar).await?;
        for shards in &plan.mock_shards {
            bar.set_message("mock nodes");
            many.push(many::measure(*shards, plan.seconds, plan.seed, folder).await?);
            bar.inc(1);
        }
        anyhow::Ok(measured)
    })
    .await?;
    Ok(Report::new(plan, limit, points, many, clean))
}

/// The points with real shards, how the shards were limited, and whether their ledgers were clean.
pub async fn limited(
    plan: &Plan,
    folder: &Path,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<(String, Vec<Point>, bool)> {
    let most = plan.shards.last().copied().unwrap_or(1);
    let cluster = OwnCluster::start(folder.join("scaling"), most, 1)?;
    let subject = Subject::of(cluster, ACCOUNTS).await?;
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
            points.push(Point { shards, requests, sample, throttled });
            bar.inc(1);
        }
    }
    let limit = limits.to_string();
    // The check after the measurement need not be slow.
    drop(limits);
    let clean = subject.cluster.is_clean().await?;
    Ok((limit, points, clean))
}

fn spec(plan: &Plan, shards: u16, requests: Requests) -> Spec {
    let (locality, shards_per_request, seed) = match requests {
        Requests::OneShard => (Locality::Local, Some(1), 0),
        Requests::Spread { cross: 0.0 } => (Locality::Local, None, 1),
        Requests::Spread { cross } => (Locality::Share(cross), None, 1 + (cross * 100.0) as u64),
    };
    Spec {
        workload: Workload::Uniform,
        locality,
        connections: CONNECTIONS_PER_SHARD * usize::from(shards),
        first_shards: Some(usize::from(shards)),
        shards_per_request,
        seconds: plan.seconds,
        seed: plan.seed.wrapping_add(u64::from(shards)).wrapping_add(seed * 1_000),
        ..Spec::BATCHES
    }
}
