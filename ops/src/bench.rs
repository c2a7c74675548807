//! `shardctl bench`: load on routers, measured.
//!
//! [`workload`] picks accounts, [`request`] writes and counts, [`connection`] carries, [`driver`] times, [`tally`] adds
//! up. [`suite`] compares with a PL/pgSQL transfer function on the same PostgreSQL, [`statements`] reads long histories. The client shares the machine with
//! what it measures more often than not, so that it does as little as it can for each transfer.

pub mod accounts;
pub mod connection;
pub mod driver;
mod random;
mod request;
pub mod statements;
pub mod suite;
mod tally;
pub mod workload;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;

use connection::Address;
use driver::Load;
pub use tally::Latency;
use tally::Tally;
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
#[derive(Debug, Clone, Serialize)]
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
    /// What neither posted nor is pending, by code.
    pub others: BTreeMap<String, u64>,
    /// Of requests, in microseconds.
    pub latency_us: Latency,
}

impl Bench {
    /// Runs the load against accounts that are open.
    pub async fn run(self) -> anyhow::Result<Measurement> {
        let accounts = self.homes.len();
        let picker = Arc::new(Picker::new(self.workload, self.locality, self.homes)?);
        let tally = driver::drive(&self.load, picker).await?;
        Ok(Measurement::new(self.workload, self.locality, accounts, &self.load, tally))
    }
}

impl Measurement {
    fn new(workload: Workload, locality: Locality, accounts: usize, load: &Load, tally: Tally) -> Self {
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
            latency_us: tally.latency(),
            others: tally.codes,
        }
    }
}

/// The routers' addresses, taken apart.
pub fn addresses(urls: &[String]) -> anyhow::Result<Vec<Address>> {
    urls.iter().map(|url| Address::parse(url)).collect()
}

/// Warm-up before anything counts: connections, caches, the first batches.
pub const WARM_UP: Duration = Duration::from_secs(1);
