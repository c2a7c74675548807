//! A cluster that is measured, with its accounts open, and one measurement of it.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use http::HeaderValue;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    Latency, Measurement, WARM_UP, accounts,
    connection::Address,
    cpu::PerTransfer,
    driver::Load,
    measure,
    own_cluster::OwnCluster,
    request::Ids,
    workload::{Locality, Picker, Workload},
};
use crate::{http_client::HttpClient, trust};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster of ours.
pub struct Subject {
    pub cluster: OwnCluster,
    pub routers: Vec<Address>,
    /// The shard of each account.
    pub homes: Vec<u16>,
}

/// A load on a subject.
#[derive(Debug, Clone)]
pub struct Spec {
    pub workload: Workload,
    pub locality: Locality,
    /// Transfers a request; 1 sends single transfers.
    pub batch: usize,
    pub connections: usize,
    /// How many of the routers take part.
    pub routers: usize,
    /// Requests a second; `None` is the closed loop.
    pub rate: Option<f64>,
    pub ids: Ids,
    /// The share of transfers that are sent a second time.
    pub replays: f64,
    pub seconds: u32,
    /// Write a checkpoint half way.
    pub checkpoint: bool,
    /// Only accounts of so many shards.
    pub first_shards: Option<usize>,
    /// Each request is for so many shards; `None`: for all of them.
    pub shards_per_request: Option<usize>,
    pub window: Option<Duration>,
    pub seed: u64,
}

/// One measurement, of ours or of something else.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    pub transfers_per_s: f64,
    pub cpu_us_per_transfer: PerTransfer,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Latency>,
    /// What the tables and indexes grew by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes_per_transfer: Option<f64>,
    /// Rows that were not folded at the beginning and at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfolded_rows: Option<[f64; 2]>,
    /// In full, where it is ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours: Option<Measurement>,
}

impl Spec {
    /// Batches of 1,000 transfers over 8 connections.
    pub const BATCHES: Self = Self {
        workload: Workload::Uniform,
        locality: Locality::Any,
        batch: 1_000,
        connections: 8,
        routers: 1,
        rate: None,
        ids: Ids::TimeOrdered,
        replays: 0.0,
        seconds: 10,
        checkpoint: false,
        first_shards: None,
        shards_per_request: None,
        window: None,
        seed: 0,
    };
    /// Single transfers over 64 connections.
    pub const SINGLES: Self = Self { batch: 1, connections: 64, ..Self::BATCHES };

    /// The same load in the open loop, at `rate` requests a second, over enough connections that a request seldom waits for
    /// one: with few, a pause of some milliseconds leaves requests behind that the connections take long to catch up with.
    pub fn at_rate(self, rate: f64) -> Self {
        Self { rate: Some(rate), connections: self.connections.max(MIN_OPEN_LOOP_CONNECTIONS), ..self }
    }
}

/// An open loop has at least so many connections.
pub const MIN_OPEN_LOOP_CONNECTIONS: usize = 256;

impl Subject {
    /// Starts a cluster in a folder below `folder` and opens its accounts.
    pub async fn start(
        folder: &Path,
        name: &str,
        shards: u16,
        routers: u16,
        accounts: usize,
    ) -> anyhow::Result<Self> {
        let cluster = OwnCluster::start(folder.join(name), shards, routers)?;
        Self::of(cluster, accounts).await
    }

    /// The same with TLS between all processes, and with a key.
    pub async fn start_secured(folder: &Path, name: &str, shards: u16, accounts: usize) -> anyhow::Result<Self> {
        let (cluster, secret) = OwnCluster::start_secured(folder.join(name), shards, 1)?;
        let mut key = HeaderValue::try_from(format!("Bearer {secret}"))?;
        key.set_sensitive(true);
        let tls = cluster.layout().tls();
        let address = |url: &str| Address::secured(url, || trust::https_of(Some(&tls)), Some(key.clone()));
        let places = cluster.description.routers.iter();
        let routers = places.map(|place| address(&place.url())).collect::<anyhow::Result<Vec<_>>>()?;
        Self::reached(cluster, routers, accounts).await
    }

    /// Opens the accounts of a cluster.
    pub async fn of(cluster: OwnCluster, accounts: usize) -> anyhow::Result<Self> {
        let places = cluster.description.routers.iter();
        let routers = places.map(|place| Address::parse(&place.url())).collect::<anyhow::Result<Vec<_>>>()?;
        Self::reached(cluster, routers, accounts).await
    }

    async fn reached(cluster: OwnCluster, routers: Vec<Address>, accounts: usize) -> anyhow::Result<Self> {
        let place = cluster.description.routers.first().context("a cluster without routers")?;
        let map = HttpClient::new(ANSWER_TIMEOUT).get(&format!("{}/admin/shard-map", place.admin_url())).await?;
        let homes = accounts::homes(&accounts::slot_owners(&map)?, accounts);
        accounts::open(&routers[0], accounts).await?;
        Ok(Self { cluster, routers, homes })
    }

    pub async fn measure(&self, spec: &Spec) -> anyhow::Result<Sample> {
        self.measure_until(spec, CancellationToken::new()).await
    }

    /// The same, ended before its time by `stop`.
    pub async fn measure_until(&self, spec: &Spec, stop: CancellationToken) -> anyhow::Result<Sample> {
        ensure!(spec.routers <= self.routers.len(), "the cluster has fewer routers");
        let load = Load {
            routers: self.routers[..spec.routers].to_vec(),
            connections: spec.connections,
            threads: 1,
            batch: spec.batch,
            rate: spec.rate,
            ids: spec.ids,
            replays: spec.replays,
            retries: 0,
            leaves_out_late: false,
            warm_up: WARM_UP,
            duration: Duration::from_secs(u64::from(spec.seconds)),
            window: spec.window,
            seed: spec.seed,
            stop,
        };
        let mut picker = Picker::new(spec.workload, spec.locality, self.homes.clone())?;
        if let Some(shards) = spec.first_shards {
            picker = picker.of_first_shards(shards);
        }
        if let Some(shards) = spec.shards_per_request {
            picker = picker.with_shards_per_request(shards);
        }
        let bytes = self.cluster.ledger_bytes().await?;
        let unfolded = self.cluster.unfolded_rows().await;
        let before = self.cluster.spent()?;
        let checkpoint = async {
            if spec.checkpoint {
                tokio::time::sleep(WARM_UP + load.duration / 2).await;
                self.cluster.checkpoint().await?;
            }
            Ok(())
        };
        let (measured, ()) = tokio::try_join!(measure(&load, picker), checkpoint)?;
        let transfers = measured.transfers_in_all as f64;
        let cpu_us_per_transfer = self.cluster.spent()?.per_transfer(&before, transfers);
        let grown = self.cluster.ledger_bytes().await? - bytes;
        let unfolded_rows = match (unfolded, self.cluster.unfolded_rows().await) {
            (Some(before), Some(after)) => Some([before, after]),
            _ => None,
        };
        Ok(Sample {
            transfers_per_s: measured.transfers_per_s,
            cpu_us_per_transfer,
            latency_us: Some(measured.latency_us.clone()),
            disk_bytes_per_transfer: (transfers > 0.0).then_some(grown / transfers),
            unfolded_rows,
            ours: Some(measured),
        })
    }
}
