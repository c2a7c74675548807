//! Tests of the answers when a bound is reached, when a shard cannot be reached, and when a shard does not answer.

use std::time::Duration;

use anyhow::{bail, ensure};
use futures_util::future::{join_all, join4};
use serde_json::{Value, json};
use testkit::{audit::sagas_end, client::account_path, cluster::Member, programs::free_port, wait::until};
use uuid::Uuid;

use super::{
    api::Call,
    batches::results,
    callers::OwnRouter,
    stage::{Stage, order, terms},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// The deadline of requests that are answered only when it has passed. Even a busy machine does everything else before.
const DEADLINE_MS: &str = "4000";
/// The number of requests at the same time to a router that admits one a second, and four at the same time.
const TOO_MANY: usize = 50;
/// The number of transfers with deadlines of a few milliseconds.
const IMPATIENT: usize = 80;
/// The index of the shard that one router does not reach.
const LOST: usize = 2;
/// The index of the shard that does not answer.
const SILENT: usize = 1;

/// A client whose time limit is too short gets correct answers. An order that was answered with `executed: false` is never executed. Every
/// other order has a definite answer when it is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_a_short_time_limit_learns_what_happened() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let impatient = Impatient::order(&stage).await?;
    impatient.come_back(&stage).await?;
    stage.finish().await
}

/// Orders with time limits of a few milliseconds.
struct Impatient {
    payer: String,
    /// Whether the order was answered "not executed", and its body.
    orders: Vec<(bool, Value)>,
}

impl Impatient {
    async fn order(stage: &Stage) -> anyhow::Result<Self> {
        let payer = stage.account(0, "USD overdraft=unlimited").await?;
        let payees = [stage.account(0, "USD").await?, stage.account(1, "USD").await?];
        let sent = (0..IMPATIENT).map(async |n| {
            let body = terms(Uuid::now_v7(), &payer, &payees[n % 2], "0.01", "USD");
            let call = Call::post("/v1/transfers", &body).header("x-request-timeout-ms", (n / 4 + 1).to_string());
            anyhow::Ok((stage.api.send_once(call).await?, body))
        });
        let mut orders = Vec::new();
        for answered in join_all(sent).await {
            let (reply, body) = answered?;
            let not_executed = match reply.status {
                // The deadline passed before the body had arrived, or before the order's turn came.
                408 | 503 => true,
                201 | 202 | 504 => false,
                _ => bail!("answered {} {}", reply.status, reply.body),
            };
            orders.push((not_executed, body));
        }
        Ok(Self { payer, orders })
    }

