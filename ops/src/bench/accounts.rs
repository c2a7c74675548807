//! The accounts a bench moves money between: opened once, found open by every later run.

use anyhow::{Context, bail};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use shard_map::{SLOTS, SlotRange};

use super::{
    connection::{Address, Connection},
    request::{ASSET, account_id},
};
use crate::progress;

/// Accounts opened in one request.
const BATCH: usize = 5_000;

#[derive(Deserialize)]
struct AllOpened {
    results: Vec<Opened>,
}

#[derive(Deserialize)]
struct Opened {
    code: Option<String>,
}

/// Opens accounts 0 to `count`. They may go negative without limit: a bench measures transfers, not refusals.
pub async fn open(router: &Address, count: usize) -> anyhow::Result<()> {
    let mut connection = Connection::open(router).await?;
    progress::counted("accounts", count, async |bar| {
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
    let opened: AllOpened = serde_json::from_slice(answer.body).context("the router's answer to opening accounts")?;
    match opened.results.into_iter().find_map(|opened| opened.code) {
        Some(code) => bail!("opening the bench's accounts: {code}"),
        None => Ok(()),
    }
}

/// The shard of each slot, by its place in what a router's `/admin/shard-map` says.
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
