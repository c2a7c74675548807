//! `shardctl doctor` is useful only if it notices every disagreement. On a consistent cluster it finds none. It must name each disagreement
//! that the test creates at its place, and find none after the repair.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use serde_json::Value;
use shard_map::{ClusterId, ShardMap};
use testkit::{
    cluster::{Cluster, Member},
    database,
    history::payment_body,
    wait::until,
    workload::open_payer_and_payee,
};
use uuid::Uuid;

/// The time within which nodes and routers must notice a change.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_names_each_disagreement() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    // A saga between both shards leaves marks on every side.
    let (client, placement) = (cluster.client(), cluster.placement()?);
    let (payer, payee) = open_payer_and_payee(&client, &placement, ("s0", "payer"), ("s1", "payee")).await?;
    let order = payment_body(Uuid::now_v7(), &payer, &payee, "5.00");
    client.post(0, "/v1/transfers", &order).await?;
    clean(&cluster, "nothing was done yet").await?;
    everything_is_compared(&cluster).await?;

    let nodes: Vec<String> =
        cluster.status().shards.iter().map(|shard| format!("shard {} at {}", shard.id, shard.node_url)).collect();
    let router = format!("router {}", cluster.status().routers[0].admin_url);

    cluster.process(Member::Node(1))?.freeze().await?;
    named(&cluster, &nodes[1], "answer").await?;
    named(&cluster, &router, "shard s1").await?;
    cluster.process(Member::Node(1))?.thaw()?;
    clean(&cluster, "the node goes on").await?;

    let server = database::superuser(&cluster, 0)?;
    database::run(&server, "ALTER SYSTEM SET full_page_writes = off").await?;
    database::run(&server, "SELECT pg_reload_conf()").await?;
    named(&cluster, &nodes[0], "full_page_writes").await?;
    named(&cluster, &nodes[0], "writes").await?;
    database::run(&server, "ALTER SYSTEM RESET full_page_writes").await?;
    database::run(&server, "SELECT pg_reload_conf()").await?;
    clean(&cluster, "the setting is back").await?;

    let dsn = cluster.status().shards[1].dsn.clone();
    database::run(&dsn, "INSERT INTO slot_ownership VALUES (3, 1, 7, '')").await?;
    let owners = named(&cluster, "cluster", "owner of each slot: 3").await?;
    expect!(owners["found"] == "s0 at epoch 1 and s1 at epoch 7", "{owners}");
    database::run(&dsn, "DELETE FROM slot_ownership WHERE slot = 3").await?;
    clean(&cluster, "the slot has one owner").await?;

    a_refused_map(&cluster, &router).await?;
    another_cluster(&cluster, &nodes[0]).await?;

    cluster.down().await?;
    let output = cluster.shardctl(&["doctor"]).await?;
    expect!(output.code == Some(4), "{output:?}");
    cluster.up().await?;
    clean(&cluster, "it is up again").await?;
    cluster.finish().await
}

/// Checks both output formats with `--all`, and the same through a router alone.
async fn everything_is_compared(cluster: &Cluster) -> anyhow::Result<()> {
    let router = cluster.status().routers[0].admin_url.clone();
    let all: Value = serde_json::from_str(&cluster.shardctl(&["doctor", "--all", "--json"]).await?.successful()?)?;
    let facts: Vec<&str> =
        all.as_array().context("no list")?.iter().filter_map(|fact| fact["fact"].as_str()).collect();
    for fact in
        ["cluster", "shard number", "fsync", "position", "database server", "map version", "owner of each slot"]
    {
        ensure!(facts.contains(&fact), "{fact} is missing: {facts:?}");
    }
    let text = cluster.shardctl(&["doctor", "--admin-url", &router]).await?.successful()?;
    let places = ["shard s0 at", "shard s1 at", "shard s0:", "shard s1:", "router http", "cluster:"];
    for place in places {
        expect!(text.lines().any(|line| line.starts_with(place)), "{place}: {text}");
    }
    Ok(())
}

/// A map that gives the first half of s0's slots to s1.
async fn a_refused_map(cluster: &Cluster, router: &str) -> anyhow::Result<()> {
    let path = cluster.shard_map_path();
    let good = fs::read_to_string(&path)?;
    let map = ShardMap::parse(&good)?;
    let mut shards = map.shards.clone();
    shards[0].slots = vec!["0-4095".parse()?];
    shards[1].slots = vec!["4096-16383".parse()?];
    fs::write(&path, ShardMap::new(map.cluster, map.version + 1, shards)?.to_toml())?;
    let refused = named(cluster, router, "map file").await?;
    expect!(refused["found"].as_str().is_some_and(|found| found.contains("only a move")), "{refused}");
    // A file that is not a map must not hide the other findings.
    fs::write(&path, "nonsense")?;
    named(cluster, "cluster", "map file").await?;
    fs::write(&path, good)?;
    clean(cluster, "the map is back").await
}

/// A map of another cluster with the same addresses.
async fn another_cluster(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let map = cluster.placement()?.map().clone();
    let file = cluster.data_dir().join("run").join("other.toml");
    let path = file.to_str().context("the path is not UTF-8")?;
    fs::write(&file, ShardMap::new(ClusterId::generate(), map.version, map.shards)?.to_toml())?;
    let output = cluster.shardctl(&["doctor", "--json", "--map", path]).await?;
    expect!(output.code == Some(3), "{output:?}");
    let findings: Value = serde_json::from_str(&output.stdout)?;
    finding(&findings, node, "cluster").with_context(|| output.stdout.clone())?;
    Ok(fs::remove_file(&file)?)
}

/// Waits until the fact disagrees at this place, and returns the finding.
async fn named(cluster: &Cluster, place: &str, fact: &str) -> anyhow::Result<Value> {
    until(&format!("doctor names {fact} at {place}"), NOTICED_WITHIN, async || {
        let output = cluster.shardctl(&["doctor", "--json"]).await?;
        let findings: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        let Some(found) = finding(&findings, place, fact) else {
            anyhow::bail!("exit {:?}: {findings}", output.code)
        };
        expect!(output.code == Some(3), "{output:?}");
        expect!(found["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{found}");
        Ok(Some(found.clone()))
    })
    .await
}

fn finding<'a>(findings: &'a Value, place: &str, fact: &str) -> Option<&'a Value> {
    let is_it = |found: &&Value| found["place"] == place && found["fact"] == fact && found["verdict"] == "disagrees";
    findings.as_array()?.iter().find(is_it)
}

async fn clean(cluster: &Cluster, when: &str) -> anyhow::Result<()> {
    until(&format!("doctor finds nothing: {when}"), NOTICED_WITHIN, async || {
        let output = cluster.shardctl(&["doctor", "--json"]).await?;
        ensure!(output.code == Some(0), "exit {:?}: {} {}", output.code, output.stdout, output.stderr);
        Ok(Some(()))
    })
    .await
}
