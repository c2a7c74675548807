//! Tests of the shard map, which is edited under load, then broken, then out of date. The shards decide who owns a slot.

mod check;
mod stale_routers;

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::Value;
use shard_map::ShardMap;
use testkit::{
    audit::audit,
    client::{Client, Verdict},
    cluster::Cluster,
    history::Attempt,
    seed::Seed,
    wait::{section, until},
    workload::{Load, Mix},
};

/// The time within which the routers must notice an edited file on a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// The load. No request may be lost, so no request has a deadline that a busy machine could miss.
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
    let maps = Maps::new(&cluster);
    let load = Load::start(&cluster, 4, &mut seed.random(), &seed, MIX).await?;

    section("re-ordered", a_map_that_says_the_same_in_another_order_is_taken(&maps)).await?;
    section("broken", a_broken_map_is_refused_with_its_line_and_the_old_one_serves(&maps)).await?;
    section("repaired", a_repaired_map_ends_the_alarm(&maps)).await?;
    section("stale routers", stale_routers::a_router_with_an_old_map_heals_and_never_misleads(&maps)).await?;
    section("published", stale_routers::the_map_catches_up_with_the_shards(&maps)).await?;

    let mut history = load.finish().await?;
    // No process was harmed, so each request must have exactly one answer, which is definite.
    let lost: Vec<&Attempt> =
        history.records.iter().flat_map(|record| &record.attempts).filter(|a| is_lost(a)).collect();
    ensure!(lost.is_empty(), "{} requests were lost to an edit of a file: {:?}", lost.len(), lost.first());
    ensure!(history.records.len() > 50, "the load should have more than 50 orders, not {}", history.records.len());
    history.records.extend(maps.take_records());
    eprintln!("shard map: {:?}", audit(&cluster, &history).await?);
    cluster.finish().await
}

fn is_lost(attempt: &Attempt) -> bool {
    !matches!(attempt.verdict, Verdict::Posted | Verdict::Rejected { .. })
}

/// The cluster's map file, and the routers' view of it.
struct Maps<'a> {
    cluster: &'a Cluster,
    client: Client,
    /// The transfers that the sections of the test ordered. The audit must know them.
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

    /// Replaces the file with another one, as editors and deployment tools do.
    fn replace(&self, text: &str) -> anyhow::Result<()> {
        replace(&self.path(), text)
    }

    /// Sends a `GET` to every router's admin listener, and returns the answers.
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

/// Version 2 of the map has the same owners, and lists the shards in another order.
async fn a_map_that_says_the_same_in_another_order_is_taken(maps: &Maps<'_>) -> anyhow::Result<()> {
    let mut shards = maps.current()?.shards;
    shards.reverse();
    maps.replace(&ShardMap::new(maps.current()?.cluster, 2, shards)?.to_toml())?;
    maps.wait_for_version(2).await
}

/// In version 3 of the map, a slot has two owners.
async fn a_broken_map_is_refused_with_its_line_and_the_old_one_serves(maps: &Maps<'_>) -> anyhow::Result<()> {
    let good = ShardMap::new(maps.current()?.cluster, 3, maps.current()?.shards)?.to_toml();
    let taken = good.lines().filter(|line| line.starts_with("slots")).nth(1).context("a second shard")?;
    let first_slots = good.lines().position(|line| line.starts_with("slots")).context("a first shard")?;
    let broken = lines_with(&good, first_slots, taken);
    maps.replace(&broken)?;

    let refused = until("every router says that it refused the map", NOTICED_WITHIN, async || {
        let states = maps.ask_routers("/readyz?verbose").await?;
        Ok(states.iter().all(|state| state["shard_map"]["refused"].is_object()).then_some(states))
    })
    .await?;
    for state in &refused {
        // A router that serves an old map is ready nevertheless.
        expect!(state["status"] == "ready" && state["shard_map"]["version"] == 2, "{state}");
        let line =
            state["shard_map"]["refused"]["line"].as_u64().with_context(|| format!("expected line in {state}"))?;
        let text = broken.lines().nth(usize::try_from(line)?.saturating_sub(1)).unwrap_or_default();
        ensure!(text.starts_with("slots"), "line {line}, {text:?}, is not the broken line: {state}");
    }
    ensure!(maps.gauges("shardledger_shard_map_last_reload_success").await?.iter().all(|value| *value == 0.0));
    ensure!(maps.gauges("shardledger_shard_map_version").await?.iter().all(|version| *version == 2.0));

    // An operator who asks for a reload is told as well.
    for router in &maps.cluster.status().routers {
        let url = format!("{}/admin/shard-map/reload", router.admin_url);
        let answer = maps.client.request(Method::POST, &url, None).await?;
        expect!(answer.status == 422 && answer.code() == "invalid_shard_map", "{}", answer.text());
        expect!(answer.text().contains("line "), "{}", answer.text());
    }
    Ok(())
}

async fn a_repaired_map_ends_the_alarm(maps: &Maps<'_>) -> anyhow::Result<()> {
    // The file on disk is the broken one. The routers still serve the map before it.
    let serving = maps.ask_routers("/admin/shard-map").await?;
    let shards = serving[0]["shards"].as_array().with_context(|| format!("expected shards in {serving:?}"))?.clone();
    let text = map_text(&serving[0]["cluster"], 3, &shards)?;
    maps.replace(&text)?;
    maps.wait_for_version(3).await?;
    for state in maps.ask_routers("/readyz?verbose").await? {
        expect!(state["shard_map"]["refused"].is_null(), "{state}");
    }
    ensure!(maps.gauges("shardledger_shard_map_last_reload_success").await?.iter().all(|value| *value == 1.0));
    Ok(())
}

/// The map as `GET /admin/shard-map` tells it, as TOML.
fn map_text(cluster: &Value, version: u64, shards: &[Value]) -> anyhow::Result<String> {
    let mut text = format!("cluster = {cluster}\nversion = {version}\n");
    for shard in shards {
        // A list of strings has the same form in JSON and TOML.
        text += &format!(
            "[[shard]]\nid = {}\nnumber = {}\nnodes = {}\nslots = {}\n",
            shard["id"], shard["number"], shard["nodes"], shard["slots"]
        );
    }
    ShardMap::parse(&text).context("the routers do not serve a valid map")?;
    Ok(text)
}

fn lines_with(text: &str, index: usize, line: &str) -> String {
    let lines = text.lines().enumerate().map(|(i, old)| if i == index { line } else { old });
    lines.map(|line| format!("{line}\n")).collect()
}
