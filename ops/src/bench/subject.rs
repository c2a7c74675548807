//! A measured cluster with open accounts, and one measurement of it.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shard_map::{SLOTS, SlotRange};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Address, Connection},
    driver::Load,
    load::{Measurement, WARM_UP, measure},
    machine::PerTransfer,
    own_cluster::OwnCluster,
    request::{ASSET, Ids, account_id},
    tally::Latency,
    workload::{Locality, Picker, Workload},
};
use crate::{http_client::HttpClient, output, trust};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A Shardledger cluster that is measured.
pub struct MeasuredCluster {
    pub cluster: OwnCluster,
    pub routers: Vec<Address>,
    /// The shard of each account.
    pub homes: Vec<u16>,
}

/// A load on a measured cluster.
#[derive(Debug, Clone)]
pub struct LoadSpec {
    pub workload: Workload,
    pub locality: Locality,
    /// Transfers in each request; 1 sends single transfers.
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
    /// Whether to write a checkpoint half way.
    pub checkpoint: bool,
    /// The number of shards whose accounts are used, beginning with the first shard. `None`: all shards.
    pub first_shards: Option<usize>,
    /// The number of shards in each request. `None`: all shards.
    pub shards_per_request: Option<usize>,
    pub window: Option<Duration>,
    pub seed: u64,
}

/// One measurement of Shardledger, or of a system that it is compared with.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sample {
    pub transfers_per_s: f64,
    pub cpu_us_per_transfer: PerTransfer,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Latency>,
    /// The growth of tables and indexes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes_per_transfer: Option<f64>,
    /// Rows that were not folded at the beginning and at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfolded_rows: Option<[f64; 2]>,
    /// The whole measurement, if Shardledger was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours: Option<Measurement>,
}

impl LoadSpec {
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

    /// The same load in the open loop, at `rate` requests a second, over enough connections that a request seldom waits for one. With few
    /// connections, a pause of some milliseconds causes a backlog that lasts.
    pub fn at_rate(self, rate: f64) -> Self {
        Self { rate: Some(rate), connections: self.connections.max(MIN_OPEN_LOOP_CONNECTIONS), ..self }
    }
}

/// The least connections of an open loop.
pub const MIN_OPEN_LOOP_CONNECTIONS: usize = 256;

impl MeasuredCluster {
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

    /// Starts a cluster with HTTPS, mutual TLS and a key, and opens its accounts. PostgreSQL is reached without TLS.
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
        let homes = homes(&slot_owners(&map)?, accounts);
        open_accounts(&routers[0], accounts).await?;
        Ok(Self { cluster, routers, homes })
    }

    pub async fn measure(&self, spec: &LoadSpec) -> anyhow::Result<Sample> {
        self.measure_until(spec, CancellationToken::new()).await
    }

    /// Measures until the end of the load, or until `stop` is cancelled.
    pub async fn measure_until(&self, spec: &LoadSpec, stop: CancellationToken) -> anyhow::Result<Sample> {
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

/// The number of accounts that one request opens.
const BATCH: usize = 5_000;

#[derive(Deserialize)]
struct OpenedAccounts {
    results: Vec<OpenedAccount>,
}

#[derive(Deserialize)]
struct OpenedAccount {
    code: Option<String>,
}

/// Opens accounts 0 to `count`. They may go negative without limit, because a bench measures transfers and not refusals.
pub async fn open_accounts(router: &Address, count: usize) -> anyhow::Result<()> {
    let mut connection = Connection::open(router).await?;
    output::counted("accounts", count, async |bar| {
        for first in (0..count).step_by(BATCH) {
            let numbers = first..count.min(first + BATCH);
            let opened = numbers.len();
            open_some(&mut connection, numbers).await?;
            bar.inc(opened as u64);
        }
        Ok(())
    })
    .await
}

async fn open_some(connection: &mut Connection, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
    let accounts: Vec<serde_json::Value> =
        numbers.map(|number| json!({"id": account_id(number), "asset": ASSET, "overdraft": "unlimited"})).collect();
    let accounts = serde_json::to_vec(&json!({ "accounts": accounts }))?;
    let answer = connection.post("/v1/accounts:batch", |body| body.extend_from_slice(&accounts)).await?;
    if answer.status != StatusCode::OK {
        let text = String::from_utf8_lossy(answer.body);
        bail!("opening the bench's accounts: the router answered {}: {text}", answer.status);
    }
    let opened: OpenedAccounts =
        serde_json::from_slice(answer.body).context("the router's answer to opening accounts")?;
    match opened.results.into_iter().find_map(|opened| opened.code) {
        Some(code) => bail!("opening the bench's accounts: {code}"),
        None => Ok(()),
    }
}

/// The shard of each slot, as an index into the shards of a router's `/admin/shard-map`.
pub fn slot_owners(map: &serde_json::Value) -> anyhow::Result<Vec<u16>> {
    let shards = map["shards"].as_array().context("the router's shard map lists no shards")?;
    let mut owners = vec![0; usize::from(SLOTS)];
    for (place, shard) in (0_u16..).zip(shards) {
        for range in shard["slots"].as_array().into_iter().flatten() {
            let text = range.as_str().unwrap_or_default();
            let range: SlotRange =
                text.parse().with_context(|| format!("slots {text:?} of the router's shard map"))?;
            for slot in range.first().index()..=range.last().index() {
                owners[usize::from(slot)] = place;
            }
        }
    }
    Ok(owners)
}

/// The shard each account lives on.
pub fn homes(slot_owners: &[u16], count: usize) -> Vec<u16> {
    (0..count).map(|number| slot_owners[usize::from(shard_map::slot_of(&account_id(number)).index())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_live_where_the_map_says() {
        let map = json!({"shards": [{"slots": ["0-99", "200-16383"]}, {"slots": ["100-198", "199"]}]});
        let owners = slot_owners(&map).unwrap();
        assert_eq!([owners[99], owners[100], owners[199], owners[200]], [0, 1, 1, 0]);
        let homes = homes(&owners, 1_000);
        assert_eq!(homes.len(), 1_000);
        assert!(homes.iter().filter(|&&home| home == 1).count() < 50);
        assert!(slot_owners(&json!({"shards": [{"slots": ["x"]}]})).is_err());
    }
}
