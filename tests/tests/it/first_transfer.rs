//! The thin line through everything: two shards, two accounts, one cross-shard transfer over HTTP; a restart that keeps all
//! of it; and a checker that notices a cent too many.

use anyhow::{bail, ensure};
use http::Method;
use serde_json::json;
use testkit::{
    audit::all_folded, client::account_path, cluster::Cluster, database, history::ASSET, workload::open_account,
};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_moves_across_shards_and_survives_a_restart() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let (client, placement) = (cluster.client(), cluster.placement()?);
    let alice = placement.account_on("s0", "alice", 0)?;
    let bob = placement.account_on("s1", "bob", 0)?;
    open_account(&client, &alice, "unlimited").await?;
    open_account(&client, &bob, "0.00").await?;

    let id = Uuid::now_v7();
    let order = json!({"id": id, "debit": alice, "credit": bob, "amount": "12.34", "asset": ASSET});
    let first = client.call(0, Method::POST, "/v1/transfers", Some(&order)).await?;
    let answer = first.json()?;
    ensure!(first.status == 201 && answer["status"] == "posted" && answer["scope"] == "cross_shard", "{answer}");
    ensure!(answer["debit_account"]["posted"] == "-12.34", "{answer}");

    // Through the other router: the write is seen, with every step of it.
    let account = client.get(1, &account_path(&bob)).await?;
    ensure!(account["posted"] == "12.34" && account["shard"] == "s1", "{account}");
    let transfer = client.get(1, &format!("/v1/transfers/{id}")).await?;
    let steps: Vec<_> =
        transfer["steps"].as_array().into_iter().flatten().map(|s| (&s["step"], &s["shard"])).collect();
    let [s0, s1] = [json!("s0"), json!("s1")];
    let expected = [(&json!("reserve"), &s0), (&json!("decide"), &s1), (&json!("settle"), &s0)];
    ensure!(steps == expected, "{transfer}");
    cluster.verify().await?;

    // `down` looks that no process is left.
    cluster.down().await?;
    cluster.up().await?;
    let client = cluster.client();
    ensure!(client.get(0, &account_path(&bob)).await?["posted"] == "12.34", "the restart lost the money");
    let again = client.call(1, Method::POST, "/v1/transfers", Some(&order)).await?;
    ensure!(again.status == 200 && again.is_replay() && again.body == first.body, "{}", again.text());
    cluster.verify().await?;

    // A check that cannot fail proves nothing.
    all_folded(&cluster).await?;
    let shard = &cluster.status().shards[0];
    let tamper = "UPDATE account SET posted = posted + 1 WHERE id NOT LIKE '@%'";
    ensure!(database::run(&shard.dsn, tamper).await? == 1);
    match cluster.verify().await {
        Err(found) if found.to_string().contains("violations") => {}
        other => bail!("a cent was put into an account, and verify says {other:?}"),
    }
    let mend = "UPDATE account SET posted = posted - 1 WHERE id NOT LIKE '@%'";
    ensure!(database::run(&shard.dsn, mend).await? == 1);
    cluster.finish().await
}
