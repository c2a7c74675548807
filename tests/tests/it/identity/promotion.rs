//! A shard's primary dies, and its stand-by is promoted. The node's URL names both hosts, so that the node follows by itself. With
//! a synchronous stand-by nothing acknowledged is missing. With an asynchronous one the loss is detected before anything is
//! served, and `shardctl reconcile` reports it.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;
use shard_map::{ClusterId, Shard, ShardMap, SlotRange};
use testkit::{
    database,
    node::{Folder, Node, NodeConfig},
    patroni::{Etcd, Member, Programs, url_of_all},
    postgres::Postgres,
    programs::program,
    router::Router,
    wait::{section, until},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{NOTICED_WITHIN, Payments, Stage, UNREADY, are_refused, node_says, says};

/// Clients that pay at the same time.
const CLIENTS: usize = 4;
/// Payments that are acknowledged before the primary is killed, and after the promotion.
const BEFORE: usize = 40;
const AFTER: usize = 20;
/// How long a failover may take until payments are made again. Patroni waits for the former leader's key to expire.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause before a payment is repeated.
const AGAIN: Duration = Duration::from_millis(50);

/// Shard `s0` with a primary and a stand-by, and shard `s1` with one server.
struct Pair {
    stage: Stage,
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
        let url = both(&primary, &standby)?;
        Ok(Self { stage: two_shards(folder, url, postgres).await?, primary, standby })
    }

    fn reconcile(&self) -> anyhow::Result<(Option<i32>, Value)> {
        let (code, text) = shardctl(&self.stage, &["reconcile", "--json"])?;
        Ok((code, serde_json::from_str(&text).with_context(|| text.clone())?))
    }
}

/// Shard `s0` at this URL, and shard `s1` on this server.
pub async fn two_shards(folder: Folder, url: String, postgres: Postgres) -> anyhow::Result<Stage> {
    let cluster = ClusterId::generate();
    let (mut nodes, mut shards) = (Vec::new(), Vec::new());
    let urls = [url, postgres.create_database("s1", "").await?];
    for ((number, slots), url) in (0..).zip(SlotRange::split_evenly(2)).zip(urls) {
        let id = format!("s{number}");
        let node = NodeConfig::write_in(&folder, &id, cluster, &id, &url)?;
        shards.push(Shard { id, number, nodes: vec![node.url()], slots: vec![slots] });
        nodes.push(node);
    }
    let map = ShardMap::new(cluster, 1, shards)?;
    Ok(Stage { nodes, map, proxy: None, postgres, folder })
}

/// Runs `shardctl` with the databases of all shards. Returns its exit code and its standard output.
pub fn shardctl(stage: &Stage, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let targets = stage.nodes.iter().map(|node| format!("--dsn={}={}", node.shard, node.database_url));
    let output = Command::new(program("shardctl")?).args(arguments).args(targets).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.is_empty(), "shardctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), text))
}

/// Checks that `shardctl verify` finds nothing.
pub fn books_are_clean(stage: &Stage) -> anyhow::Result<()> {
    let (code, text) = shardctl(stage, &["verify"])?;
    ensure!(code == Some(0), "verify found: {text}");
    Ok(())
}

/// The URL of `s0` with both hosts.
fn both(first: &Postgres, second: &Postgres) -> anyhow::Result<String> {
    let (first, second) = (first.url("s0"), second.address().to_string());
    let (before, after) = first.rsplit_once('/').context("no URL")?;
    Ok(format!("{before},{second}/{after}"))
}

/// Clients that pay until they are told to stop. Each repeats a payment under its id until the answer is definite.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<anyhow::Result<Vec<Uuid>>>,
    made: Arc<std::sync::atomic::AtomicUsize>,
}

impl Load {
    pub fn start(router: &Arc<Router>, payments: &Payments) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (stop, made, router) = (Arc::clone(&stop), Arc::clone(&made), Arc::clone(router));
            let one =
                Payments { payer: payments.payer.clone(), payee: payments.payee.clone(), acknowledged: Vec::new() };
            clients.spawn(pay(one, router, stop, made));
        }
        Self { clients, stop, made }
    }

    /// Waits until this many more payments are acknowledged.
    pub async fn makes(&self, more: usize) -> anyhow::Result<()> {
        let goal = self.made.load(Relaxed) + more;
        until(&format!("{more} more payments are acknowledged"), PATIENCE, async || {
            Ok((self.made.load(Relaxed) >= goal).then_some(()))
        })
        .await
    }

    pub async fn finish(mut self) -> anyhow::Result<Vec<Uuid>> {
        self.stop.store(true, Relaxed);
        let mut acknowledged = Vec::new();
        while let Some(client) = self.clients.join_next().await {
            acknowledged.extend(client??);
        }
        Ok(acknowledged)
    }
}

