//! Batches of the largest size. They need all that a cluster can do in the time of one request, so no other test writes to it meanwhile.

use anyhow::ensure;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    api::Call,
    batches::results,
    stage::{Stage, terms},
};

/// Items of the largest batch, and how often a batch is sent again to a machine that is too slow for it.
const LARGEST: usize = 10_000;
const TRIES: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_transfers_are_a_batch() -> anyhow::Result<()> {
    let stage = Stage::quiet().await?;
    let payer = stage.account(0, "USD overdraft=unlimited").await?;
    let payees = [stage.account(0, "USD").await?, stage.account(1, "USD").await?];
    let items: Vec<Value> =
        (0..LARGEST).map(|n| terms(Uuid::now_v7(), &payer, &payees[n % 2], "0.01", "USD")).collect();
    let call = || Call::post("/v1/transfers:batch", &json!({"transfers": items}));
    let mut found = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    // A machine may be too slow for the whole batch in the time of one request. The next request does the rest.
    for _ in 0..TRIES {
        if found.iter().all(|result| result.starts_with("posted")) {
            break;
        }
        let left: Vec<&String> = found.iter().filter(|result| !result.starts_with("posted")).collect();
        ensure!(left.iter().all(|result| is_undecided(result)), "{} are not posted, such as {}", left.len(), left[0]);
        eprintln!("contract: {} of {LARGEST} are not decided in time, such as {}", left.len(), left[0]);
        found = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    }
    let other: Vec<&String> = found.iter().filter(|result| !result.starts_with("posted")).collect();
    ensure!(other.is_empty(), "{} are not posted, such as {}", other.len(), other[0]);
    ensure!(stage.posted(&payer).await? == "-100.00", "not all was paid");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_accounts_are_a_batch() -> anyhow::Result<()> {
    let stage = Stage::quiet().await?;
    let accounts: Vec<Value> =
        (0..LARGEST).map(|n| json!({"id": format!("{{{n}}}{}", stage.word()), "asset": "USD"})).collect();
    let call = Call::post("/v1/accounts:batch", &json!({"accounts": accounts}));
    let reply = stage.api.expect(call, "200").await?.body;
    let created = reply["results"].as_array().into_iter().flatten().filter(|result| result["status"] == "created");
    ensure!(created.count() == LARGEST, "not all accounts were created");
    stage.finish().await
}

/// The answer to an item whose time was up.
fn is_undecided(result: &str) -> bool {
    ["pending", "unknown", "failed shard_unavailable", "failed overloaded"]
        .iter()
        .any(|open| result.starts_with(open))
}
