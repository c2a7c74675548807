//! Tests of sums as of a time. A node computes them slice by slice, so that a long sum keeps no other read waiting.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use testkit::{
    audit::all_folded,
    client::{Client, account_path},
    cluster::Cluster,
    database,
    history::{ASSET, payment_body},
    wait::until,
};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);
/// The number of accounts of each kind. It is larger than the first slice of a sum.
const ACCOUNTS: usize = 600;

fn payer(number: usize) -> String {
    format!("payer:{number:04}")
}

fn payee(number: usize) -> String {
    format!("payee:{number:04}")
}

async fn batch(client: &Client, path: &str, member: &str, items: Vec<Value>) -> anyhow::Result<()> {
    let answer = client.post(0, path, &json!({ member: items })).await?;
    let results = answer["results"].as_array().with_context(|| answer.to_string())?;
    let bad = results.iter().find(|result| !result["code"].is_null());
    expect!(bad.is_none() && results.len() >= ACCOUNTS, "{bad:?}");
    Ok(())
}

/// Lets every payer pay 1.00.
async fn pay_all(client: &Client) -> anyhow::Result<()> {
    let order = |number| payment_body(Uuid::now_v7(), &payer(number), &payee(number), "1.00");
    batch(client, "/v1/transfers:batch", "transfers", (0..ACCOUNTS).map(order).collect()).await
}

fn sum_of(answer: &Value) -> anyhow::Result<(String, u64)> {
    expect!(answer["partial"] == false, "{answer}");
    let sum = &answer["data"][0];
    let posted = sum["posted"].as_str().with_context(|| answer.to_string())?;
    Ok((posted.to_owned(), sum["accounts"].as_u64().with_context(|| answer.to_string())?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sum_as_of_a_time_that_takes_long_keeps_no_other_read_waiting() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let client = cluster.client();
    let accounts = (0..ACCOUNTS).flat_map(|number| [payer(number), payee(number)]);
    let accounts = accounts.map(|id| json!({"id": id, "asset": ASSET, "overdraft": "unlimited"}));
    batch(&client, "/v1/accounts:batch", "accounts", accounts.collect()).await?;
    pay_all(&client).await?;
    // A time in the future means the time of the request.
    let then = client.get(0, "/v1/balances?prefix=payee:&at=2100-01-01T00:00:00Z").await?;
    expect!(sum_of(&then)? == ("600.00".to_owned(), ACCOUNTS as u64), "{then}");
    let at = then["at"].as_str().with_context(|| format!("expected at in {then}"))?;
    pay_all(&client).await?;
    all_folded(&cluster).await?;
    let path = format!("/v1/balances?prefix=payee:&at={at}");
    ensure!(sum_of(&client.get(0, &path).await?)? == ("600.00".to_owned(), ACCOUNTS as u64));

    // The test locks the waypoints, so that no session can read them and every sum waits.
    let dsn = cluster.status().shards[0].dsn.clone();
    let mut holder = database::connect(&dsn).await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE waypoint IN ACCESS EXCLUSIVE MODE").execute(&mut holder).await?;
    let others = async {
        until("a sum waits for the waypoints", PATIENCE, async || {
            let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                           WHERE NOT l.granted AND l.relation = 'waypoint'::regclass AND a.application_name = 'shardledger-reads'";
            Ok((database::number(&dsn, waiting).await? > 0).then_some(()))
        })
        .await?;
        let now = cluster.client().with_timeout(PATIENCE / 2).get(0, "/v1/balances?prefix=payee:").await?;
        expect!(sum_of(&now)? == ("1200.00".to_owned(), ACCOUNTS as u64), "{now}");
        ensure!(client.get(0, &account_path(&payee(0))).await?["posted"] == "2.00");
        // A request with a shorter time limit is refused if its turn does not come.
        ends_early(&cluster, &path, &["before the shard's turn came"]).await?;
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await?;
        anyhow::Ok(())
    };
    // A request with a shorter time limit that has its turn is refused with the advice what to do.
    ends_early(&cluster, &path, &["X-Request-Timeout-Ms", "part by part"]).await?;
    // The test asks for more sums than a router asks a shard for at the same time.
    let slow = join_all((0..5).map(|_| client.get(0, &path)));
    let (slow, others) = tokio::join!(slow, others);
    others?;
    // The sums have kept their places, and end once the waypoints can be read.
    for sum in slow {
        ensure!(sum_of(&sum?)? == ("600.00".to_owned(), ACCOUNTS as u64));
    }
    drop(holder);
    cluster.verify_and_finish().await
}

/// Asks for a sum with a time limit of three seconds, in which it cannot end, and checks that the problem has these texts.
async fn ends_early(cluster: &Cluster, path: &str, expected: &[&str]) -> anyhow::Result<()> {
    let brief = cluster.client().with_timeout(Duration::from_secs(3)).call(0, Method::GET, path, None).await?;
    let problem = brief.json()?;
    let says = problem["detail"].as_str().unwrap_or_default();
    expect!(brief.status == 503 && problem["retryable"] == true && problem["executed"] == false, "{problem}");
    expect!(expected.iter().all(|expected| says.contains(expected)), "{problem}");
    expect!(brief.headers.contains_key("retry-after"), "{:?}", brief.headers);
    Ok(())
}
