//! `shardctl bench soak`: half of the peak for minutes or hours, one master account with 1,000 sub-accounts, duplicates among
//! the transfers. Throughput and latency by window, memory of each process, disk, and the sum of all accounts over time.

mod report;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval};

pub use report::Report;

use super::{
    Window,
    subject::{Spec, Subject},
    workload::Workload,
};
use crate::{http_client::HttpClient, progress};

/// The master account and its sub-accounts.
const ACCOUNTS: usize = 1_001;
const SUMS: &str = "/v1/balances?prefix=bench:";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long, how much, and from which seed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    pub minutes: f64,
    pub window_s: u32,
    /// Seconds of the measurement of the peak.
    pub peak_seconds: u32,
    /// The share of transfers that are sent a second time.
    pub replays: f64,
    pub connections: usize,
    /// Transfers a request.
    pub batch: usize,
    pub seed: u64,
}

/// What was seen at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Moment {
    /// Since the load began.
    pub at_s: f64,
    /// Bytes, by process.
    pub memory: BTreeMap<String, f64>,
    /// Tables and indexes of the ledger.
    pub disk_bytes: f64,
    /// Rows that are not folded yet, if the node tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfolded_rows: Option<f64>,
    /// Of all accounts; it must not change.
    pub sum: String,
}

#[derive(Deserialize)]
struct Sums {
    data: Vec<AssetSum>,
    partial: bool,
}

#[derive(Deserialize)]
struct AssetSum {
    posted: String,
}

/// Measures in a cluster of one shard below `folder` that is gone afterwards.
pub async fn run(plan: Plan, folder: &Path) -> anyhow::Result<Report> {
    let subject = Subject::start(folder, "soak", 1, 1, ACCOUNTS).await?;
    let base = Spec {
        workload: Workload::Hot,
        batch: plan.batch,
        connections: plan.connections,
        replays: plan.replays,
        ..Spec::BATCHES
    };
    let peak = subject.measure(&Spec { seconds: plan.peak_seconds, seed: plan.seed, ..base.clone() }).await?;
    let requests_per_s = peak.ours.as_ref().map_or(0.0, |ours| ours.requests_per_s);
    ensure!(requests_per_s > 1.0, "the peak is {requests_per_s} requests a second");
    let spec = Spec {
        seconds: (plan.minutes * 60.0).round().max(1.0) as u32,
        window: Some(Duration::from_secs(u64::from(plan.window_s))),
        seed: plan.seed.wrapping_add(1),
        ..base.at_rate(requests_per_s / 2.0)
    };
    let (sample, moments) = progress::counted("seconds", spec.seconds as usize, async |bar| {
        let watch = watch(&subject, &spec, plan.window_s, bar);
        tokio::try_join!(subject.measure(&spec), watch)
    })
    .await?;
    let windows: Vec<Window> = sample.ours.as_ref().map(|ours| ours.windows.clone()).unwrap_or_default();
    let clean = subject.cluster.is_clean().await?;
    Ok(Report::new(plan, &peak, &sample, windows, moments, clean))
}

/// Looks at the cluster at the end of each window.
async fn watch(
    subject: &Subject,
    spec: &Spec,
    window_s: u32,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<Vec<Moment>> {
    let client = HttpClient::new(ANSWER_TIMEOUT);
    let place = subject.cluster.description.routers.first().context("a cluster without routers")?;
    let url = format!("{}{SUMS}", place.url());
    let begin = Instant::now();
    let mut moments = Vec::new();
    let mut ticks = interval(Duration::from_secs(u64::from(window_s)));
    ticks.tick().await;
    let warm_up_s = super::WARM_UP.as_secs_f64();
    // A moment after the load has ended would show the processes at rest.
    while begin.elapsed().as_secs_f64() + f64::from(window_s) < f64::from(spec.seconds) + warm_up_s {
        ticks.tick().await;
        let sums: Sums = client.get(&url).await?;
        ensure!(!sums.partial, "a shard did not tell its sums");
        moments.push(Moment {
            at_s: begin.elapsed().as_secs_f64(),
            memory: subject.cluster.memory()?.0,
            disk_bytes: subject.cluster.ledger_bytes().await?,
            unfolded_rows: subject.cluster.unfolded_rows().await,
            sum: sums.data.first().map_or_else(|| "0".to_owned(), |sum| sum.posted.clone()),
        });
        bar.set_position(begin.elapsed().as_secs());
    }
    Ok(moments)
}
