//! Tests of a shard whose primary dies and whose stand-by is promoted. The node's URL names both hosts, so that the node follows by itself.
//! With a synchronous stand-by nothing acknowledged is missing. With an asynchronous one the loss is detected before anything is served,
//! and `shardctl reconcile` reports it.

use std::{process::Command, sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::{
    database,
    node::{Folder, Node},
    patroni::{Etcd, PatroniMember, Programs, url_of_all},
    postgres::Postgres,
    programs::program,
    router::Router,
    wait::{section, until},
};
use uuid::Uuid;

use super::{
    BackgroundClients, NOTICED_WITHIN, ORDERS_WITHIN, PAUSE, Payments, Progress, ShardSetup, UNREADY, are_refused,
    node_says, says,
};

/// The number of clients that pay at the same time.
const CLIENTS: usize = 4;
/// The numbers of payments that are acknowledged before the primary is killed, and after the promotion.
const BEFORE: usize = 40;
const AFTER: usize = 20;

/// Shard `s0` with a primary and a stand-by, and shard `s1` with one server.
struct Pair {
    setup: ShardSetup,
    primary: Postgres,
    standby: Postgres,
}

impl Pair {
    async fn assemble() -> anyhow::Result<Self> {
        let folder = Folder::create()?;
        let primary = Postgres::start(&folder, "primary").await?;
        let postgres = Postgres::start(&folder, "other").await?;
        primary.create_database("s0", "").await?;
        let standby = primary.standby(&folder, "standby").await?;
        let urls = [both(&primary, &standby)?, postgres.create_database("s1", "").await?];
        Ok(Self { setup: ShardSetup::of_databases(&urls, folder, postgres)?, primary, standby })
    }

    fn reconcile(&self) -> anyhow::Result<(Option<i32>, Value)> {
        let (code, text) = shardctl(&self.setup, &["reconcile", "--json"])?;
        Ok((code, serde_json::from_str(&text).with_context(|| text.clone())?))
    }
}

/// Runs `shardctl` with the databases of all shards. Returns its exit code and its standard output.
pub fn shardctl(setup: &ShardSetup, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let targets = setup.nodes.iter().map(|node| format!("--dsn={}={}", node.shard, node.database_url));
    let output = Command::new(program("shardctl")?).args(arguments).args(targets).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.is_empty(), "shardctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), text))
}

/// Checks that `shardctl verify` finds nothing.
pub fn books_are_clean(setup: &ShardSetup) -> anyhow::Result<()> {
    let (code, text) = shardctl(setup, &["verify"])?;
    ensure!(code == Some(0), "verify found: {text}");
    Ok(())
}

/// The URL of `s0` with both hosts.
fn both(first: &Postgres, second: &Postgres) -> anyhow::Result<String> {
    let (first, second) = (first.url("s0"), second.address().to_string());
    let (before, after) = first.rsplit_once('/').context("no URL")?;
    Ok(format!("{before},{second}/{after}"))
}

/// Starts clients that pay between two accounts. Each repeats a payment under its id until the answer is definite.
fn pay_in_background(router: &Arc<Router>, payments: &Payments) -> BackgroundClients<Uuid> {
    BackgroundClients::start(0..CLIENTS, |_, progress| {
        pay(Payments::of(payments.payer.clone(), payments.payee.clone()), Arc::clone(router), progress)
    })
}

async fn pay(mut payments: Payments, router: Arc<Router>, progress: Progress) -> anyhow::Result<Vec<Uuid>> {
    while !progress.is_over() {
        let (id, latest) = (Uuid::now_v7(), Instant::now() + ORDERS_WITHIN);
        // 200 and 201 are definite. Every other answer leaves the outcome open, or says that nothing was executed.
        while !payments.send(router.client(), id).await.is_ok_and(|answer| matches!(answer.status, 200 | 201)) {
            ensure!(Instant::now() < latest, "payment {id} has no definite answer after {ORDERS_WITHIN:?}");
            tokio::time::sleep(PAUSE).await;
        }
        payments.acknowledged.push(id);
        progress.count();
    }
    Ok(payments.acknowledged)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_follows_the_promotion_of_a_synchronous_standby_and_loses_nothing() -> anyhow::Result<()> {
    let mut pair = Pair::assemble().await?;
    let nodes = pair.setup.found().await?;
    pair.primary.replicates_synchronously().await?;
    let router = Arc::new(pair.setup.router("router").await?);
    let mut payments = Payments::open(router.client(), &pair.setup.placement()?, "s0", "s1").await?;
    let load = pay_in_background(&router, &payments);
    section("before", load.complete(BEFORE)).await?;

    pair.primary.kill().await?;
    node_says(&nodes[0], &["no host of the URL is a primary", "a stand-by"]).await?;
    pair.standby.promote().await?;
    let promoted = Instant::now();
    section("promoted", load.complete(1)).await?;
    eprintln!("promotion: the first payment is acknowledged {:.1?} after the promotion", promoted.elapsed());
    load.complete(AFTER).await?;

    // The former primary returns, as a primary and as the first host of the URL.
    pair.primary.start_again().await?;
    section("a former primary beside the new one", load.complete(AFTER)).await?;
    payments.acknowledged = load.finish().await?;
    payments.are_there_once(router.client()).await?;
    until("the shard's mark has the new timeline", NOTICED_WITHIN, async || {
        Ok((nodes[0].mark().await?.timeline == 2).then_some(()))
    })
    .await?;
    books_are_clean(&pair.setup)?;

    // While only the former primary answers, it is refused by name.
    pair.standby.stop()?;
    node_says(&nodes[0], &[UNREADY, "timeline: expected timeline 2 or later", "this is a former primary"]).await?;
    are_refused(&payments, router.client()).await?;
    pair.standby.start_again().await?;
    nodes[0].becomes_ready().await?;
    payments.make(router.client(), 2).await?;
    payments.are_there_once(router.client()).await?;
    ensure!(pair.reconcile()?.0 == Some(0), "reconcile reports a loss, but nothing was lost");
    books_are_clean(&pair.setup)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_an_asynchronous_promotion_is_refused_and_then_reported_by_id_and_range() -> anyhow::Result<()> {
    let mut pair = Pair::assemble().await?;
    let nodes = pair.setup.found().await?;
    let router = pair.setup.router("router").await?;
    let client = router.client();
    let placement = pair.setup.placement()?;
    let mut kept_out = Payments::open(client, &placement, "s0", "s1").await?;
    let mut kept_in = Payments::between(
        client,
        placement.account_on("s1", "other-payer", 0)?,
        placement.account_on("s0", "other-payee", 0)?,
    )
    .await?;
    kept_out.make(client, 3).await?;
    kept_in.make(client, 3).await?;
    pair.standby.has_caught_up(&pair.primary).await?;
    pair.standby.stops_following().await?;
    let mut out = Payments { acknowledged: Vec::new(), ..kept_out };
    let mut inward = Payments { acknowledged: Vec::new(), ..kept_in };
    out.make(client, 2).await?;
    inward.make(client, 2).await?;

    pair.primary.kill().await?;
    pair.standby.promote().await?;
    node_says(&nodes[0], &[UNREADY, "position", "promote the stand-by that has everything"]).await?;
    are_refused(&out, client).await?;
    let refused = pair.setup.nodes[0].run(&["accept"])?.refused()?;
    says(&refused, &["in between is missing", "--accept-loss"])?;
    ensure!(pair.reconcile()?.0 == Some(0), "reconcile reports a loss before the operator has accepted one");
    pair.setup.nodes[0].run(&["accept", "--accept-loss"])?.successful()?;
    // The node has run all the time.
    nodes[0].becomes_ready().await?;
    ensure!(nodes[0].mark().await?.incarnation == 2);

    let (code, report) = pair.reconcile()?;
    expect!(code == Some(3), "{report}");
    let loss = &report["losses"][0];
    // Each payment from s0 is two bookings there, and each payment to it is one.
    expect!(loss["shard"] == "s0" && loss["incarnation"] == 2 && loss["bookings"] == 6, "{report}");
    expect!(loss["last_left_at"].as_str() < loss["accepted_at"].as_str(), "{report}");
    are_reported(&report, "debit", &out.acknowledged)?;
    are_reported(&report, "credit", &inward.acknowledged)?;
    let (_, human) = shardctl(&pair.setup, &["reconcile"])?;
    says(&human, &["shard s0, incarnation 2: positions", "6 bookings at most", "credited on s1", "posted on s1"])?;
    let (code, others) = shardctl(&pair.setup, &["reconcile", "--shard", "s1", "--json"])?;
    expect!(code == Some(0), "{others}");

    // The report says what to do: a lost debit that is sent again is booked again, and credited once.
    for id in &out.acknowledged {
        let answer = until("the payment is made again", NOTICED_WITHIN, async || {
            let answer = out.send(client, *id).await?;
            Ok((answer.status == 201 || answer.status == 200).then_some(answer))
        })
        .await?;
        expect!(answer.json()?["status"] == "posted", "{}", answer.text());
    }
    out.are_posted(client, 5).await?;
    let (_, report) = pair.reconcile()?;
    are_reported(&report, "debit", &[])?;
    are_reported(&report, "credit", &inward.acknowledged)?;

    // `--repair` books the missing credits again. Without it, and by a dry run, nothing is booked.
    for (arguments, outcome) in [
        (&["reconcile", "--json", "--repair", "--dry-run"][..], "would_be_repaired"),
        (&["reconcile", "--json", "--repair"], "repaired"),
    ] {
        let (code, text) = shardctl(&pair.setup, arguments)?;
        let report: Value = serde_json::from_str(&text)?;
        are_reported(&report, "credit", &inward.acknowledged)?;
        let repaired = |transfer: &Value| transfer["repair"] == outcome;
        let transfers = report["transfers"].as_array().with_context(|| format!("expected transfers in {report}"))?;
        expect!(code == Some(0) && transfers.iter().all(repaired), "{text}");
    }
    let (_, report) = pair.reconcile()?;
    are_reported(&report, "credit", &[])?;
    inward.are_posted(client, 5).await?;
    books_are_clean(&pair.setup)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_new_payments_have_overtaken_is_refused_when_a_router_reports_the_older_mark()
-> anyhow::Result<()> {
    let mut pair = Pair::assemble().await?;
    let mut nodes = pair.setup.found().await?;
    let router = pair.setup.router("router").await?;
    let placement = pair.setup.placement()?;
    let mut kept = Payments::open(router.client(), &placement, "s0", "s0").await?;
    kept.make(router.client(), 3).await?;
    pair.standby.has_caught_up(&pair.primary).await?;
    pair.standby.stops_following().await?;
    kept.make(router.client(), 2).await?;
    let acknowledged = nodes[0].mark().await?;

    // Only a router that is cut off remembers the mark.
    drop(router);
    nodes.clear();
    pair.primary.kill().await?;
    pair.standby.promote().await?;
    database::run(&pair.setup.database("s1"), "DELETE FROM peer_mark").await?;
    nodes = vec![Node::start_waiting(&pair.setup.nodes[0]).await?, Node::start_waiting(&pair.setup.nodes[1]).await?];
    let router = pair.setup.router("another-router").await?;
    for node in &nodes {
        node.becomes_ready().await?;
    }
    let mut later = Payments { acknowledged: Vec::new(), ..kept };
    later.make(router.client(), 9).await?;
    let overtaken = nodes[0].mark().await?;
    expect!(overtaken.timeline == 2 && overtaken.position > acknowledged.position, "{overtaken} {acknowledged}");
    expect!(overtaken.began > 0 && overtaken.began < acknowledged.position, "{overtaken:?}");

    nodes[0].is_told(0, acknowledged).await?;
    node_says(&nodes[0], &[UNREADY, "a timeline 2 that begins at position", "new payments have taken the positions"])
        .await?;
    are_refused(&later, router.client()).await?;
    pair.setup.nodes[0].run(&["accept", "--accept-loss"])?.successful()?;
    nodes[0].becomes_ready().await?;
    let (code, report) = pair.reconcile()?;
    expect!(code == Some(3), "{report}");
    let from = report["losses"][0]["from_position"]
        .as_str()
        .with_context(|| format!("expected from_position in {report}"))?;
    expect!(from.parse::<i64>()? == overtaken.began, "{report} {overtaken:?}");
    later.make(router.client(), 1).await?;
    books_are_clean(&pair.setup)
}

/// Checks that the report has exactly these transfers with this side lost on `s0`.
fn are_reported(report: &Value, side: &str, ids: &[Uuid]) -> anyhow::Result<()> {
    let transfers = report["transfers"].as_array().with_context(|| format!("expected transfers in {report}"))?;
    let lost = transfers.iter().filter(|transfer| transfer["lost"] == side && transfer["lost_on"] == "s0");
    let mut lost: Vec<String> = lost.map(|transfer| transfer["id"].as_str().unwrap_or_default().to_owned()).collect();
    let mut expected: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    lost.sort();
    expected.sort();
    ensure!(lost == expected, "{side}: expected {expected:?} in {report}");
    Ok(())
}

/// The number of payments that are acknowledged in each part.
const PAYMENTS: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_follows_a_failover_of_patroni_and_loses_nothing_in_synchronous_mode() -> anyhow::Result<()> {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => {
            eprintln!("skipped: {missing} (Debian has it in the packages patroni and etcd-server)");
            return Ok(());
        }
    };
    // The folder is declared before the members, so that it is removed after they have ended.
    let home = Folder::create()?;
    let etcd = Etcd::start(&programs, &home).await?;
    let mut first = PatroniMember::start(&programs, &home, "first", &etcd)?;
    section("the first member leads", first.becomes("primary")).await?;
    // In strict mode a commit waits for a stand-by.
    let second = PatroniMember::start(&programs, &home, "second", &etcd)?;
    section("the second member is synchronous", second.becomes("synchronous")).await?;
    first.create_database("s0").await?;
    let folder = Folder::create()?;
    let other = Postgres::start(&folder, "other").await?;
    let urls = [url_of_all(&[&first, &second], "s0"), other.create_database("s1", "").await?];
    let setup = ShardSetup::of_databases(&urls, folder, other)?;
    let nodes = setup.found().await?;
    let router = Arc::new(setup.router("router").await?);
    let mut payments = Payments::open(router.client(), &setup.placement()?, "s0", "s1").await?;
    let load = pay_in_background(&router, &payments);
    section("before", load.complete(PAYMENTS)).await?;

    first.kill().await?;
    let killed = Instant::now();
    section("Patroni promotes the second member", second.becomes("primary")).await?;
    let promoted = Instant::now();
    // In strict mode nothing is acknowledged before a stand-by is there again.
    first.start_again()?;
    section("the first member is a stand-by", first.becomes("replica")).await?;
    section("payments are made again", load.complete(PAYMENTS)).await?;
    eprintln!(
        "patroni: {:.1?} from the kill to the promotion, {:.1?} more until {PAYMENTS} payments",
        promoted - killed,
        promoted.elapsed()
    );
    payments.acknowledged = load.finish().await?;
    payments.are_there_once(router.client()).await?;
    until("the shard's mark has the new timeline", NOTICED_WITHIN, async || {
        Ok((nodes[0].mark().await?.timeline == 2).then_some(()))
    })
    .await?;
    books_are_clean(&setup)
}
