//! Tests of a shard that is silent or accepts no writes and of its effect on the others, of operations that arrive late, and of refusals
//! that depend on transfers under way.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use testkit::{
    audit::sagas_end,
    client::{Answer, Client, NoAnswer, account_path, transfer_path},
    cluster::{Cluster, Member, Placement},
    database,
    history::payment_body,
    wait::until,
    workload::open_account,
};
use uuid::Uuid;

/// The time limit of a request, and the time within which a busy machine must have recovered by itself.
const LIMIT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(45);

struct PaymentClient {
    http: Client,
    placement: Placement,
}

impl PaymentClient {
    fn of(cluster: &Cluster, limit: Duration) -> anyhow::Result<Self> {
        Ok(Self { http: cluster.client().with_timeout(limit), placement: cluster.placement()? })
    }

    async fn open(&self, shard: &str, name: &str, overdraft: &str) -> anyhow::Result<String> {
        let id = self.placement.account_on(shard, name, 0)?;
        open_account(&self.http, &id, overdraft).await?;
        Ok(id)
    }

    async fn pay(&self, id: Uuid, debit: &str, credit: &str, amount: &str) -> Result<Answer, NoAnswer> {
        let order = payment_body(id, debit, credit, amount);
        self.http.call(self.http.next_router(), Method::POST, "/v1/transfers", Some(&order)).await
    }

    async fn posted(&self, account: &str) -> anyhow::Result<Value> {
        Ok(self.http.get(0, &account_path(account)).await?["posted"].take())
    }

