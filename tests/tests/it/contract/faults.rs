//! What a client is told when something does not work: a bound, a shard out of reach, a shard that does not answer.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use futures_util::future::{join, join_all, join4};
use serde_json::{Value, json};
use testkit::{
    audit::sagas_end, client::account_path, cluster::Member, leash::Leashed, node::Folder, ports, programs::program,
    wait::until,
};
use uuid::Uuid;

use super::{
    api::{Api, Call},
    batches::results,
    stage::{Findings, Stage, order, terms},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// The deadline of what can only be answered when it has passed: enough for a busy machine to do everything else before.
const DEADLINE_MS: &str = "4000";
/// Requests at once where one a second is let in, and four at once.
const TOO_MANY: usize = 50;
/// Transfers ordered with deadlines of a few milliseconds.
const IMPATIENT: usize = 80;
/// The shard that one router cannot reach.
const LOST: usize = 2;
/// The shard that does not answer.
const SILENT: usize = 1;

/// The silent shard after the lost one: what is missing from a sum would depend on both.
pub async fn are_told_as_what_they_are(stage: &Stage) -> anyhow::Result<()> {
    let impatient = Impatient::order(stage).await.context("impatient clients")?;
    let (bound, lost) = join(too_many_requests(stage), a_shard_out_of_reach(stage)).await;
    let silent = a_shard_that_does_not_answer(stage).await;
    let mut findings = Findings::default();
    findings.note("too many requests", bound);
    findings.note("a shard out of reach", lost);
    findings.note("a shard that does not answer", silent);
    findings.note("impatient clients", impatient.come_back(stage).await);
    findings.conclude()
}

/// Clients that wait for next to nothing. They are told what happened all the same: `executed: false` is kept for ever, and
/// everything else is answered for certain when sent again.
struct Impatient {
    payer: String,
    /// Each with whether it was answered "not executed".
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
                // The deadline passed before the body was there, or before the order's turn came.
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
        ensure!(there == sum, "{paid} cents were paid, and {there} is there");
        Ok(())
    }
}

async fn too_many_requests(stage: &Stage) -> anyhow::Result<()> {
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
    ensure!(refused > 0, "{TOO_MANY} requests at once were all let in");
    Ok(())
}

/// A router that looks for the shard where it is not. The others know better.
async fn a_shard_out_of_reach(stage: &Stage) -> anyhow::Result<()> {
    let map = std::fs::read_to_string(stage.cluster.shard_map_path())?;
    let node = &stage.cluster.status().shards[LOST].node_url;
    ensure!(map.contains(node.as_str()), "{node} is not in the map");
    let router =
        OwnRouter::start(&map.replace(node.as_str(), &format!("http://127.0.0.1:{}", ports::free()?)), "").await?;
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
    // A list with holes would look like a whole one; a sum says what is missing.
    let sums_of = |account: &str| Call::get(&account_path(account).replace("/accounts/", "/balances?prefix="));
    for query in ["", "?prefix=nobody", "?limit=1"] {
        send(Call::get(&format!("/v1/accounts{query}"))).await?.expect(unavailable)?;
    }
    let sums = send(sums_of(&here)).await?.expect("200")?.body;
    ensure!(sums["partial"] == true && sums["missing_shards"] == json!([format!("s{LOST}")]), "{sums}");
    ensure!(sums["data"][0]["posted"] == "10.00" && sums["data"][0]["accounts"] == 1, "{sums}");
    let sums = send(sums_of(&there[0])).await?.expect("200")?.body;
    ensure!(sums["partial"] == true && sums["data"] == json!([]), "{sums}");
    // Nobody can say that there is no such transfer.
    send(Call::get(&format!("/v1/transfers/{}", Uuid::now_v7()))).await?.expect(unavailable)?;
    // What does not need the shard goes on.
    send(order(&here, &neighbour, "1", "USD")).await?.expect("201 posted")?;
    let items = [
        terms(Uuid::now_v7(), &here, &neighbour, "1", "USD"),
        terms(Uuid::now_v7(), &there[0], &there[1], "1", "USD"),
        terms(Uuid::now_v7(), &neighbour, &here, "1", "USD"),
    ];
    let batch = send(Call::post("/v1/transfers:batch", &json!({"transfers": items}))).await?.expect("200")?;
    let found = results(&batch.body, &items)?;
    ensure!(found == ["posted", "failed shard_unavailable", "posted"], "{found:?}");
    // The router knows that the shard is cut off, so that no money is reserved for it.
    let crossing = order(&here, &there[0], "1", "USD");
    send(crossing.clone()).await?.expect(unavailable)?;
    drop(router);
    stage.api.expect(crossing, "201 posted").await?;
    // Nothing of the rest was executed, and the same id does it now.
    stage.api.expect(lost, "201 posted").await?;
    stage.api.expect(Call::get(&path), "200 open").await?;
    Ok(())
}

