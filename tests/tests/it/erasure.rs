//! Tests of the erasure of metadata (ADR 21): the text is in no database any more, and everything else is as it was.

use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::{
    client::{Answer, Client, account_path, escaped, hold_path, transfer_path},
    cluster::{Cluster, Member},
    database,
    wait::until,
    workload::open_account,
};
use uuid::Uuid;
use wire::MoveWishes;

use crate::moves::support::Movement;

/// A text that is in the metadata of everything that the test erases.
const SECRET: &str = "Ada of 12 Elm Street";

/// Longer than a fold and the pause before it.
const FOLDED_WITHIN: Duration = Duration::from_secs(20);

fn metadata() -> Value {
    json!({"name": SECRET})
}

async fn send(client: &Client, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let answer = client.call(client.next_router(), method.clone(), path, body).await?;
    ensure!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.text());
    Ok(answer)
}

/// Erases, twice, and reads. The three answers must be equal.
async fn erase(client: &Client, erasure: &str, read: &str) -> anyhow::Result<Value> {
    let first = send(client, Method::DELETE, erasure, None).await?.json()?;
    expect!(first["metadata"] == json!({}), "{first}");
    for (method, path) in [(Method::DELETE, erasure), (Method::GET, read)] {
        let mut again = send(client, method.clone(), path, None).await?.json()?;
        // `GET` by id shows additional members.
        if let (Some(shown), Some(first)) = (again.as_object_mut(), first.as_object()) {
            shown.retain(|name, _| first.contains_key(name));
        }
        expect!(again == first, "{method} {path}: {again} after {first}");
    }
    Ok(first)
}

/// The rows of all databases that contain the secret.
async fn secrets(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut rows = Vec::new();
    for shard in &cluster.status().shards {
        for table in ["account", "journal"] {
            let query = format!(
                "SELECT '{} {table} ' || t::text FROM {table} AS t WHERE t::text LIKE '%{SECRET}%'",
                shard.id
            );
            rows.extend(database::texts(&shard.dsn, &query).await?);
        }
    }
    Ok(rows)
}

/// Nothing is left of what was erased. A fold that was under way may have written the older text of an account again, until the next fold.
async fn nothing_is_left(cluster: &Cluster) -> anyhow::Result<()> {
    until("erased metadata is in no database", FOLDED_WITHIN, async || {
        let rows = secrets(cluster).await?;
        expect!(rows.is_empty(), "{rows:?}");
        Ok(Some(()))
    })
    .await
}

fn payment(id: Uuid, debit: &str, credit: &str, amount: &str, metadata: &Value) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "USD", "metadata": metadata})
}

