//! What a shard that is silent, or takes no writes, does to the others; operations that arrive late; and refusals that depend on
//! transfers under way.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use testkit::{
    audit::sagas_end,
    client::{Answer, Client, NoAnswer, account_path},
    cluster::{Cluster, Member, Placement},
    database,
    wait::until,
    workload::open_account,
};
use uuid::Uuid;

/// A whole request's time limit, and how long a busy machine may take for what comes by itself.
const LIMIT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(45);

struct Api {
    client: Client,
    placement: Placement,
}

impl Api {
    fn of(cluster: &Cluster, limit: Duration) -> anyhow::Result<Self> {
        Ok(Self { client: cluster.client().with_timeout(limit), placement: cluster.placement()? })
    }

    async fn open(&self, shard: &str, name: &str, overdraft: &str) -> anyhow::Result<String> {
        let id = self.placement.account_on(shard, name, 0)?;
        open_account(&self.client, &id, overdraft).await?;
        Ok(id)
    }

    async fn pay(&self, id: Uuid, debit: &str, credit: &str, amount: &str) -> Result<Answer, NoAnswer> {
        let order = json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "USD"});
        self.client.call(self.client.next_router(), Method::POST, "/v1/transfers", Some(&order)).await
    }

    async fn posted(&self, account: &str) -> anyhow::Result<Value> {
        Ok(self.client.get(0, &account_path(account)).await?["posted"].take())
    }

    /// Waits until the routers refuse a payment to a shard before it reserves anything.
    async fn is_refused_for_now(&self, debit: &str, credit: &str) -> anyhow::Result<()> {
        until("the routers know", PATIENCE, async || {
            let answer = self.pay(Uuid::now_v7(), debit, credit, "1.00").await?;
            Ok(is_refused_for_now(&answer).then_some(()))
        })
        .await
    }

    /// Waits until a payment succeeds.
    async fn pays_again(&self, debit: &str, credit: &str) -> anyhow::Result<()> {
        until("payments succeed again", PATIENCE, async || {
            let answer = self.pay(Uuid::now_v7(), debit, credit, "0.01").await;
            Ok(answer.is_ok_and(|answer| answer.status == 201).then_some(()))
        })
        .await
    }
}

fn is_refused_for_now(answer: &Answer) -> bool {
    let body = answer.json().unwrap_or_default();
    answer.status == 503 && body["code"] == "shard_unavailable" && body["executed"] == false
}

