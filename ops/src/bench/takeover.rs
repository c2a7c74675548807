//! `shardctl bench takeover` kills the first of two nodes under load with `kill -9`, several times. It measures the time until a payment that
//! was sent after the kill is acknowledged.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use rustix::process::Signal;
use serde::Serialize;
use serde_json::json;
use telemetry::clock;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    Experiment,
    figures::{Figure, Promise, add_bars, median, print_all},
    machine::Machine,
    own_cluster::OwnCluster,
    page::{Mark, Page},
};
use crate::{
    cluster::{process::Process, status::ClusterStatus},
    http_client::HttpClient,
    output,
};

/// Kills the first of two nodes under load, several times. Exit code 1: a figure misses its bar. 3: the ledger does not balance
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct TakeoverPlan {
    /// Kills
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Clients that send one payment at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
}

/// The number of accounts that one account pays in turn.
const PAYEES: usize = 8;
const PAYER: &str = "takeover:payer";
/// How long a client waits for an answer before it sends the next payment.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time of load before the kill, and after the first acknowledged payment.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(1);
/// A client whose payment was not executed sends the next one after this time.
const PAUSE: Duration = Duration::from_millis(5);
/// Within this time, the first node is started again and all routers use it again.
const RETURN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// The time from the kill to the first acknowledgement of a payment that was sent after the kill.
    pub first_acknowledged_ms: f64,
    /// Payments from the kill until one second after that, by their outcome.
    pub acknowledged: usize,
    pub refused: usize,
    pub unknown: usize,
    /// The longest time that a client waited for the answer to one payment.
    pub longest_answer_ms: f64,
    /// The time from the kill until every router used the first node again.
    pub returned_s: f64,
}

#[derive(Debug, Serialize)]
pub struct TakeoverReport {
    pub plan: TakeoverPlan,
    pub measured_at: String,
    pub machine: Machine,
    pub rounds: Vec<Round>,
    pub p50_ms: Option<f64>,
    pub max_ms: Option<f64>,
    pub verified: bool,
    pub figures: Vec<Figure>,
}

/// One payment, as a client saw it.
#[derive(Debug, Clone, Copy)]
struct Payment {
    sent: Instant,
    answered: Instant,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Acknowledged,
    Refused,
    Unknown,
}

impl Experiment for TakeoverPlan {
    type Report = TakeoverReport;

