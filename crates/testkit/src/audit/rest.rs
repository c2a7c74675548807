//! Whether a cluster has got over what was done to it.

use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};

use super::books;
use crate::{client::Client, cluster::Cluster, wait::until};

/// INV-17: all sagas have ended this long after the last fault, without a restart by the test.
const SAGAS_END_WITHIN: Duration = Duration::from_secs(30);
/// Workloads give a hold a second, and the contract gives the shard another; the rest is for a busy machine.
const HOLDS_EXPIRE_WITHIN: Duration = Duration::from_secs(30);
/// INV-17: and nothing else is left of the trouble either.
const RESTS_WITHIN: Duration = Duration::from_secs(30);

/// INV-17, by the databases; then by the routers' own word.
pub async fn sagas_end(cluster: &Cluster) -> anyhow::Result<()> {
    until("all sagas have ended", SAGAS_END_WITHIN, async || {
        let pending = books::pending(cluster.status()).await?;
        Ok((pending == 0).then_some(()))
    })
    .await?;
    let client = cluster.client();
    // A router that has just lost a shard needs a moment to ask it again.
    until("every router says so", SAGAS_END_WITHIN, async || {
        for router in &cluster.status().routers {
            let answer = ask(&client, &format!("{}/admin/sagas", router.admin_url)).await?;
            ensure!(answer["data"] == json!([]) && answer["partial"] == false, "{} says {answer}", router.admin_url);
        }
        Ok(Some(()))
    })
    .await
}

/// A load may end with a hold just placed, whose time is not over yet.
pub async fn holds_expire(cluster: &Cluster) -> anyhow::Result<()> {
    until("all holds that are to expire have", HOLDS_EXPIRE_WITHIN, async || {
        let expiring = books::expiring_holds(cluster.status()).await?;
        Ok((expiring == 0).then_some(()))
    })
    .await
}

/// INV-17: no session idle in a transaction, breakers closed, lanes and queues empty.
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
