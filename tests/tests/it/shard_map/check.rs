//! Tests of `shardctl map check`. It asks the routers, so that its verdict on a map is the one that a reload would give.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::Value;
use shard_map::{Shard, ShardMap};
use testkit::{cluster::Cluster, database};

/// The address of a router that does not exist.
const NOWHERE: &str = "http://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_is_checked_by_the_cluster_that_is_to_take_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let map = cluster.placement()?.map().clone();
    let next = |change: fn(&mut [Shard])| -> anyhow::Result<String> {
        let mut shards = map.shards.clone();
        change(&mut shards);
        Ok(ShardMap::new(map.cluster, map.version + 1, shards)?.to_toml())
    };
    let same = next(|_| {})?;
    let moved = next(|shards| {
        shards[0].slots = vec!["1-8191".parse().unwrap()];
        shards[1].slots = vec!["0".parse().unwrap(), "8192-16383".parse().unwrap()];
    })?;

    ensure!(check(&cluster, &map.to_toml(), &[]).await? == Checked { code: 0, problems: vec![], online: true });
    ensure!(check(&cluster, &same, &[]).await? == Checked { code: 0, problems: vec![], online: true });
    ensure!(check(&cluster, &same, &["--offline"]).await? == Checked { code: 0, problems: vec![], online: false });

    // Only the cluster knows that the slots are taken.
    let refused = check(&cluster, &moved, &[]).await?;
    expect!(refused.code == 3 && refused.problems.len() == 1, "{refused:?}");
    let Problem { line, reason } = &refused.problems[0];
    let text = moved.lines().nth(line.context("no line")? - 1).unwrap_or_default();
    expect!(text.starts_with("slots") && reason.contains("only a move"), "{text}: {reason}");
    ensure!(check(&cluster, &moved, &["--offline"]).await?.code == 0);
    let current = cluster.shard_map_path();
    let current = current.to_str().context("the path is not UTF-8")?;
    ensure!(check(&cluster, &moved, &["--replaces", current]).await?.code == 3);
    let nonsense = check(&cluster, "version = 1\nnonsense", &[]).await?;
    expect!(nonsense.code == 3 && nonsense.online && nonsense.problems[0].line == Some(2), "{nonsense:?}");

    // The state is that after the cut-over of slot 0. The routers do not know it yet.
    let next = "UPDATE shard_state SET ownership_version = ownership_version + 1";
    let dsn = |shard: usize| cluster.status().shards[shard].dsn.clone();
    let release = "UPDATE slot_ownership SET state = 2, epoch = 2, peer = 's1' WHERE slot = 0";
    let take = "INSERT INTO slot_ownership (slot, state, epoch, peer) VALUES (0, 1, 2, 's0')";
    for (shard, statement) in [(0, release), (1, take)] {
        database::run(&dsn(shard), &format!("BEGIN; {statement}; {next}; COMMIT")).await?;
    }
    let follows = check(&cluster, &moved, &[]).await?;
    expect!(follows == Checked { code: 0, problems: vec![], online: true }, "{follows:?}");
    ensure!(check(&cluster, &same, &[]).await?.code == 0, "a map may lag behind the shards");
    // The check did not put the map to use.
    let shown = cluster.shardctl_json(&["map", "show", "--json"]).await?;
    expect!(shown["version"] == map.version && shown["refused"].is_null(), "{shown}");

    let file = write(&cluster, &moved)?;
    let nowhere = cluster.shardctl(&["map", "check", &file, "--admin-url", NOWHERE]).await?;
    expect!(nowhere.code == Some(4), "{nowhere:?}");
    cluster.down().await?;
    let by_itself = cluster.shardctl(&["map", "check", &file]).await?;
    expect!(by_itself.code == Some(0) && by_itself.stderr.contains("checked alone"), "{by_itself:?}");
    cluster.finish().await
}

#[derive(Debug, PartialEq, Eq)]
struct Checked {
    code: i32,
    problems: Vec<Problem>,
    online: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Problem {
    line: Option<usize>,
    reason: String,
}

fn write(cluster: &Cluster, map: &str) -> anyhow::Result<String> {
    let file = cluster.data_dir().join("run").join("checked.toml");
    fs::write(&file, map)?;
    Ok(file.to_str().context("the path is not UTF-8")?.to_owned())
}

async fn check(cluster: &Cluster, map: &str, arguments: &[&str]) -> anyhow::Result<Checked> {
    let file = write(cluster, map)?;
    let output = cluster.shardctl(&[&["map", "check", &file, "--json"], arguments].concat()).await?;
    let said: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let problems =
        said["problems"].as_array().with_context(|| format!("expected problems in {said}"))?.iter().map(|problem| {
            Problem {
                line: problem["line"].as_u64().and_then(|line| usize::try_from(line).ok()),
                reason: problem["reason"].as_str().unwrap_or_default().to_owned(),
            }
        });
    let checked = Checked {
        code: output.code.context("the command was killed")?,
        problems: problems.collect(),
        online: said["checked_by"].as_array().is_some_and(|routers| !routers.is_empty()),
    };
    expect!(said["valid"] == (checked.code == 0), "{said}");
    Ok(checked)
}