    /// Waits until the routers refuse a payment to a shard before it reserves anything.
    async fn is_refused_for_now(&self, debit: &str, credit: &str) -> anyhow::Result<()> {
        until("the routers refuse payments to the shard", PATIENCE, async || {
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

/// The amount in cents that transfers to other shards have taken from accounts of a shard and not given back. It changes with each reserve.
async fn sent_away(cluster: &Cluster, shard: usize) -> anyhow::Result<i64> {
    let query =
        "SELECT coalesce(sum(CASE kind WHEN 13 THEN amount WHEN 31 THEN -amount ELSE 0 END), 0)::int8 FROM journal";
    database::number(&cluster.status().shards[shard].dsn, query).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_slept_in_a_frozen_nodes_socket_is_not_carried_out() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let client = PaymentClient::of(&cluster, Duration::from_secs(1))?;
    let (bank, alice) = (client.open("s0", "bank", "unlimited").await?, client.open("s0", "alice", "0").await?);
    client.pays_again(&bank, &alice).await?;
    let before = client.posted(&alice).await?;

    let node = cluster.process(Member::Node(0))?;
    node.freeze().await?;
    let id = Uuid::now_v7();
    let lost = client.pay(id, &bank, &alice, "5.00").await?;
    lost.expect_status(504)?;
    // The freeze ends after about 3 s. HTTP/2 keep-alive closes a silent connection only after 4 s, so the call is still in the socket.
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.thaw()?;
    // The node decides the operation in the socket before later ones.
    client.pays_again(&bank, &alice).await?;
    let found = client.http.call(0, Method::GET, &format!("/v1/transfers/{id}"), None).await?;
    ensure!(found.status == 404, "the late operation was executed: {}", found.text());
    let posted = client.posted(&alice).await?;
    let cents = |text: &Value| text.as_str().unwrap_or_default().replace('.', "").parse::<i64>();
    ensure!(cents(&posted)? < cents(&before)? + 500, "{before} became {posted}");
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_shard_gets_no_money_into_transit_and_leaves_the_others_alone() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let client = PaymentClient::of(&cluster, LIMIT)?;
    let (bank, carol) = (client.open("s0", "bank", "unlimited").await?, client.open("s0", "carol", "0").await?);
    let bob = client.open("s1", "bob", "0").await?;
    client.pays_again(&bank, &bob).await?;
    let silent = cluster.process(Member::Node(1))?;
    silent.freeze().await?;
    client.is_refused_for_now(&bank, &bob).await?;

    // Transfers that were reserved before the router knew wait for the shard.
    let reserved = sent_away(&cluster, 0).await?;
    let begun = Instant::now();
    let crossing = join_all((0..300).map(|_| client.pay(Uuid::now_v7(), &bank, &bob, "1.00")));
    let local = join_all((0..100).map(|_| client.pay(Uuid::now_v7(), &bank, &carol, "1.00")));
    let (crossing, local) = tokio::join!(crossing, local);
    for answer in crossing {
        let answer = answer?;
        expect!(is_refused_for_now(&answer), "{} {}", answer.status, answer.text());
    }
    for answer in local {
        answer?.expect_status(201)?;
    }
    ensure!(begun.elapsed() < LIMIT, "the answers should come at once, not after {:?}", begun.elapsed());
    ensure!(sent_away(&cluster, 0).await? == reserved, "money was reserved");

    silent.thaw()?;
    cluster.wait_until_ready("the shard is back", &[]).await?;
    client.pays_again(&bank, &bob).await?;
    sagas_end(&cluster).await?;
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_is_named_and_heals_by_itself() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let client = PaymentClient::of(&cluster, LIMIT)?;
    let (bank, carol) = (client.open("s0", "bank", "unlimited").await?, client.open("s0", "carol", "0").await?);
    let bob = client.open("s1", "bob", "unlimited").await?;
    client.pays_again(&bank, &bob).await?;
    let server = database::superuser(&cluster, 1)?;
    for statement in ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"] {
        database::run(&server, statement).await?;
    }
    client.is_refused_for_now(&bank, &bob).await?;
    // Transfers that were reserved before the router knew wait for the shard.
    let reserved = sent_away(&cluster, 0).await?;
    let begun = Instant::now();
    for (debit, credit) in [(&bank, &bob), (&bob, &bank), (&bob, &carol)] {
        let answer = client.pay(Uuid::now_v7(), debit, credit, "1.00").await?;
        expect!(is_refused_for_now(&answer), "{} {}", answer.status, answer.text());
    }
    client.pay(Uuid::now_v7(), &bank, &carol, "1.00").await?.expect_status(201)?;
    ensure!(begun.elapsed() < LIMIT, "the answers should come at once, not after {:?}", begun.elapsed());
    ensure!(sent_away(&cluster, 0).await? == reserved, "money was reserved");
    let status = cluster.shardctl(&["status", "--json"]).await?;
    expect!(status.stdout.contains("default_transaction_read_only"), "{}", status.stdout);

    for statement in ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"] {
        database::run(&server, statement).await?;
    }
    client.pays_again(&bank, &bob).await?;
    sagas_end(&cluster).await?;
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_payment_is_reversed_once_when_reversals_compete_for_the_money() -> anyhow::Result<()> {
    const PAYMENTS: usize = 30;
    let cluster = Cluster::start(2, 2).await?;
    let client = PaymentClient::of(&cluster, LIMIT)?;
    let (alice, bob) = (client.open("s0", "alice", "unlimited").await?, client.open("s1", "bob", "0").await?);
    let payments: Vec<Uuid> = (0..PAYMENTS).map(|_| Uuid::now_v7()).collect();
    for answer in join_all(payments.iter().map(|id| client.pay(*id, &alice, &bob, "1.00"))).await {
        answer?.expect_status(201)?;
    }
    let reverse = async |payment: &Uuid| {
        let path = transfer_path(*payment, &alice, "/reverse");
        let order = json!({"id": Uuid::now_v7()});
        client.http.call(client.http.next_router(), Method::POST, &path, Some(&order)).await
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
    expect!(client.posted(&bob).await? == "0.00", "{}", client.posted(&bob).await?);
    cluster.verify_and_finish().await
}
