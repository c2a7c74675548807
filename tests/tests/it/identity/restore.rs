//! A test that restores one shard of three from a base backup and the archive of its log, to a point before payments that were
//! acknowledged. The other shards are not restored. Every acknowledged id must be kept, repaired, or reported lost
//! (`docs/operations/backup.md`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::{
    client::{Answer, Client, account_path, hold_path, transfer_path},
    database,
    history::{hold_body, payment_body},
    node::{Folder, Node},
    postgres::Postgres,
    wait::{section, until},
    workload::open_account,
};
use uuid::Uuid;

use super::{
    BackgroundClients, NOTICED_WITHIN, ORDERS_WITHIN, PAUSE, Progress, ShardSetup,
    promotion::{books_are_clean, shardctl},
    says,
};

/// The number of orders that each phase of the load completes.
const PHASE: usize = 60;

/// A client's order for a transfer or a hold.
#[derive(Debug, Clone)]
struct ClientOrder {
    id: Uuid,
    debit: String,
    credit: String,
    /// Minor units. A hold moves no money and has 0.
    amount: i64,
    path: String,
    body: Value,
    /// The time in the answer. It is `None` for a capture that was answered with 404, because the restore lost its hold.
    created_at: Option<String>,
}

impl ClientOrder {
    fn payment(debit: &str, credit: &str, amount: &str) -> Self {
        let id = Uuid::now_v7();
        let body = payment_body(id, debit, credit, amount);
        Self::of(id, debit, credit, "/v1/transfers".to_owned(), body, cents(amount))
    }

    fn hold(debit: &str, credit: &str) -> Self {
        let id = Uuid::now_v7();
        let body = hold_body(id, debit, credit, "5.00", None);
        Self::of(id, debit, credit, "/v1/holds".to_owned(), body, 0)
    }

    fn capture(hold: &Self) -> Self {
        let path = hold_path(hold.id, &hold.debit, "/capture");
        let id = Uuid::now_v7();
        Self::of(id, &hold.debit, &hold.credit, path, json!({"id": id}), 500)
    }

    fn of(id: Uuid, debit: &str, credit: &str, path: String, body: Value, amount: i64) -> Self {
        let (debit, credit) = (debit.to_owned(), credit.to_owned());
        Self { id, debit, credit, amount, path, body, created_at: None }
    }

    fn is_transfer(&self) -> bool {
        self.amount > 0
    }

