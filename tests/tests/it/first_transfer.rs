//! One path through the whole system: a cross-shard transfer over HTTP, a restart that keeps it, and a checker that notices one cent too
//! many.

use anyhow::{bail, ensure};
use http::Method;
use serde_json::json;
use testkit::{
    audit::all_folded, client::account_path, cluster::Cluster, database, history::payment_body,
    workload::open_payer_and_payee,
};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_moves_across_shards_and_survives_a_restart() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let (client, placement) = (cluster.client(), cluster.placement()?);
    let (alice, bob) = open_payer_and_payee(&client, &placement, ("s0", "alice"), ("s1", "bob")).await?;

    let id = Uuid::now_v7();
    let order = payment_body(id, &alice, &bob, "12.34");
    let first = client.call(0, Method::POST, "/v1/transfers", Some(&order)).await?;
    let answer = first.json()?;
    expect!(first.status == 201 && answer["status"] == "posted" && answer["scope"] == "cross_shard", "{answer}");
    expect!(answer["debit_account"]["posted"] == "-12.34", "{answer}");

    // The other router shows the transfer with all its steps.
    let account = client.get(1, &account_path(&bob)).await?;
    expect!(account["posted"] == "12.34" && account["shard"] == "s1", "{account}");
    let transfer = client.get(1, &format!("/v1/transfers/{id}")).await?;
    let steps: Vec<_> =
        transfer["steps"].as_array().into_iter().flatten().map(|s| (&s["step"], &s["shard"])).collect();
    let [s0, s1] = [json!("s0"), json!("s1")];
    let expected = [(&json!("reserve"), &s0), (&json!("decide"), &s1), (&json!("settle"), &s0)];
    expect!(steps == expected, "{transfer}");
    cluster.verify().await?;

    // `down` checks that no process is left.
    cluster.down().await?;
    cluster.up().await?;
    let client = cluster.client();
    ensure!(client.get(0, &account_path(&bob)).await?["posted"] == "12.34", "the restart lost the money");
    let again = client.call(1, Method::POST, "/v1/transfers", Some(&order)).await?;
    expect!(again.status == 200 && again.is_replay() && again.body == first.body, "{}", again.text());
    cluster.verify().await?;

    // The check must be able to fail, so the test puts a cent into an account.
    all_folded(&cluster).await?;
    let shard = &cluster.status().shards[0];
    let tamper = "UPDATE account SET posted = posted + 1 WHERE id NOT LIKE '@%'";
    ensure!(database::run(&shard.dsn, tamper).await? == 1);
    match cluster.verify().await {
        Err(found) if found.to_string().contains("violations") => {}
        other => bail!("verify must find the cent that was put into an account, but it says {other:?}"),
    }
    let mend = "UPDATE account SET posted = posted - 1 WHERE id NOT LIKE '@%'";
    ensure!(database::run(&shard.dsn, mend).await? == 1);
    cluster.finish().await
}