async fn pay(
    mut payments: Payments,
    router: Arc<Router>,
    stop: Arc<AtomicBool>,
    made: Arc<std::sync::atomic::AtomicUsize>,
) -> anyhow::Result<Vec<Uuid>> {
    while !stop.load(Relaxed) {
        let (id, latest) = (Uuid::now_v7(), Instant::now() + PATIENCE);
        // 200 and 201 are definite. Every other answer leaves the outcome open, or says that nothing was executed.
        while !payments.send(router.client(), id).await.is_ok_and(|answer| matches!(answer.status, 200 | 201)) {
            ensure!(Instant::now() < latest, "payment {id} has no definite answer");
            tokio::time::sleep(AGAIN).await;
        }
        payments.acknowledged.push(id);
        made.fetch_add(1, Relaxed);
    }
    Ok(payments.acknowledged)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_follows_the_promotion_of_a_synchronous_standby_and_loses_nothing() -> anyhow::Result<()> {
    let mut pair = Pair::assemble().await?;
    let nodes = pair.stage.found().await?;
    pair.primary.replicates_synchronously().await?;
    let router = Arc::new(pair.stage.router("router").await?);
    let mut payments = Payments::open(router.client(), &pair.stage.placement()?, "s0", "s1").await?;
    let load = Load::start(&router, &payments);
    section("before", load.makes(BEFORE)).await?;

    pair.primary.kill().await?;
    node_says(&nodes[0], &["no host of the URL is a primary", "a stand-by"]).await?;
    pair.standby.promote().await?;
    let promoted = Instant::now();
    section("promoted", load.makes(1)).await?;
    eprintln!("promotion: the first payment is acknowledged {:.1?} after the promotion", promoted.elapsed());
    load.makes(AFTER).await?;

    // The former primary returns, as a primary and as the first host of the URL.
    pair.primary.start_again().await?;
    section("a former primary beside the new one", load.makes(AFTER)).await?;
    payments.acknowledged = load.finish().await?;
    payments.are_there_once(router.client()).await?;
    until("the shard's mark has the new timeline", NOTICED_WITHIN, async || {
        Ok((nodes[0].mark().await?.timeline == 2).then_some(()))
    })
    .await?;
    books_are_clean(&pair.stage)?;

    // Only the former primary answers. It is refused by name until the new one is back.
    pair.standby.stop()?;
    node_says(&nodes[0], &[UNREADY, "timeline: expected timeline 2 or later", "this is a former primary"]).await?;
    are_refused(&payments, router.client()).await?;
    pair.standby.start_again().await?;
    nodes[0].becomes_ready().await?;
    payments.make(router.client(), 2).await?;
    payments.are_there_once(router.client()).await?;
    ensure!(pair.reconcile()?.0 == Some(0), "nothing was lost");
    books_are_clean(&pair.stage)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_an_asynchronous_promotion_is_refused_and_then_reported_by_id_and_range() -> anyhow::Result<()> {
    let mut pair = Pair::assemble().await?;
    let nodes = pair.stage.found().await?;
    let router = pair.stage.router("router").await?;
    let client = router.client();
    let placement = pair.stage.placement()?;
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
    let refused = pair.stage.nodes[0].run(&["accept"])?;
    ensure!(!refused.succeeded, "{}", refused.text);
    says(&refused.text, &["in between is missing", "--accept-loss"])?;
    ensure!(pair.reconcile()?.0 == Some(0), "nothing is given up yet");
    let accepted = pair.stage.nodes[0].run(&["accept", "--accept-loss"])?;
    ensure!(accepted.succeeded, "{}", accepted.text);
    // The node runs during all of this.
    nodes[0].becomes_ready().await?;
    ensure!(nodes[0].mark().await?.incarnation == 2);

    let (code, report) = pair.reconcile()?;
    ensure!(code == Some(3), "{report}");
    let loss = &report["losses"][0];
    // Each payment out is two bookings of s0, each payment in is one.
    ensure!(loss["shard"] == "s0" && loss["incarnation"] == 2 && loss["bookings"] == 6, "{report}");
    ensure!(loss["last_left_at"].as_str() < loss["accepted_at"].as_str(), "{report}");
    are_reported(&report, "debit", &out.acknowledged)?;
    are_reported(&report, "credit", &inward.acknowledged)?;
    let (_, human) = shardctl(&pair.stage, &["reconcile"])?;
    says(&human, &["shard s0, incarnation 2: positions", "6 bookings at most", "credited on s1", "posted on s1"])?;
    let (code, others) = shardctl(&pair.stage, &["reconcile", "--shard", "s1", "--json"])?;
    ensure!(code == Some(0), "{others}");

    // The report says what to do: a lost debit that is sent again is booked again, and credited once.
    for id in &out.acknowledged {
        let answer = until("the payment is made again", NOTICED_WITHIN, async || {
            let answer = out.send(client, *id).await?;
            Ok((answer.status == 201 || answer.status == 200).then_some(answer))
        })
        .await?;
        ensure!(answer.json()?["status"] == "posted", "{}", answer.text());
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
        let (code, text) = shardctl(&pair.stage, arguments)?;
        let report: Value = serde_json::from_str(&text)?;
        are_reported(&report, "credit", &inward.acknowledged)?;
        let repaired = |transfer: &Value| transfer["repair"] == outcome;
        let transfers = report["transfers"].as_array().context("no transfers")?;
        ensure!(code == Some(0) && transfers.iter().all(repaired), "{text}");
    }
    let (_, report) = pair.reconcile()?;
    are_reported(&report, "credit", &[])?;
    inward.are_posted(client, 5).await?;
    books_are_clean(&pair.stage)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_new_payments_have_overtaken_is_refused_when_a_router_reports_the_older_mark()
-> anyhow::Result<()> {
    let mut pair = Pair::assemble().await?;
    let mut nodes = pair.stage.found().await?;
    let router = pair.stage.router("router").await?;
    let placement = pair.stage.placement()?;
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
    database::run(&pair.stage.database("s1"), "DELETE FROM peer_mark").await?;
    nodes = vec![Node::start_waiting(&pair.stage.nodes[0]).await?, Node::start_waiting(&pair.stage.nodes[1]).await?];
    let router = pair.stage.router("another-router").await?;
    for node in &nodes {
        node.becomes_ready().await?;
    }
    let mut later = Payments { acknowledged: Vec::new(), ..kept };
    later.make(router.client(), 9).await?;
    let overtaken = nodes[0].mark().await?;
    ensure!(overtaken.timeline == 2 && overtaken.position > acknowledged.position, "{overtaken} {acknowledged}");
    ensure!(overtaken.began > 0 && overtaken.began < acknowledged.position, "{overtaken:?}");

    nodes[0].is_told(0, acknowledged).await?;
    node_says(&nodes[0], &[UNREADY, "a timeline 2 that begins at position", "new payments have taken the positions"])
        .await?;
    are_refused(&later, router.client()).await?;
    let accepted = pair.stage.nodes[0].run(&["accept", "--accept-loss"])?;
    ensure!(accepted.succeeded, "{}", accepted.text);
    nodes[0].becomes_ready().await?;
    let (code, report) = pair.reconcile()?;
    ensure!(code == Some(3), "{report}");
    let from = report["losses"][0]["from_position"].as_str().context("no position")?;
    ensure!(from.parse::<i64>()? == overtaken.began, "{report} {overtaken:?}");
    later.make(router.client(), 1).await?;
    books_are_clean(&pair.stage)
}

/// Checks that the report has exactly these transfers with this side lost on `s0`.
fn are_reported(report: &Value, side: &str, ids: &[Uuid]) -> anyhow::Result<()> {
    let transfers = report["transfers"].as_array().context("no transfers")?;
    let lost = transfers.iter().filter(|transfer| transfer["lost"] == side && transfer["lost_on"] == "s0");
    let mut lost: Vec<String> = lost.map(|transfer| transfer["id"].as_str().unwrap_or_default().to_owned()).collect();
    let mut expected: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    lost.sort();
    expected.sort();
    ensure!(lost == expected, "{side}: expected {expected:?} in {report}");
    Ok(())
}

/// Payments that are acknowledged in each part.
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
    // Declared before the members, so that it is removed after they have ended.
    let home = Folder::create()?;
    let etcd = Etcd::start(&programs, &home).await?;
    let mut first = Member::start(&programs, &home, "first", &etcd)?;
    section("the first member leads", first.becomes("primary")).await?;
    // In strict mode a commit waits for a stand-by.
    let second = Member::start(&programs, &home, "second", &etcd)?;
    section("the second member is synchronous", second.becomes("synchronous")).await?;
    first.create_database("s0").await?;
    let folder = Folder::create()?;
    let other = Postgres::start(&folder, "other").await?;
    let stage = two_shards(folder, url_of_all(&[&first, &second], "s0"), other).await?;
    let nodes = stage.found().await?;
    let router = Arc::new(stage.router("router").await?);
    let mut payments = Payments::open(router.client(), &stage.placement()?, "s0", "s1").await?;
    let load = Load::start(&router, &payments);
    section("before", load.makes(PAYMENTS)).await?;

    first.kill().await?;
    let killed = Instant::now();
    section("Patroni promotes the second member", second.becomes("primary")).await?;
    let promoted = Instant::now();
    // In strict mode nothing is acknowledged before a stand-by is there again.
    first.start_again()?;
    section("the first member is a stand-by", first.becomes("replica")).await?;
    section("payments are made again", load.makes(PAYMENTS)).await?;
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
    books_are_clean(&stage)
}