fn slot(account: &str) -> (u32, u32) {
    let slot = u32::from(shard_map::slot_of(account).index());
    (slot, slot)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erased_metadata_is_in_no_database_and_everything_else_stays() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let client = cluster.client();
    let placement = cluster.placement()?;
    let (alice, shop) = (placement.account_on("s0", "alice", 0)?, placement.account_on("s0", "shop", 1)?);
    let bank = placement.account_on("s1", "bank", 0)?;
    ensure!(slot(&alice) != slot(&shop), "a move of one account must leave the other one");
    let body = json!({"id": alice, "asset": "USD", "overdraft": "50.00", "metadata": metadata()});
    send(&client, Method::POST, "/v1/accounts", Some(&body)).await?;
    send(&client, Method::PATCH, &account_path(&alice), Some(&json!({"metadata": {"moved": SECRET}}))).await?;
    for account in [&shop, &bank] {
        open_account(&client, account, "0.00").await?;
    }

    // A local transfer, one between shards, a refused one, a hold, and a capture of it.
    let [local, crossing, refused, hold, capture] = std::array::from_fn(|_| Uuid::now_v7());
    for (id, credit) in [(local, &shop), (crossing, &bank)] {
        let body = payment(id, &alice, credit, "1.00", &metadata());
        send(&client, Method::POST, "/v1/transfers", Some(&body)).await?;
    }
    let excessive = payment(refused, &alice, &shop, "1000.00", &metadata());
    let answer = client.call(0, Method::POST, "/v1/transfers", Some(&excessive)).await?;
    expect!(answer.code() == "insufficient_funds", "{}", answer.text());
    let held = payment(hold, &alice, &shop, "5.00", &metadata());
    send(&client, Method::POST, "/v1/holds", Some(&held)).await?;
    let body = json!({"id": capture, "amount": "2.00", "final": false});
    send(&client, Method::POST, &hold_path(hold, &alice, "/capture"), Some(&body)).await?;
    let rows = secrets(&cluster).await?;
    expect!(rows.len() >= 7, "{rows:?}");

    // The payer of the local transfer moves. A copy of the transfer's booking stays with its payee.
    let there = Movement::start(&cluster, "s0", "s1", slot(&alice)).await?;
    there.until("taken").await?;
    there.wish(MoveWishes { finish: Some(true), ..Default::default() }).await?;
    there.until("finished").await?;
    let statement = format!("{}/entries?include=metadata", account_path(&shop));
    let before = client.get(0, &statement).await?;
    expect!(before.to_string().contains(SECRET), "{before}");

    for id in [local, crossing, refused, capture] {
        erase(&client, &transfer_path(id, &alice, "/metadata"), &transfer_path(id, &alice, "")).await?;
    }
    erase(&client, &hold_path(hold, &alice, "/metadata"), &hold_path(hold, &alice, "")).await?;
    let account = erase(&client, &format!("{}/metadata", account_path(&alice)), &account_path(&alice)).await?;
    expect!(account["posted"] == "-4.00" && account["held"] == "3.00", "{account}");
    nothing_is_left(&cluster).await?;

    // Whatever the metadata of a repeated request is, it is answered with the first result.
    for metadata in [metadata(), json!({}), json!({"name": "Bob"})] {
        let body = payment(local, &alice, &shop, "1.00", &metadata);
        let answer = send(&client, Method::POST, "/v1/transfers", Some(&body)).await?;
        expect!(answer.status == 200 && answer.json()?["status"] == "posted", "{}", answer.text());
        let body = payment(hold, &alice, &shop, "5.00", &metadata);
        let answer = send(&client, Method::POST, "/v1/holds", Some(&body)).await?;
        expect!(answer.status == 200, "{}", answer.text());
    }
    let account = escaped(&alice);
    for list in [format!("/v1/transfers?account={account}&metadata=name"), statement.clone()] {
        let listed = client.get(1, &list).await?;
        expect!(!listed.to_string().contains(SECRET), "{listed}");
    }

    // A move spreads an erasure that reached only one of two copies.
    let copy = &cluster.status().shards[0].dsn;
    let undone =
        format!("UPDATE journal SET metadata = '{{\"name\":\"{SECRET}\"}}' WHERE id = '{local}' AND role = 1");
    database::run(copy, &undone).await?;
    let rows = secrets(&cluster).await?;
    expect!(rows.len() == 1, "{rows:?}");
    let back = Movement::start(&cluster, "s1", "s0", slot(&alice)).await?;
    back.until("taken").await?;
    nothing_is_left(&cluster).await?;

    // New metadata may be set, and erased while the account moves. Of this transfer, only the payee moves.
    let received = Uuid::now_v7();
    let body = payment(received, &alice, &shop, "1.00", &metadata());
    send(&client, Method::POST, "/v1/transfers", Some(&body)).await?;
    send(&client, Method::PATCH, &account_path(&shop), Some(&json!({"metadata": metadata()}))).await?;
    let later = Uuid::now_v7();
    let body = payment(later, &shop, &bank, "1.00", &metadata());
    send(&client, Method::POST, "/v1/transfers", Some(&body)).await?;
    let held = MoveWishes { hold_cutover: Some(true), ..Default::default() };
    let movement = Movement::start_as(&cluster, "s0", "s1", slot(&shop), held, None).await?;
    movement.until("catching up").await?;
    erase(&client, &transfer_path(later, &shop, "/metadata"), &transfer_path(later, &shop, "")).await?;
    erase(&client, &transfer_path(received, &alice, "/metadata"), &transfer_path(received, &alice, "")).await?;
    erase(&client, &format!("{}/metadata", account_path(&shop)), &account_path(&shop)).await?;
    movement.wish(MoveWishes { hold_cutover: Some(false), ..Default::default() }).await?;
    movement.until("taken").await?;
    nothing_is_left(&cluster).await?;

    for node in 0..2 {
        cluster.kill_and_recover(&[Member::Node(node)]).await?;
    }
    let found = client.get(0, &transfer_path(local, &alice, "")).await?;
    expect!(found["metadata"] == json!({}) && found["status"] == "posted", "{found}");
    let missing = client.call(0, Method::DELETE, &transfer_path(Uuid::now_v7(), &alice, "/metadata"), None).await?;
    expect!(missing.status == 404 && missing.code() == "transfer_not_found", "{}", missing.text());
    let entries = client.get(0, &format!("{}/entries", account_path(&alice))).await?;
    entries["data"].as_array().context("no entries")?;
    cluster.verify_and_finish().await
}
