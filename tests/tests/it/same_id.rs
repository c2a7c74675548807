//! One id, many requests at one instant through two routers: one effect, one answer; and other content under the id is
//! refused with the name of the field that differs.

use std::collections::HashSet;

use anyhow::ensure;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use testkit::{
    audit::sagas_end,
    client::{Answer, Client, account_path},
    cluster::{Cluster, Placement},
    database,
    history::ASSET,
    section::section,
    tables,
};
use tokio::sync::Barrier;
use uuid::Uuid;

const AT_ONCE: usize = 50;
const PAYER_SHARD: &str = "s0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_is_one_transfer() -> anyhow::Result<()> {
    let cluster = Cluster::start(3, 2).await?;
    let api = Api { cluster: &cluster, client: cluster.client(), placement: cluster.placement()? };
    section("local", fifty_at_one_instant_get_one_answer(&api, PAYER_SHARD)).await?;
    section("across shards", fifty_at_one_instant_get_one_answer(&api, "s1")).await?;
    section("other payer", an_id_belongs_to_its_debit_account(&api)).await?;
    sagas_end(&cluster).await?;
    cluster.verify().await?;
    cluster.finish().await
}

struct Api<'a> {
    cluster: &'a Cluster,
    client: Client,
    placement: Placement,
}

impl Api<'_> {
    /// Opens an account on a shard and gives its id.
    async fn open(&self, shard: &str, name: &str, overdraft: &str) -> anyhow::Result<String> {
        let id = self.placement.account_on(shard, name, 0)?;
        testkit::workload::open_account(&self.client, &id, overdraft).await?;
        Ok(id)
    }

    async fn posted(&self, account: &str) -> anyhow::Result<String> {
        let account = self.client.get(self.client.next_router(), &account_path(account)).await?;
        let posted = account["posted"].as_str().unwrap_or_default().to_owned();
        ensure!(!posted.is_empty(), "{account}");
        Ok(posted)
    }
}

async fn fifty_at_one_instant_get_one_answer(api: &Api<'_>, payee_shard: &str) -> anyhow::Result<()> {
    let scope = if payee_shard == PAYER_SHARD { "local" } else { "cross_shard" };
    let payer = api.open(PAYER_SHARD, &format!("{scope}.payer"), "1000.00").await?;
    let payee = api.open(payee_shard, &format!("{scope}.payee"), "0.00").await?;
    let other_payee = api.open(payee_shard, &format!("{scope}.other"), "0.00").await?;
    let id = Uuid::now_v7();
    let order = json!({
        "id": id, "debit": payer, "credit": payee, "amount": "7.00", "asset": ASSET, "metadata": {"invoice": "1"},
    });

    let bodies = send_at_once(api, &order).await?;
    let different: HashSet<&String> = bodies.iter().collect();
    ensure!(different.len() == 1, "{} different answers: {different:?}", different.len());
    let body: Value = serde_json::from_str(&bodies[0])?;
    ensure!(body["status"] == "posted" && body["scope"] == scope, "{body}");
    ensure!(api.posted(&payee).await? == "7.00", "the money moved more than once, or not at all");

    // Where the other account lives makes no difference.
    let elsewhere = if payee_shard == PAYER_SHARD { "s1" } else { PAYER_SHARD };
    for (field, value) in [
        ("credit", json!(other_payee)),
        ("credit", json!(api.placement.account_on(elsewhere, "nobody", 0)?)),
        ("amount", json!("7.01")),
        ("asset", json!("EUR")),
        ("metadata", json!({"invoice": "2"})),
    ] {
        let mut other = order.clone();
        other[field] = value;
        let answer = send(api, &other).await?;
        ensure!(answer.status == 422 && answer.code() == "idempotency_mismatch", "{field}: {}", answer.text());
        ensure!(answer.json()?["field"] == field, "{field}: {}", answer.text());
    }
    // The first result stays replayable.
    let again = send(api, &order).await?;
    ensure!(again.is_replay() && again.status == 200 && again.text() == bodies[0], "{}", again.text());
    ensure!(api.posted(&payee).await? == "7.00", "a mismatch had an effect");
    let stored = format!("SELECT count(*) FROM {} WHERE id = '{id}'", tables::TRANSFERS);
    for (shard, expected) in api.cluster.status().shards.iter().zip([1, 0, 0]) {
        ensure!(database::number(&shard.dsn, &stored).await? == expected, "on {}", shard.id);
    }
    Ok(())
}

/// With another payer it is another transfer.
async fn an_id_belongs_to_its_debit_account(api: &Api<'_>) -> anyhow::Result<()> {
    let payee = api.open("s1", "id.payee", "0.00").await?;
    let id = Uuid::now_v7();
    for shard in ["s0", "s2"] {
        let payer = api.open(shard, "id.payer", "unlimited").await?;
        let order = json!({"id": id, "debit": payer, "credit": payee, "amount": "1.00", "asset": ASSET});
        let answer = send(api, &order).await?;
        ensure!(answer.status == 201, "{}", answer.text());
    }
    ensure!(api.posted(&payee).await? == "2.00");
    let ambiguous = api.client.call(0, Method::GET, &format!("/v1/transfers/{id}"), None).await?;
    ensure!(ambiguous.status == 409 && ambiguous.code() == "ambiguous_id", "{}", ambiguous.text());
    Ok(())
}

async fn send(api: &Api<'_>, order: &Value) -> anyhow::Result<Answer> {
    Ok(api.client.call(api.client.next_router(), Method::POST, "/v1/transfers", Some(order)).await?)
}

/// All requests leave when the last one is ready; gives the bodies of the answers.
async fn send_at_once(api: &Api<'_>, order: &Value) -> anyhow::Result<Vec<String>> {
    let start = Barrier::new(AT_ONCE);
    let requests = (0..AT_ONCE).map(async |_| {
        start.wait().await;
        send(api, order).await
    });
    let mut bodies = Vec::new();
    for answer in join_all(requests).await {
        let answer = answer?;
        ensure!(matches!(answer.status, 200 | 201), "{}: {}", answer.status, answer.text());
        // One request did it, all others replayed it.
        ensure!((answer.status == 200) == answer.is_replay(), "{}: {}", answer.status, answer.text());
        bodies.push(answer.text());
    }
    Ok(bodies)
}