    async fn send(&self, client: &Client) -> anyhow::Result<Answer> {
        let latest = Instant::now() + ORDERS_WITHIN;
        loop {
            let answer = client.call(client.next_router(), Method::POST, &self.path, Some(&self.body)).await;
            match answer {
                Ok(answer) if !matches!(answer.status, 202 | 429 | 500..) => return Ok(answer),
                answer => ensure!(Instant::now() < latest, "{self:?} has no definite answer: {answer:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads the transfer or hold.
    async fn read(&self, client: &Client) -> anyhow::Result<Answer> {
        let path = if self.is_transfer() { transfer_path } else { hold_path }(self.id, &self.debit, "");
        until("the router reaches the shard", NOTICED_WITHIN, async || {
            let answer = client.call(client.next_router(), Method::GET, &path, None).await?;
            expect!(answer.status < 500, "{} {}", answer.status, answer.text());
            Ok(Some(answer))
        })
        .await
    }
}

fn cents(amount: &str) -> i64 {
    amount.replace('.', "").parse().unwrap_or_default()
}

/// Three shards. Shard `s0`, which is restored, is on its own server.
struct Three {
    setup: ShardSetup,
    restored: Postgres,
}

impl Three {
    async fn assemble() -> anyhow::Result<Self> {
        let folder = Folder::create()?;
        let restored = Postgres::start(&folder, "restored").await?;
        let postgres = Postgres::start(&folder, "others").await?;
        let urls = [
            restored.create_database("s0", "").await?,
            postgres.create_database("s1", "").await?,
            postgres.create_database("s2", "").await?,
        ];
        Ok(Self { setup: ShardSetup::of_databases(&urls, folder, postgres)?, restored })
    }

    /// Opens an account without limit.
    async fn account(&self, client: &Client, shard: &str, name: &str) -> anyhow::Result<String> {
        let id = self.setup.placement()?.account_on(shard, name, 0)?;
        open_account(client, &id, "unlimited").await?;
        Ok(id)
    }

    fn reconcile(&self, more: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
        let arguments = [&["reconcile", "--json"], more].concat();
        let (code, text) = shardctl(&self.setup, &arguments)?;
        Ok((code, serde_json::from_str(&text).with_context(|| text.clone())?))
    }
}

/// Orders payments and holds from one account to another until it is told to stop.
async fn order_in_background(
    client: Arc<Client>,
    (debit, credit, holds): (String, String, bool),
    progress: Progress,
) -> anyhow::Result<Vec<ClientOrder>> {
    let mut orders = Vec::new();
    while !progress.is_over() {
        if holds {
            let hold = ClientOrder::hold(&debit, &credit);
            place(hold.clone(), &client, &mut orders).await?;
            // A hold that is lost with the restore cannot be captured.
            place(ClientOrder::capture(&hold), &client, &mut orders).await?;
        } else {
            place(ClientOrder::payment(&debit, &credit, "1.00"), &client, &mut orders).await?;
        }
        progress.count();
        tokio::time::sleep(PAUSE).await;
    }
    Ok(orders)
}

/// Sends an order until its answer is definite, and keeps it.
async fn place(mut order: ClientOrder, client: &Client, orders: &mut Vec<ClientOrder>) -> anyhow::Result<()> {
    let answer = order.send(client).await?;
    match answer.status {
        200 | 201 => {
            order.created_at = Some(answer.json()?["created_at"].as_str().context("no time")?.to_owned());
        }
        // The hold is lost. An earlier attempt may have taken effect and lost its answer. The repair then books the capture again from
        // what the other shard has.
        404 if order.path.contains("/capture") => {}
        status => anyhow::bail!("{order:?}: {status} {}", answer.text()),
    }
    orders.push(order);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_one_shard_is_restored_every_acknowledged_id_is_kept_or_repaired_or_reported_lost() -> anyhow::Result<()>
{
    let began = Instant::now();
    let mut three = Three::assemble().await?;
    let archive = three.restored.archives("archive").await?;
    let mut nodes = three.setup.found().await?;
    let first = three.setup.router("router").await?;
    let second = three.setup.router("second").await?;
    let client = Arc::new(Client::new(vec![first.url(), second.url()]).with_timeout(Duration::from_secs(5)));
    let mut accounts = Vec::new();
    for shard in ["s0", "s1", "s2"] {
        for name in ["one", "two"] {
            accounts.push(three.account(&client, shard, name).await?);
        }
    }
    let route = |from: usize, to: usize, holds| (accounts[from].clone(), accounts[to].clone(), holds);
    // Each route has the debit account, the credit account, and whether the money is held first.
    let routes = [
        route(0, 1, false), // within s0
        route(0, 2, false), // s0 to s1
        route(2, 0, false), // s1 to s0
        route(4, 3, false), // s2 to s1
        route(2, 3, false), // within s1
        route(1, 4, true),  // holds on s0, captured to s2
        route(5, 1, true),  // holds on s2, captured to s0
    ];
    // This account of s0 gets money and pays after the restore point. After the restore it lacks the money for its payment.
    let poor = three.setup.placement()?.account_on("s0", "poor", 0)?;
    open_account(&client, &poor, "0.00").await?;

    let load =
        BackgroundClients::start(routes, |route, progress| order_in_background(Arc::clone(&client), route, progress));
    load.complete(PHASE).await?;
    let backup = three.restored.base_backup("backup").await?;
    load.complete(PHASE).await?;
    section("restore point", three.restored.restore_point("drill")).await?;
    let mut orders = Vec::new();
    place(ClientOrder::payment(&accounts[0], &poor, "20.00"), &client, &mut orders).await?;
    place(ClientOrder::payment(&poor, &accounts[2], "20.00"), &client, &mut orders).await?;
    load.complete(PHASE).await?;
    let page = statement(&client, &accounts[0], None).await?;
    let cursor = page["next_cursor"].as_str().with_context(|| format!("expected next_cursor in {page}"))?.to_owned();
    let known: Vec<Value> = page["data"].as_array().with_context(|| format!("expected data in {page}"))?.clone();

    // The shard is restored while the other shards and the load go on.
    let node = nodes.remove(0);
    node.process().kill().await?;
    drop(node);
    three.restored.kill().await?;
    section("restore", three.restored.restore(&backup, &archive, "drill")).await?;
    let config = &three.setup.nodes[0];
    let refused = Node::start_refused(config).await?;
    says(&refused, &["the database is refused", "position", "accept --accept-loss"])?;
    config.run(&["accept", "--accept-loss", "--wait", "30"])?.successful()?;
    let node = Node::start(config).await?;
    section("load after the restore", load.complete(PHASE)).await?;
    orders.extend(load.finish().await?);
    let (orders, refused): (Vec<_>, Vec<_>) = orders.into_iter().partition(|order| order.created_at.is_some());
    sagas_have_ended(&three).await?;
    ensure!(node.mark().await?.incarnation == 2);
    eprintln!("restore: {} acknowledged orders, {:.1?}", orders.len(), began.elapsed());

    let (code, _) = shardctl(&three.setup, &["verify"])?;
    ensure!(code == Some(3), "a loss between shards is a violation until it is repaired");
    let (code, report) = three.reconcile(&[])?;
    expect!(code == Some(3), "{report}");
    let losses = report["losses"].as_array().with_context(|| format!("expected losses in {report}"))?;
    expect!(losses.len() == 1 && losses[0]["shard"] == "s0", "{report}");
    let (after, before) = (losses[0]["last_left_at"].as_str(), losses[0]["accepted_at"].as_str());
    let reported = transfers(&report);
    ensure!(!reported.is_empty(), "the drill lost nothing between shards: {report}");

    // The report names each acknowledged id that is missing, or the time of the id is within the reported times.
    let mut lost = Vec::new();
    for order in &orders {
        let answer = order.read(&client).await?;
        match answer.status {
            200 if order.is_transfer() => {
                expect!(answer.json()?["status"] == "posted" || reported.contains(&order.id), "{}", answer.text());
            }
            200 => {}
            404 => {
                let of_shard = three.setup.placement()?.shard_of(&order.debit) == "s0";
                let in_range = after <= order.created_at.as_deref() && order.created_at.as_deref() <= before;
                let is_local = three.setup.placement()?.shard_of(&order.credit) == "s0" || !order.is_transfer();
                ensure!(of_shard && in_range, "an order is lost and not in the report: {order:?}: {report}");
                ensure!(
                    is_local || reported.contains(&order.id),
                    "a transfer between shards is lost and not reported by id: {order:?}: {report}"
                );
                lost.push(order.clone());
            }
            status => anyhow::bail!("{order:?}: {status} {}", answer.text()),
        }
    }
    eprintln!("restore: {} ids are not there, {} are reported by id", lost.len(), reported.len());

    // A dry run books nothing. The repair books what it can prove, and names the rest.
    let bookings = "SELECT count(*) FROM journal WHERE kind <> 3";
    let count = database::number(&three.restored.url("s0"), bookings).await?;
    let (_, rehearsed) = three.reconcile(&["--repair", "--dry-run"])?;
    ensure!(database::number(&three.restored.url("s0"), bookings).await? == count, "a dry run booked something");
    let (code, repaired) = three.reconcile(&["--repair"])?;
    let open = not_repaired(&repaired);
    expect!(not_repaired(&rehearsed) == open, "{rehearsed} {repaired}");
    expect!(code == Some(3), "{repaired}");
    expect!(open.iter().any(|(_, reason)| reason == "insufficient_funds of the payer"), "{repaired}");

    // Clients send missing orders again. An order that was repaired is answered as posted and not executed again.
    let captures = lost.iter().filter(|order| order.path.contains("/capture"));
    for order in lost.iter().filter(|order| !order.path.contains("/capture")).chain(captures) {
        let answer = order.send(&client).await?;
        let hold_is_lost = order.path.contains("/capture") && matches!(answer.status, 404 | 409 | 422);
        expect!(matches!(answer.status, 200 | 201) || hold_is_lost, "{order:?}: {} {}", answer.status, answer.text());
    }
    sagas_have_ended(&three).await?;
    let (code, repaired) = three.reconcile(&["--repair"])?;
    expect!(code == Some(0), "{repaired}");
    let (_, report) = three.reconcile(&[])?;
    expect!(transfers(&report).is_empty(), "{report}");
    books_are_clean(&three.setup)?;

    // Every acknowledged transfer is there once, to the last minor unit. So is a capture that was repaired after its client had been
    // told that there was no such hold.
    let mut posted = Vec::new();
    for order in orders.iter().filter(|order| order.is_transfer()) {
        let answer = order.read(&client).await?;
        expect!(answer.status == 200 && answer.json()?["status"] == "posted", "{order:?}: {}", answer.text());
        posted.push(order);
    }
    for order in &refused {
        if order.read(&client).await?.status == 200 {
            posted.push(order);
        }
    }
    for account in accounts.iter().chain([&poor]) {
        let sum: i64 = posted
            .iter()
            .map(|order| order.amount * (i64::from(order.credit == *account) - i64::from(order.debit == *account)))
            .sum();
        let found = client.get(0, &account_path(account)).await?;
        let balance = cents(found["posted"].as_str().with_context(|| format!("expected posted in {found}"))?);
        ensure!(balance == sum, "{account}: holds {balance}, the posted transfers come to {sum}");
    }
    // A cursor from before the restore leads to entries that are older than those of its page, and to none of that page.
    let next = statement(&client, &accounts[0], Some(&cursor)).await?;
    let older = next["data"].as_array().with_context(|| format!("expected data in {next}"))?;
    expect!(!older.is_empty() && older.iter().all(|entry| !known.contains(entry)), "{next}");
    eprintln!("restore: {:.1?} in all", began.elapsed());
    Ok(())
}

async fn statement(client: &Client, account: &str, cursor: Option<&str>) -> anyhow::Result<Value> {
    let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
    client.get(0, &format!("{}/entries?limit=5{cursor}", account_path(account))).await
}

fn transfers(report: &Value) -> Vec<Uuid> {
    let transfers = report["transfers"].as_array();
    transfers.into_iter().flatten().filter_map(|it| it["id"].as_str()?.parse().ok()).collect()
}

/// The ids that were not repaired, each with the reason.
fn not_repaired(report: &Value) -> Vec<(String, String)> {
    let transfers = report["transfers"].as_array().into_iter().flatten();
    let open = transfers.filter(|it| it["repair"] == "not_repaired");
    open.map(|it| (it["id"].to_string(), it["reason"].as_str().unwrap_or_default().to_owned())).collect()
}

/// Waits until no transfer between shards is under way.
async fn sagas_have_ended(three: &Three) -> anyhow::Result<()> {
    const UNDER_WAY: &str = "SELECT count(*) FROM journal j WHERE j.kind IN (13, 14) AND NOT EXISTS ( \
         SELECT FROM journal s WHERE s.id = j.id AND s.payer = j.payer AND s.role = 2)";
    let urls = [three.restored.url("s0"), three.setup.database("s1"), three.setup.database("s2")];
    until("no transfer is under way", ORDERS_WITHIN, async || {
        for url in &urls {
            if database::number(url, UNDER_WAY).await? > 0 {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}
