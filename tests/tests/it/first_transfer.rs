//! The thin line through everything: two shards, two accounts, one cross-shard transfer over HTTP.

use anyhow::ensure;
use serde_json::json;
use testkit::{client::account_path, cluster::Cluster, history::ASSET, workload::open_account};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_moves_across_shards_and_the_books_balance() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 2).await?;
    let (client, placement) = (cluster.client(), cluster.placement()?);
    let alice = placement.account_on("s0", "alice", 0)?;
    let bob = placement.account_on("s1", "bob", 0)?;
    open_account(&client, &alice, "unlimited").await?;
    open_account(&client, &bob, "0.00").await?;

    let id = Uuid::now_v7();
    let order = json!({"id": id, "debit": alice, "credit": bob, "amount": "12.34", "asset": ASSET});
    let answer = client.post(0, "/v1/transfers", &order).await?;
    ensure!(answer["status"] == "posted" && answer["scope"] == "cross_shard", "{answer}");
    ensure!(answer["debit_account"]["posted"] == "-12.34", "{answer}");

    // Through the other router: the write is seen, with every step of it.
    let account = client.get(1, &account_path(&bob)).await?;
    ensure!(account["posted"] == "12.34" && account["shard"] == "s1", "{account}");
    let transfer = client.get(1, &format!("/v1/transfers/{id}")).await?;
    let steps: Vec<_> =
        transfer["steps"].as_array().into_iter().flatten().map(|s| (&s["step"], &s["shard"])).collect();
    ensure!(
        steps
            == [
                (&json!("reserve"), &json!("s0")),
                (&json!("decide"), &json!("s1")),
                (&json!("settle"), &json!("s0"))
            ],
        "{transfer}"
    );
    cluster.verify().await?;
    cluster.finish().await
}
