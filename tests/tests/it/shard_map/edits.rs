//! Good and bad edits of the file.

use anyhow::{Context, ensure};
use http::Method;
use serde_json::Value;
use shard_map::ShardMap;
use testkit::wait::until;

use super::{Maps, NOTICED_WITHIN};

/// Version 2: the same owners, the shards listed in another order.
pub async fn a_map_that_says_the_same_in_another_order_is_taken(maps: &Maps<'_>) -> anyhow::Result<()> {
    let mut shards = maps.current()?.shards;
    shards.reverse();
    maps.replace(&ShardMap::new(maps.current()?.cluster, 2, shards)?.to_toml())?;
    maps.wait_for_version(2).await
}

/// Version 3, in which a slot has two owners.
pub async fn a_broken_map_is_refused_with_its_line_and_the_old_one_serves(maps: &Maps<'_>) -> anyhow::Result<()> {
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
        // A router that serves an old map is ready all the same.
        ensure!(state["status"] == "ready" && state["shard_map"]["version"] == 2, "{state}");
        let line = state["shard_map"]["refused"]["line"].as_u64().context("no line")?;
        let text = broken.lines().nth(usize::try_from(line)?.saturating_sub(1)).unwrap_or_default();
        ensure!(text.starts_with("slots"), "line {line}, {text:?}, is not to blame: {state}");
    }
    ensure!(maps.gauges("shardledger_shard_map_last_reload_success").await?.iter().all(|value| *value == 0.0));
    ensure!(maps.gauges("shardledger_shard_map_version").await?.iter().all(|version| *version == 2.0));

    // The operator who asks for it is told as well.
    for router in &maps.cluster.status().routers {
        let url = format!("{}/admin/shard-map/reload", router.admin_url);
        let answer = maps.client.request(Method::POST, &url, None).await?;
        ensure!(answer.status == 422 && answer.code() == "invalid_shard_map", "{}", answer.text());
        ensure!(answer.text().contains("line "), "{}", answer.text());
    }
    Ok(())
}

pub async fn a_repaired_map_ends_the_alarm(maps: &Maps<'_>) -> anyhow::Result<()> {
    // The file on disk is the broken one; what the routers serve is what it was before.
    let serving = maps.ask_routers("/admin/shard-map").await?;
    let text = map_text(3, &serving[0])?;
    maps.replace(&text)?;
    maps.wait_for_version(3).await?;
    for state in maps.ask_routers("/readyz?verbose").await? {
        ensure!(state["shard_map"]["refused"].is_null(), "{state}");
    }
    ensure!(maps.gauges("shardledger_shard_map_last_reload_success").await?.iter().all(|value| *value == 1.0));
    Ok(())
}

/// The map as `GET /admin/shard-map` tells it, as TOML.
fn map_text(version: u64, map: &Value) -> anyhow::Result<String> {
    let mut text = format!("cluster = {}\nversion = {version}\n", map["cluster"]);
    for shard in map["shards"].as_array().context("no shards")? {
        // A list of strings looks the same in JSON and TOML.
        text += &format!(
            "[[shard]]\nid = {}\nnumber = {}\nnodes = {}\nslots = {}\n",
            shard["id"], shard["number"], shard["nodes"], shard["slots"]
        );
    }
    ShardMap::parse(&text).context("what the routers serve is no map")?;
    Ok(text)
}

fn lines_with(text: &str, index: usize, line: &str) -> String {
    let lines = text.lines().enumerate().map(|(i, old)| if i == index { line } else { old });
    lines.map(|line| format!("{line}\n")).collect()
}
