//! The shard map edited under load, then broken, then wrong. What the shards say about ownership decides.

mod check;
mod edits;
mod stale_routers;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::Value;
use shard_map::ShardMap;
use testkit::{
    audit::audit,
    client::{Client, Verdict},
    cluster::Cluster,
    history::Attempt,
    section::section,
    seed::Seed,
    wait::until,
    workload::{Accounts, Load, Mix},
};

/// How long the routers may take to notice an edited file, on a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// No request may be lost, so none is given a deadline that the machine alone could miss.
const MIX: Mix = Mix {
    single_clients: 3,
    batch_clients: 1,
    two_phase_clients: 1,
    batch_items: 20,
    gives_up: false,
    request_timeout: Duration::from_secs(30),
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_edit_of_the_map_loses_a_request_or_misleads_a_write() -> anyhow::Result<()> {
    let seed = Seed::announce("shard map");
    let cluster = Cluster::start(3, 2).await?;
    let (accounts, opening) = Accounts::open(&cluster, 4, &mut seed.random()).await?;
    let maps = Maps::new(&cluster);
    let load = Load::start(&cluster, &Arc::new(accounts), &seed, MIX);

    section("re-ordered", edits::a_map_that_says_the_same_in_another_order_is_taken(&maps)).await?;
    section("broken", edits::a_broken_map_is_refused_with_its_line_and_the_old_one_serves(&maps)).await?;
    section("repaired", edits::a_repaired_map_ends_the_alarm(&maps)).await?;
    section("stale routers", stale_routers::a_router_with_an_old_map_heals_and_never_misleads(&maps)).await?;
    section("published", stale_routers::the_map_catches_up_with_the_shards(&maps)).await?;

    let mut history = load.finish().await?;
    // Nothing was wrong with any process, so there is no excuse: each request has one answer, a definite one.
    let lost: Vec<&Attempt> =
        history.records.iter().flat_map(|record| &record.attempts).filter(|a| is_lost(a)).collect();
    ensure!(lost.is_empty(), "{} requests were lost to an edit of a file: {:?}", lost.len(), lost.first());
    ensure!(history.records.len() > 50, "hardly any load: {}", history.records.len());
    history.records.extend(opening.records);
    history.records.extend(maps.take_records());
    eprintln!("shard map: {:?}", audit(&cluster, &history).await?);
    cluster.finish().await
}

fn is_lost(attempt: &Attempt) -> bool {
    !matches!(attempt.verdict, Verdict::Posted | Verdict::Rejected { .. })
}

/// The cluster's map file, and what the routers make of it.
struct Maps<'a> {
    cluster: &'a Cluster,
    client: Client,
    /// Transfers made by the sections themselves: the audit must know them.
    records: std::sync::Mutex<Vec<testkit::history::Record>>,
}

impl<'a> Maps<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, client: cluster.client(), records: std::sync::Mutex::default() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.cluster.shard_map_path()
    }

    fn current(&self) -> anyhow::Result<ShardMap> {
        Ok(self.cluster.placement()?.map().clone())
    }

    /// Puts another file in its place, as editors and deployment tools do.
    fn replace(&self, text: &str) -> anyhow::Result<()> {
        replace(&self.path(), text)
    }

    /// `GET` of something on every router's admin listener.
    async fn ask_routers(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let mut answers = Vec::new();
        for router in &self.cluster.status().routers {
            let url = format!("{}{path}", router.admin_url);
            answers.push(self.client.request(Method::GET, &url, None).await?.json()?);
        }
        Ok(answers)
    }

    /// The value of a gauge without labels on every router.
    async fn gauges(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        let mut values = Vec::new();
        for router in &self.cluster.status().routers {
            let url = format!("{}/metrics", router.admin_url);
            let text = self.client.request(Method::GET, &url, None).await?.text();
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            values.push(line.with_context(|| format!("no {name} in {url}"))?.trim().parse()?);
        }
        Ok(values)
    }

    async fn wait_for_version(&self, version: u64) -> anyhow::Result<()> {
        until(&format!("every router has version {version} of the map"), NOTICED_WITHIN, async || {
            let maps = self.ask_routers("/admin/shard-map").await?;
            Ok(maps.iter().all(|map| map["version"] == version).then_some(()))
        })
        .await
    }

    fn remember(&self, record: testkit::history::Record) {
        self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(record);
    }

    fn take_records(&self) -> Vec<testkit::history::Record> {
        std::mem::take(&mut self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let draft = path.with_extension("toml.draft");
    std::fs::write(&draft, text)?;
    Ok(std::fs::rename(&draft, path)?)
}