/// What transfers to other shards have taken from accounts of a shard and not given back, in cents. It changes with each reserve.
async fn sent_away(cluster: &Cluster, shard: usize) -> anyhow::Result<i64> {
    let query =
        "SELECT coalesce(sum(CASE kind WHEN 13 THEN amount WHEN 31 THEN -amount ELSE 0 END), 0)::int8 FROM journal";
    database::number(&cluster.status().shards[shard].dsn, query).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_slept_in_a_frozen_nodes_socket_is_not_carried_out() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let api = Api::of(&cluster, Duration::from_secs(1))?;
    let (bank, alice) = (api.open("s0", "bank", "unlimited").await?, api.open("s0", "alice", "0").await?);
    api.pays_again(&bank, &alice).await?;
    let before = api.posted(&alice).await?;

    let node = cluster.process(Member::Node(0))?;
    node.freeze().await?;
    let id = Uuid::now_v7();
    let lost = api.pay(id, &bank, &alice, "5.00").await?;
    ensure!(lost.status == 504, "{} {}", lost.status, lost.text());
    // The freeze ends after about 3 s. HTTP/2 keep-alive closes a silent connection only after 4 s, so the call is still in the socket.
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.thaw()?;
    // Whatever was in the socket is decided before what comes after it.
    api.pays_again(&bank, &alice).await?;
    let found = api.client.call(0, Method::GET, &format!("/v1/transfers/{id}"), None).await?;
    ensure!(found.status == 404, "the late operation was carried out: {}", found.text());
    let posted = api.posted(&alice).await?;
    let cents = |text: &Value| text.as_str().unwrap_or_default().replace('.', "").parse::<i64>();
    ensure!(cents(&posted)? < cents(&before)? + 500, "{before} became {posted}");
    cluster.verify().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_shard_gets_no_money_into_transit_and_leaves_the_others_alone() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let api = Api::of(&cluster, LIMIT)?;
    let (bank, carol) = (api.open("s0", "bank", "unlimited").await?, api.open("s0", "carol", "0").await?);
    let bob = api.open("s1", "bob", "0").await?;
    api.pays_again(&bank, &bob).await?;
    let silent = cluster.process(Member::Node(1))?;
    silent.freeze().await?;
    api.is_refused_for_now(&bank, &bob).await?;

    // What was reserved before the router knew waits for the shard.
    let reserved = sent_away(&cluster, 0).await?;
    let begun = Instant::now();
    let crossing = join_all((0..300).map(|_| api.pay(Uuid::now_v7(), &bank, &bob, "1.00")));
    let local = join_all((0..100).map(|_| api.pay(Uuid::now_v7(), &bank, &carol, "1.00")));
    let (crossing, local) = tokio::join!(crossing, local);
    for answer in crossing {
        let answer = answer?;
        ensure!(is_refused_for_now(&answer), "{} {}", answer.status, answer.text());
    }
    for answer in local {
        ensure!(answer?.status == 201);
    }
    ensure!(begun.elapsed() < LIMIT, "the answers took as long as the time limit");
    ensure!(sent_away(&cluster, 0).await? == reserved, "money was reserved");

    silent.thaw()?;
    cluster.wait_until_ready("the shard is back", &[]).await?;
    api.pays_again(&bank, &bob).await?;
    sagas_end(&cluster).await?;
    cluster.verify().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_is_named_and_heals_by_itself() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let api = Api::of(&cluster, LIMIT)?;
    let (bank, carol) = (api.open("s0", "bank", "unlimited").await?, api.open("s0", "carol", "0").await?);
    let bob = api.open("s1", "bob", "unlimited").await?;
    api.pays_again(&bank, &bob).await?;
    let server = database::superuser(&cluster, 1)?;
    for statement in ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"] {
        database::run(&server, statement).await?;
    }
    api.is_refused_for_now(&bank, &bob).await?;
    // What was reserved before the router knew waits for the shard.
    let reserved = sent_away(&cluster, 0).await?;
    let begun = Instant::now();
    for (debit, credit) in [(&bank, &bob), (&bob, &bank), (&bob, &carol)] {
        let answer = api.pay(Uuid::now_v7(), debit, credit, "1.00").await?;
        ensure!(is_refused_for_now(&answer), "{} {}", answer.status, answer.text());
    }
    ensure!(api.pay(Uuid::now_v7(), &bank, &carol, "1.00").await?.status == 201);
    ensure!(begun.elapsed() < LIMIT, "the answers took as long as the time limit");
    ensure!(sent_away(&cluster, 0).await? == reserved, "money was reserved");
    let status = cluster.shardctl(&["status", "--json"]).await?;
    ensure!(status.stdout.contains("default_transaction_read_only"), "{}", status.stdout);

    for statement in ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"] {
        database::run(&server, statement).await?;
    }
    api.pays_again(&bank, &bob).await?;
    sagas_end(&cluster).await?;
    cluster.verify().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_payment_is_reversed_once_when_reversals_compete_for_the_money() -> anyhow::Result<()> {
    const PAYMENTS: usize = 30;
    let cluster = Cluster::start(2, 2).await?;
    let api = Api::of(&cluster, LIMIT)?;
    let (alice, bob) = (api.open("s0", "alice", "unlimited").await?, api.open("s1", "bob", "0").await?);
    let payments: Vec<Uuid> = (0..PAYMENTS).map(|_| Uuid::now_v7()).collect();
    for answer in join_all(payments.iter().map(|id| api.pay(*id, &alice, &bob, "1.00"))).await {
        ensure!(answer?.status == 201);
    }
    let reverse = async |payment: &Uuid| {
        let path = format!("/v1/transfers/{payment}/reverse?debit={alice}");
        let order = json!({"id": Uuid::now_v7()});
        api.client.call(api.client.next_router(), Method::POST, &path, Some(&order)).await
    };
    let answers = join_all(payments.iter().chain(&payments).map(reverse)).await;
    let (mut posted, mut refused) = (0, 0);
    for answer in answers {
        let answer = answer?;
        match (answer.status, answer.code().as_str()) {
            (201, _) => posted += 1,
            (422, "already_reversed" | "insufficient_funds") => refused += 1,
            _ => anyhow::bail!("{} {}", answer.status, answer.text()),
        }
    }
    ensure!((posted, refused) == (PAYMENTS, PAYMENTS), "{posted} posted, {refused} refused");
    ensure!(api.posted(&bob).await? == "0.00", "{}", api.posted(&bob).await?);
    cluster.verify().await?;
    cluster.finish().await
}
