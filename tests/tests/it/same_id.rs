//! One id, many requests at one instant through two routers: one effect, one answer; and other content under the id is
//! refused with the name of the field that differs.

use std::{collections::HashSet, sync::Arc};

use anyhow::ensure;
use http::Method;
use serde_json::{Value, json};
use testkit::{audit::sagas_end, client::Client, cluster::Cluster, database, history::ASSET, workload::open_account};
use tokio::{sync::Barrier, task::JoinSet};
use uuid::Uuid;

const AT_ONCE: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_one_instant_move_money_once_and_get_one_answer() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 2).await?;
    let (client, placement) = (Arc::new(cluster.client()), cluster.placement()?);
    let payer = placement.account_on("s0", "payer", 0)?;
    open_account(&client, &payer, "1000.00").await?;
    let other_payer = placement.account_on("s0", "payer", 1)?;
    open_account(&client, &other_payer, "1000.00").await?;

    for (scope, payee_shard, other_shard) in [("local", "s0", "s1"), ("cross_shard", "s1", "s0")] {
        let payee = placement.account_on(payee_shard, "payee", 0)?;
        let other_payee = placement.account_on(payee_shard, "payee", 1)?;
        open_account(&client, &payee, "0.00").await?;
        open_account(&client, &other_payee, "0.00").await?;
        let order = json!({
            "id": Uuid::now_v7(), "debit": payer, "credit": payee, "amount": "7.00", "asset": ASSET,
            "metadata": {"invoice": "1"},
        });

        let bodies = send_at_once(&client, &order).await?;
        let different: HashSet<&String> = bodies.iter().collect();
        ensure!(different.len() == 1, "{scope}: {} different answers: {different:?}", different.len());
        let body: Value = serde_json::from_str(&bodies[0])?;
        ensure!(body["status"] == "posted" && body["scope"] == scope, "{body}");
        ensure!(balance(&client, &payee).await? == "7.00", "{scope}: the money moved more than once, or not at all");

        for (field, value) in [
            ("credit", json!(other_payee)),
            // Where the accounts live makes no difference.
            ("credit", json!(placement.account_on(other_shard, "payee", 2)?)),
            ("amount", json!("7.01")),
            ("asset", json!("EUR")),
            ("metadata", json!({"invoice": "2"})),
        ] {
            let mut other = order.clone();
            other[field] = value;
            let router = client.next_router();
            let answer = client.call(router, Method::POST, "/v1/transfers", Some(&other)).await?;
            ensure!(answer.status == 422 && answer.code() == "idempotency_mismatch", "{field}: {}", answer.text());
            ensure!(answer.json()?["field"] == field, "{field}: {}", answer.text());
        }
        // The first result stays replayable.
        let again = client.call(client.next_router(), Method::POST, "/v1/transfers", Some(&order)).await?;
        ensure!(again.is_replay() && again.status == 200 && again.text() == bodies[0], "{}", again.text());
        ensure!(balance(&client, &payee).await? == "7.00", "{scope}: a mismatch had an effect");
    }

    // An id belongs to its debit account: with another payer it is another transfer.
    let id = Uuid::now_v7();
    let payee = placement.account_on("s1", "payee", 0)?;
    for debit in [&payer, &other_payer] {
        let order = json!({"id": id, "debit": debit, "credit": payee, "amount": "1.00", "asset": ASSET});
        ensure!(client.post(0, "/v1/transfers", &order).await?["status"] == "posted");
    }
    let ambiguous = client.call(0, Method::GET, &format!("/v1/transfers/{id}"), None).await?;
    ensure!(ambiguous.status == 409 && ambiguous.code() == "ambiguous_id", "{}", ambiguous.text());

    sagas_end(&cluster).await?;
    let stored = database::number(&cluster.status().shards[0].dsn, "SELECT count(*) FROM transfer").await?;
    ensure!(stored == 4, "{stored} transfers are stored");
    cluster.verify().await?;
    cluster.finish().await
}

/// All requests leave when the last one is ready; gives the bodies of the answers.
async fn send_at_once(client: &Arc<Client>, order: &Value) -> anyhow::Result<Vec<String>> {
    let start = Arc::new(Barrier::new(AT_ONCE));
    let mut requests = JoinSet::new();
    for index in 0..AT_ONCE {
        let (client, start, order) = (client.clone(), start.clone(), order.clone());
        requests.spawn(async move {
            start.wait().await;
            client.call(index % client.routers(), Method::POST, "/v1/transfers", Some(&order)).await
        });
    }
    let mut bodies = Vec::new();
    while let Some(answer) = requests.join_next().await {
        let answer = answer??;
        ensure!(matches!(answer.status, 200 | 201), "{}: {}", answer.status, answer.text());
        bodies.push(answer.text());
    }
    ensure!(bodies.len() == AT_ONCE);
    Ok(bodies)
}

async fn balance(client: &Client, account: &str) -> anyhow::Result<String> {
    let path = testkit::client::account_path(account);
    let account = client.get(client.next_router(), &path).await?;
    Ok(account["posted"].as_str().unwrap_or_default().to_owned())
}