    fn prepare(&mut self, _seed: u64) -> anyhow::Result<()> {
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<TakeoverReport> {
        let cluster = OwnCluster::start_with_second_nodes(folder.join("takeover"), 1, 2)?;
        let client = HttpClient::new(PATIENCE);
        let routers: Vec<String> = cluster.description.routers.iter().map(|router| router.url()).collect();
        open_accounts(&client, &routers[0]).await?;
        let rounds = output::counted("rounds", self.rounds as usize, async |bar| {
            let mut rounds = Vec::new();
            for _ in 0..self.rounds {
                rounds.push(round(&cluster, &client, &routers, usize::from(self.clients)).await?);
                bar.inc(1);
            }
            anyhow::Ok(rounds)
        })
        .await?;
        let verified = cluster.is_clean().await?;
        Ok(TakeoverReport::new(self, rounds, verified))
    }
}

async fn open_accounts(client: &HttpClient, router: &str) -> anyhow::Result<()> {
    let accounts = (0..PAYEES).map(payee).map(|id| (id, "0.00")).chain([(PAYER.to_owned(), "unlimited")]);
    for (id, overdraft) in accounts {
        let body = json!({"id": id, "asset": "USD", "overdraft": overdraft}).to_string();
        client.post::<serde_json::Value>(&format!("{router}/v1/accounts"), body).await?;
    }
    Ok(())
}

fn payee(number: usize) -> String {
    format!("takeover:payee{number}")
}

async fn round(
    cluster: &OwnCluster,
    client: &HttpClient,
    routers: &[String],
    clients: usize,
) -> anyhow::Result<Round> {
    wait_until_first_node_is_used(cluster, client).await?;
    let status = ClusterStatus::gather(cluster.layout(), &cluster.description).await?;
    let first = status.shards.first().and_then(|shard| shard.node_pid).and_then(Process::of);
    let first = first.context("the first node does not run")?;

    let (stop, payments) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let load = join_all((0..clients).map(|number| {
        let (client, router) = (client.clone(), routers[number % routers.len()].clone());
        pay_until_stopped(client, router, number, Arc::clone(&stop), Arc::clone(&payments))
    }));
    let kill = async {
        let killed = kill_under_load(first, &payments).await;
        stop.store(true, Relaxed);
        killed
    };
    let (killed, _) = tokio::join!(kill, load);
    let killed = killed?;
    wait_until_first_node_is_used(cluster, client).await?;
    let returned_s = killed.elapsed().as_secs_f64();

    let payments = payments.lock().unwrap_or_else(PoisonError::into_inner);
    let after: Vec<&Payment> = payments.iter().filter(|payment| payment.answered >= killed).collect();
    let count = |end: End| after.iter().filter(|payment| payment.end == end).count();
    let longest = after.iter().map(|payment| payment.answered - payment.sent).max().unwrap_or_default();
    let first = first_acknowledged(&Mutex::new(payments.clone()), killed).context("no payment was acknowledged")?;
    Ok(Round {
        first_acknowledged_ms: ms(first),
        acknowledged: count(End::Acknowledged),
        refused: count(End::Refused),
        unknown: count(End::Unknown),
        longest_answer_ms: ms(longest),
        returned_s,
    })
}

/// Kills the node and waits until payments are acknowledged again. Returns the moment of the kill.
async fn kill_under_load(node: Process, payments: &Mutex<Vec<Payment>>) -> anyhow::Result<Instant> {
    sleep(BEFORE).await;
    let killed = Instant::now();
    node.signal(Signal::KILL)?;
    while first_acknowledged(payments, killed).is_none() {
        ensure!(killed.elapsed() < RETURN, "no payment was acknowledged within {} s", RETURN.as_secs());
        sleep(PAUSE).await;
    }
    sleep(AFTER).await;
    Ok(killed)
}

/// The time from the kill to the first acknowledgement of a payment that was sent after the kill.
fn first_acknowledged(payments: &Mutex<Vec<Payment>>, killed: Instant) -> Option<Duration> {
    let payments = payments.lock().unwrap_or_else(PoisonError::into_inner);
    let after = payments.iter().filter(|payment| payment.sent >= killed && payment.end == End::Acknowledged);
    after.map(|payment| payment.answered - killed).min()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

async fn pay_until_stopped(
    client: HttpClient,
    router: String,
    number: usize,
    stop: Arc<AtomicBool>,
    payments: Arc<Mutex<Vec<Payment>>>,
) {
    let url = format!("{router}/v1/transfers");
    while !stop.load(Relaxed) {
        let body = json!({
            "id": Uuid::now_v7(), "debit": PAYER, "credit": payee(number % PAYEES), "amount": "0.01", "asset": "USD",
        });
        let sent = Instant::now();
        let end = match client.send(Method::POST, &url, Bytes::from(body.to_string())).await {
            Ok((status, _)) if status == 201 => End::Acknowledged,
            Ok((_, body)) if says_not_executed(&body) => End::Refused,
            _ => End::Unknown,
        };
        let payment = Payment { sent, answered: Instant::now(), end };
        payments.lock().unwrap_or_else(PoisonError::into_inner).push(payment);
        if end != End::Acknowledged {
            sleep(PAUSE).await;
        }
    }
}

fn says_not_executed(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|problem| problem["executed"] == json!(false))
}

/// Waits until both nodes run in their roles and every router uses the first one.
async fn wait_until_first_node_is_used(cluster: &OwnCluster, client: &HttpClient) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let status = ClusterStatus::gather(cluster.layout(), &cluster.description).await?;
        let shard = status.shards.first().context("a cluster without shards")?;
        let second = shard.second_node.as_ref().and_then(|node| node.role.as_deref()).unwrap_or_default();
        let are_in_place = shard.node_role.as_deref() == Some("active") && second.starts_with("following");
        if status.is_ready() && are_in_place && all_use(&status, client, &shard.node_url).await {
            return Ok(());
        }
        if begun.elapsed() > RETURN {
            bail!("the first node is not in use again: it is {:?}, the second one {second:?}", shard.node_role);
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn all_use(status: &ClusterStatus, client: &HttpClient, node: &str) -> bool {
    for router in &status.routers {
        let shards = client.get::<serde_json::Value>(&format!("{}/admin/shards", router.admin_url)).await;
        if !shards.is_ok_and(|shards| shards["data"][0]["node_in_use"] == node) {
            return false;
        }
    }
    true
}

impl TakeoverReport {
    fn new(plan: TakeoverPlan, rounds: Vec<Round>, verified: bool) -> Self {
        let times: Vec<f64> = rounds.iter().map(|round| round.first_acknowledged_ms).collect();
        let max_ms = times.iter().copied().max_by(f64::total_cmp);
        let p50_ms = median(times);
        let claim = "kill -9 of a node to the first payment that was sent and acknowledged after it, at most";
        let figures = vec![Figure::new(claim, "ms", Promise::AtMost { bar: 1_000.0, aim: 250.0 }, max_ms)];
        let (measured_at, machine) = (clock::format_rfc3339(clock::now_us()), Machine::this());
        Self { plan, measured_at, machine, rounds, p50_ms, max_ms, verified, figures }
    }

    pub fn rows(&self) -> Vec<[String; 7]> {
        let each = self.rounds.iter().zip(1_u32..);
        each.map(|(round, number)| {
            [
                number.to_string(),
                format!("{:.0}", round.first_acknowledged_ms),
                format!("{:.0}", round.longest_answer_ms),
                round.acknowledged.to_string(),
                round.refused.to_string(),
                round.unknown.to_string(),
                format!("{:.1}", round.returned_s),
            ]
        })
        .collect()
    }

    pub const HEADER: [&str; 7] =
        ["round", "first payment ms", "longest answer ms", "acknowledged", "refused", "unknown", "back after s"];

    pub fn summary(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        format!(
            "{} rounds: first acknowledged payment after p50 {} ms, at most {} ms; shardctl verify found {}.",
            self.rounds.len(),
            number(self.p50_ms),
            number(self.max_ms),
            if self.verified { "the ledger clean" } else { "a VIOLATION" },
        )
    }
}

impl super::ExperimentReport for TakeoverReport {
    fn is_right(&self) -> bool {
        self.verified
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn print(&self) -> anyhow::Result<()> {
        print_all(&self.summary(), Self::HEADER, &self.rows(), &self.figures)
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: take-over");
        page.paragraph(&format!(
            "{}. {}. One shard with two nodes, two routers, {} clients that send one payment at a time; the first node is killed with \
             SIGKILL one second after the load began.",
            self.measured_at, self.machine, self.plan.clients
        ));
        page.paragraph(&self.summary());
        add_bars(&mut page, &self.figures);
        page.heading("Rounds");
        page.table(Self::HEADER, self.rows().into_iter().map(|row| (Mark::Plain, row)));
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::ExperimentReport as _;

    #[test]
    fn only_payments_sent_after_the_kill_count_as_the_first() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let payment = |sent, answered, end| Payment { sent: at(sent), answered: at(answered), end };
        let payments = Mutex::new(vec![
            payment(90, 110, End::Acknowledged),
            payment(105, 120, End::Refused),
            payment(120, 400, End::Acknowledged),
            payment(110, 450, End::Acknowledged),
        ]);
        assert_eq!(first_acknowledged(&payments, at(100)), Some(Duration::from_millis(300)));
        assert_eq!(first_acknowledged(&payments, at(500)), None);
    }

    #[test]
    fn a_round_beyond_a_second_misses_the_bar() {
        let round = |first_acknowledged_ms| Round {
            first_acknowledged_ms,
            acknowledged: 1,
            refused: 0,
            unknown: 0,
            longest_answer_ms: 1.0,
            returned_s: 6.0,
        };
        let report = |times: [f64; 3]| {
            TakeoverReport::new(TakeoverPlan { rounds: 3, clients: 4 }, times.map(round).into(), true)
        };
        let met = report([40.0, 60.0, 90.0]);
        assert_eq!((met.p50_ms, met.max_ms, met.figures[0].met), (Some(60.0), Some(90.0), true));
        assert!(!report([40.0, 60.0, 1_200.0]).figures[0].met);
        assert!(met.page().contains("Rounds") && met.summary().contains("p50 60 ms"), "{}", met.summary());
    }
}
