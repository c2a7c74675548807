//! Checks that a cluster has recovered from all faults, and that its rows agree with the journals.

use std::{fmt::Write, time::Duration};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use shard_database::rebuild;

use super::books;
use crate::{
    client::Client,
    cluster::{Cluster, Member},
    database,
    wait::until,
};

/// INV-17: all sagas end within this time after the last fault, without a restart by the test.
const SAGAS_END_WITHIN: Duration = Duration::from_secs(30);
/// Holds of workloads last one second, and the contract gives the shard another second. A busy machine may need the rest.
const HOLDS_EXPIRE_WITHIN: Duration = Duration::from_secs(30);
/// INV-17: within this time, sessions, breakers and queues are as before the fault.
const RESTS_WITHIN: Duration = Duration::from_secs(30);

/// INV-17: waits until the databases have no pending saga, and until every router reports the same.
pub async fn sagas_end(cluster: &Cluster) -> anyhow::Result<()> {
    until("all sagas have ended", SAGAS_END_WITHIN, async || {
        let pending = books::pending(cluster.status()).await?;
        Ok((pending == 0).then_some(()))
    })
    .await?;
    let client = cluster.client();
    // A router that has just lost a shard needs a moment to ask it again.
    until("every router says that all sagas have ended", SAGAS_END_WITHIN, async || {
        for router in &cluster.status().routers {
            let answer = ask(&client, &format!("{}/admin/sagas", router.admin_url)).await?;
            ensure!(answer["data"] == json!([]) && answer["partial"] == false, "{} says {answer}", router.admin_url);
        }
        Ok(Some(()))
    })
    .await
}

/// Waits until the holds that a load placed just before its end have expired.
pub async fn holds_expire(cluster: &Cluster) -> anyhow::Result<()> {
    until("all holds that are due have expired", HOLDS_EXPIRE_WITHIN, async || {
        let expiring = books::expiring_holds(cluster.status()).await?;
        Ok((expiring == 0).then_some(()))
    })
    .await
}

/// INV-17: waits until breakers are closed, lanes and queues are empty, and no session is idle inside a transaction.
pub async fn comes_to_rest(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.client();
    until("breakers are closed and queues empty", RESTS_WITHIN, async || {
        for router in &cluster.status().routers {
            let answer = ask(&client, &format!("{}/admin/shards", router.admin_url)).await?;
            let shards = answer["data"].as_array().context("no shards")?;
            let restless = shards.iter().find(|shard| !rests(shard));
            ensure!(restless.is_none(), "{}: {}", router.admin_url, restless.unwrap_or_default());
        }
        Ok(Some(()))
    })
    .await?;
    until("no session is idle in a transaction", RESTS_WITHIN, async || {
        let forgotten = books::idle_in_transaction(cluster.status()).await?;
        Ok((forgotten == 0).then_some(()))
    })
    .await
}

fn rests(shard: &Value) -> bool {
    shard["reachable"] == true
        && shard["state"] == "serving"
        && shard["breaker"] == "closed"
        && shard["queued_operations"] == 0
        && shard["lane_queue"] == 0
}

async fn ask(client: &Client, url: &str) -> anyhow::Result<Value> {
    client.request(Method::GET, url, None).await?.json().with_context(|| url.to_owned())
}

/// The time within which the fold of a shard without traffic reaches the end of the journal.
const FOLDS_WITHIN: Duration = Duration::from_secs(30);
/// The number of differences that are printed.
const SHOWN: usize = 20;

/// Rebuilds every projection of one shard from its journal and compares them with the rows, folded or not.
///
/// # Errors
/// Names the differences.
pub async fn rebuilds(url: &str) -> anyhow::Result<()> {
    let mut connection = database::connect(url).await?;
    let differences = rebuild::rebuild(&mut connection).await?;
    let mut text = String::new();
    for difference in differences.iter().take(SHOWN) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:?}, {}: {}", difference.rule, difference.subject, difference.detail);
    }
    ensure!(differences.is_empty(), "{} differences between journal and rows:\n{text}", differences.len());
    Ok(())
}

/// [`rebuilds`] for each shard whose PostgreSQL runs.
///
/// # Errors
/// Names the differences of the first shard that has some.
pub async fn all_rebuild(cluster: &Cluster) -> anyhow::Result<()> {
    for (number, shard) in cluster.status().shards.iter().enumerate() {
        if cluster.status().pid(Member::Postgres(number)).is_none() {
            continue;
        }
        rebuilds(&shard.dsn).await.map_err(|error| error.context(shard.id.clone()))?;
    }
    Ok(())
}

/// Waits until the fold has reached the present end of each journal, so that it does not mend rows that a test damages afterwards.
///
/// # Errors
/// Fails if the fold does not reach the end in time.
pub async fn all_folded(cluster: &Cluster) -> anyhow::Result<()> {
    for shard in &cluster.status().shards {
        let end = database::number(&shard.dsn, "SELECT coalesce(max(position), 0) FROM journal").await?;
        until("the journal is folded", FOLDS_WITHIN, async || {
            let folded = database::number(&shard.dsn, "SELECT folded_position FROM fold_state").await?;
            Ok((folded >= end).then_some(()))
        })
        .await?;
    }
    Ok(())
}