async fn a_shard_that_does_not_answer(stage: &Stage) -> anyhow::Result<()> {
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
    ensure!(sums["partial"] == true && sums["missing_shards"] == json!([format!("s{SILENT}")]), "{sums}");
    list?.expect("503 shard_unavailable")?;
    ensure!(unknown.body["transfer_id"] == local["id"], "{}", unknown.body);
    ensure!(
        pending.body["posted_at"].is_null() && pending.body["debit_account"]["posted"] == "9.00",
        "{}",
        pending.body
    );
    // The same id sent again tells.
    until("the unknown outcome is known", PATIENCE, async || {
        let reply = stage.api.send(Call::post("/v1/transfers", &local)).await?;
        Ok(["200 posted replayed", "201 posted"].contains(&reply.summary().as_str()).then_some(()))
    })
    .await?;
    ends(stage, &crossing, pending.header("location")).await?;
    ensure!(stage.posted(&there[1]).await? == "2.00", "paid more than once, or less");
    Ok(())
}

/// A pending transfer comes to its end, where it was said to be found; and its replay is the end's.
async fn ends(stage: &Stage, body: &Value, location: &str) -> anyhow::Result<()> {
    until("the transfer is posted", PATIENCE, async || {
        let found = stage.api.send(Call::get(location)).await?;
        Ok((found.summary() == "200 posted").then_some(()))
    })
    .await?;
    let replay = stage.api.expect(Call::post("/v1/transfers", body), "200 posted replayed").await?;
    ensure!(replay.body["posted_at"].is_string(), "{}", replay.body);
    Ok(())
}

/// A router of the test's own, with settings of its own.
struct OwnRouter {
    api: Api,
    _process: Leashed,
    _folder: Folder,
}

impl OwnRouter {
    async fn start(map: &str, settings: &str) -> anyhow::Result<Self> {
        let folder = Folder::create()?;
        let (port, admin_port) = (ports::free()?, ports::free()?);
        let file = folder.path().join("router.toml");
        std::fs::write(folder.path().join("map.toml"), map)?;
        std::fs::write(
            &file,
            format!(
                "[http]\nlisten = \"127.0.0.1:{port}\"\n[admin]\nlisten = \"127.0.0.1:{admin_port}\"\n\
                 [map]\npath = \"map.toml\"\n{settings}"
            ),
        )?;
        let log = std::fs::File::create(folder.path().join("router.log"))?;
        let mut command = Command::new(program("router")?);
        command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Leashed::spawn(command)?;
        let url = format!("http://127.0.0.1:{port}");
        let api =
            until("the router answers", PATIENCE, async || Ok(Some(Api::connect(vec![url.clone()]).await?))).await;
        let api =
            api.with_context(|| std::fs::read_to_string(folder.path().join("router.log")).unwrap_or_default())?;
        Ok(Self { api, _process: process, _folder: folder })
    }
}