    async fn come_back(self, stage: &Stage) -> anyhow::Result<()> {
        sagas_end(&stage.cluster).await?;
        let mut paid = 0;
        for (not_executed, body) in self.orders {
            let path = format!("/v1/transfers/{}", body["id"].as_str().unwrap_or_default());
            let found = stage.api.send(Call::get(&path)).await?;
            if not_executed {
                found.expect("404 transfer_not_found")?;
                continue;
            }
            let expected = if found.status == 200 { "200 posted replayed" } else { "201 posted" };
            stage.api.expect(Call::post("/v1/transfers", &body), expected).await?;
            paid += 1;
        }
        let there = stage.posted(&self.payer).await?;
        let sum = if paid == 0 { "0.00".to_owned() } else { format!("-0.{paid:02}") };
        ensure!(there == sum, "{paid} cents were paid, but the account holds {there}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_the_rate_of_a_router_are_refused() -> anyhow::Result<()> {
    let stage = Stage::quiet().await?;
    let map = std::fs::read_to_string(stage.cluster.shard_map_path())?;
    let router = OwnRouter::start(&map, "[limits]\nrequests_per_second = 1\nburst = 4\n").await?;
    let sent = join_all((0..TOO_MANY).map(|_| router.api.send_once(Call::get("/v1/accounts/nobody")))).await;
    let mut refused = 0;
    for reply in sent {
        let reply = reply?;
        if reply.status == 429 {
            reply.expect("429 rate_limited")?;
            refused += 1;
        }
    }
    ensure!(refused > 0, "{TOO_MANY} requests at once were all admitted");
    drop(router);
    stage.finish().await
}

/// One router has a wrong address of the shard. The other routers have the right one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_out_of_reach_of_a_router_is_unavailable_and_nothing_is_executed() -> anyhow::Result<()> {
    let stage = Stage::quiet().await?;
    let map = std::fs::read_to_string(stage.cluster.shard_map_path())?;
    let node = &stage.cluster.status().shards[LOST].node_url;
    ensure!(map.contains(node.as_str()), "{node} is not in the map");
    let router =
        OwnRouter::start(&map.replace(node.as_str(), &format!("http://127.0.0.1:{}", free_port()?)), "").await?;
    let here = stage.account(0, "USD posted=10").await?;
    let neighbour = stage.account(0, "USD").await?;
    let there = [stage.account(LOST, "USD posted=10").await?, stage.account(LOST, "USD").await?];
    let send = |call: Call| router.api.send_once(call);
    let unavailable = "503 shard_unavailable";

    let lost = order(&there[0], &there[1], "1", "USD");
    send(lost.clone()).await?.expect(unavailable)?;
    send(order(&there[0], &here, "1", "USD")).await?.expect(unavailable)?;
    let path = account_path(&there[0]);
    for rest in ["", "/entries", "/balance"] {
        send(Call::get(&format!("{path}{rest}"))).await?.expect(unavailable)?;
    }
    send(Call::patch(&path, &json!({"status": "frozen"}))).await?.expect(unavailable)?;
    let newcomer = json!({"id": stage.name(LOST)?, "asset": "USD"});
    send(Call::post("/v1/accounts", &newcomer)).await?.expect(unavailable)?;
    // A list without the shard's accounts would look complete, so it is refused. A sum names the missing shard.
    let sums_of = |account: &str| Call::get(&account_path(account).replace("/accounts/", "/balances?prefix="));
    for query in ["", "?prefix=nobody", "?limit=1"] {
        send(Call::get(&format!("/v1/accounts{query}"))).await?.expect(unavailable)?;
    }
    let sums = send(sums_of(&here)).await?.expect("200")?.body;
    expect!(sums["partial"] == true && sums["missing_shards"] == json!([format!("s{LOST}")]), "{sums}");
    expect!(sums["data"][0]["posted"] == "10.00" && sums["data"][0]["accounts"] == 1, "{sums}");
    let sums = send(sums_of(&there[0])).await?.expect("200")?.body;
    expect!(sums["partial"] == true && sums["data"] == json!([]), "{sums}");
    // Without the shard, no router can know that there is no such transfer.
    send(Call::get(&format!("/v1/transfers/{}", Uuid::now_v7()))).await?.expect(unavailable)?;
    // Transfers that do not need the shard are posted.
    send(order(&here, &neighbour, "1", "USD")).await?.expect("201 posted")?;
    let items = [
        terms(Uuid::now_v7(), &here, &neighbour, "1", "USD"),
        terms(Uuid::now_v7(), &there[0], &there[1], "1", "USD"),
        terms(Uuid::now_v7(), &neighbour, &here, "1", "USD"),
    ];
    let batch = send(Call::post("/v1/transfers:batch", &json!({"transfers": items}))).await?.expect("200")?;
    let found = results(&batch.body, &items)?;
    expect!(found == ["posted", "failed shard_unavailable", "posted"], "{found:?}");
    // The router knows that it cannot reach the shard, so it reserves no money for the shard.
    let crossing = order(&here, &there[0], "1", "USD");
    send(crossing.clone()).await?.expect(unavailable)?;
    drop(router);
    stage.api.expect(crossing, "201 posted").await?;
    // No refused order was executed. The same id is posted now.
    stage.api.expect(lost, "201 posted").await?;
    stage.api.expect(Call::get(&path), "200 open").await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_does_not_answer_leaves_an_outcome_unknown_until_it_is_back() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let payer = stage.account(0, "USD posted=10").await?;
    let there = [stage.account(SILENT, "USD posted=10").await?, stage.account(SILENT, "USD").await?];
    let node = stage.cluster.process(Member::Node(SILENT))?;
    let (local, crossing) = (
        terms(Uuid::now_v7(), &there[0], &there[1], "1", "USD"),
        terms(Uuid::now_v7(), &payer, &there[1], "1", "USD"),
    );
    let send = |call: Call| stage.api.send_once(call.header("x-request-timeout-ms", DEADLINE_MS));
    let order = |body: &Value| send(Call::post("/v1/transfers", body));
    node.freeze().await?;
    let (pending, unknown, sums, list) = join4(
        order(&crossing),
        order(&local),
        send(Call::get("/v1/balances?prefix=nobody")),
        send(Call::get("/v1/accounts?prefix=nobody")),
    )
    .await;
    node.thaw()?;
    let (pending, unknown) = (pending?.expect("202 pending")?, unknown?.expect("504 outcome_unknown")?);
    let sums = sums?.expect("200")?.body;
    expect!(sums["partial"] == true && sums["missing_shards"] == json!([format!("s{SILENT}")]), "{sums}");
    list?.expect("503 shard_unavailable")?;
    expect!(unknown.body["transfer_id"] == local["id"], "{}", unknown.body);
    expect!(
        pending.body["posted_at"].is_null() && pending.body["debit_account"]["posted"] == "9.00",
        "{}",
        pending.body
    );
    // The same id, sent again, has a definite answer.
    until("the unknown outcome is known", PATIENCE, async || {
        let reply = stage.api.send(Call::post("/v1/transfers", &local)).await?;
        Ok(["200 posted replayed", "201 posted"].contains(&reply.summary().as_str()).then_some(()))
    })
    .await?;
    ends(&stage, &crossing, pending.header("location")).await?;
    ensure!(stage.posted(&there[1]).await? == "2.00", "the payment did not take effect exactly once");
    stage.finish().await
}

/// The pending transfer is posted, is found at its location, and is replayed as posted.
async fn ends(stage: &Stage, body: &Value, location: &str) -> anyhow::Result<()> {
    until("the transfer is posted", PATIENCE, async || {
        let found = stage.api.send(Call::get(location)).await?;
        Ok((found.summary() == "200 posted").then_some(()))
    })
    .await?;
    let replay = stage.api.expect(Call::post("/v1/transfers", body), "200 posted replayed").await?;
    expect!(replay.body["posted_at"].is_string(), "{}", replay.body);
    Ok(())
}
