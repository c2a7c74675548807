//! `shardctl bench`: load on routers, measured.
//!
//! The load generator: [`workload`] picks accounts, [`request`] writes and counts, [`connection`] carries, [`driver`] times,
//! [`tally`] adds up. The client usually shares the machine with what it measures, so it does as little as it can for each
//! transfer.
//!
//! What is measured: an [`own_cluster`], with open accounts a [`subject`]; a PL/pgSQL transfer function as [`baseline`]; a bare
//! append as [`ceiling`]. [`cpu`] and [`memory`] say what it cost.
//!
//! The measurements: [`suite`] is `make bench`, [`scaling`] adds shards, [`soak`] goes on for hours, [`reshard`] moves slots under load, [`long`] fills shards first, [`statements`] reads long histories, [`takeover`] kills nodes, [`overload`] offers more than the capacity, [`prototype`] compares choices of the
//! append path. [`figures`] holds what came out against the bars, [`page`] and [`chart`] draw it.

pub mod accounts;
pub mod baseline;
pub mod ceiling;
mod cgroup;
pub mod connection;
pub mod cpu;
pub mod driver;
pub mod figures;
pub mod long;
pub mod machine;
pub mod memory;
pub mod overload;
pub mod own_cluster;
pub mod prototype;
mod random;
pub mod request;
pub mod reshard;
pub mod scaling;
pub mod soak;
pub mod statements;
pub mod subject;
pub mod suite;
pub mod takeover;
mod tally;
pub mod workload;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use report_page::{chart, page};
use serde::Serialize;

use connection::Address;
use driver::{Driven, Load};
pub use tally::{Latency, Window};
use workload::{Locality, Picker, Workload};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Bench {
    pub workload: Workload,
    pub locality: Locality,
    /// The shard of each account.
    pub homes: Vec<u16>,
    pub load: Load,
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measurement {
    pub workload: Workload,
    pub locality: Locality,
    pub accounts: usize,
    pub batch: usize,
    pub connections: usize,
    /// Requests a second asked for; absent in the closed loop.
    pub rate: Option<f64>,
    pub seed: u64,
    pub seconds: f64,
    pub requests: u64,
    pub requests_per_s: f64,
    pub posted: u64,
    /// Posted transfers a second.
    pub transfers_per_s: f64,
    pub pending: u64,
    /// New transfers, the warm-up's included.
    pub transfers_in_all: u64,
    /// What neither posted nor is pending, by code.
    pub others: BTreeMap<String, u64>,
    /// Answers to transfers that had been sent before.
    pub replayed: u64,
    /// Of requests, in microseconds.
    pub latency_us: Latency,
    /// Of requests without a result, from when they were sent.
    pub refusal_latency_us: Latency,
    /// Processor time of the load generator for each request.
    pub generator_us_per_request: f64,
    /// The longest time between two successful answers.
    pub longest_pause_s: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
}

impl Bench {
    /// Runs the load against accounts that are open.
    pub async fn run(self) -> anyhow::Result<Measurement> {
        let picker = Picker::new(self.workload, self.locality, self.homes)?;
        measure(&self.load, picker).await
    }
}

/// Runs a load with accounts of this picker.
pub async fn measure(load: &Load, picker: Picker) -> anyhow::Result<Measurement> {
    let (workload, locality, accounts) = (picker.workload(), picker.locality(), picker.accounts());
    let driven = driver::drive(load, Arc::new(picker)).await?;
    Ok(Measurement::new(workload, locality, accounts, load, driven))
}

impl Measurement {
    fn new(workload: Workload, locality: Locality, accounts: usize, load: &Load, driven: Driven) -> Self {
        let Driven { tally, transfers_in_all, windows, longest_pause, generator_us_per_request } = driven;
        let seconds = load.duration.as_secs_f64();
        Self {
            workload,
            locality,
            accounts,
            batch: load.batch,
            connections: load.connections,
            rate: load.rate,
            seed: load.seed,
            seconds,
            requests: tally.requests,
            requests_per_s: tally.requests as f64 / seconds,
            posted: tally.posted,
            transfers_per_s: tally.posted as f64 / seconds,
            pending: tally.pending,
            transfers_in_all,
            latency_us: tally.latency(),
            refusal_latency_us: tally.refusal_latency(),
            others: tally.codes,
            replayed: tally.replayed,
            generator_us_per_request,
            longest_pause_s: longest_pause.as_secs_f64(),
            windows,
        }
    }
}

/// The routers' addresses, taken apart.
pub fn addresses(urls: &[String]) -> anyhow::Result<Vec<Address>> {
    urls.iter().map(|url| Address::parse(url)).collect()
}

/// Warm-up before anything counts: connections, caches, the first batches.
pub const WARM_UP: Duration = Duration::from_secs(1);
