//! Clients beside the load. [`Clients`] capture and release holds or let them expire, reverse transfers, send old transfers again, page
//! through a statement, and read lists and sums. Each client checks its answers. [`Probes`] pay between two accounts of one slot at short
//! intervals, in many slots. Their longest wait while slots are handed over is the pause that clients see.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};
use shard_map::{Slot, SlotRange, slot_of};
use telemetry::clock;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    http_client::{HttpClient, encoded},
    resharding::view::MoveView,
};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two rounds of a client.
const REST: Duration = Duration::from_millis(200);
/// The number of transfers that are sent again and again.
const KEPT: usize = 200;
/// The lifetime of a hold that is neither captured nor released.
const EXPIRES_S: u64 = 2;
/// The number of entries on a page of a statement.
const PAGE: usize = 100;
/// The most pages that a client reads in a round, because the statement of the busiest account is long.
const PAGES: usize = 10;

/// What the clients did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClientCounts {
    pub holds: u64,
    pub captures: u64,
    pub reversals: u64,
    pub replays: u64,
    pub statement_entries: u64,
    pub lists: u64,
    pub failures: Vec<String>,
}

pub struct Clients {
    urls: Vec<String>,
    tags: Vec<String>,
    /// A sent transfer, and the answer to it.
    kept: Mutex<Vec<(Value, Bytes)>>,
    done: Mutex<ClientCounts>,
}

impl Clients {
    pub async fn open(urls: &[String], tags: Vec<String>) -> anyhow::Result<Self> {
        let clients = Self { urls: urls.to_vec(), tags, kept: Mutex::default(), done: Mutex::default() };
        for number in 0..KEPT {
            clients.keep(number).await?;
        }
        Ok(clients)
    }

    /// Runs every client until `stop`.
    pub async fn run(self, stop: &CancellationToken) -> ClientCounts {
        tokio::join!(
            self.repeat("holds", stop, async |client, round| self.hold(client, round).await),
            self.repeat("replays", stop, async |client, round| self.replay(client, round).await),
            self.repeat("statement", stop, async |client, round| self.page_statement(client, round).await),
            self.repeat("lists", stop, async |client, round| self.list(client, round).await),
        );
        self.done.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    async fn repeat(
        &self,
        name: &str,
        stop: &CancellationToken,
        work: impl AsyncFn(&HttpClient, usize) -> anyhow::Result<()>,
    ) {
        let client = HttpClient::new(ANSWER_TIMEOUT);
        for round in 0.. {
            if let Err(error) = work(&client, round).await {
                self.note(|done| done.failures.push(format!("{name}, round {round}: {error:#}")));
            }
            if stop.run_until_cancelled(tokio::time::sleep(REST)).await.is_none() {
                return;
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut ClientCounts)) {
        change(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn url(&self, round: usize, path: &str) -> String {
        format!("{}{path}", self.urls[round % self.urls.len()])
    }

    fn tag(&self, round: usize) -> &str {
        &self.tags[round % self.tags.len()]
    }

    async fn post(&self, client: &HttpClient, round: usize, path: &str, body: &Value) -> anyhow::Result<Bytes> {
        let (status, answer) =
            client.send(Method::POST, &self.url(round, path), Bytes::from(body.to_string())).await?;
        ensure!(status.is_success(), "{path} {body} was answered {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }

    async fn get(&self, client: &HttpClient, round: usize, path: &str) -> anyhow::Result<Value> {
        client.get(&self.url(round, path)).await.with_context(|| path.to_owned())
    }

    /// Sends a transfer and keeps it with its answer. Half of the transfers are between two slots.
    async fn keep(&self, number: usize) -> anyhow::Result<()> {
        let client = HttpClient::new(ANSWER_TIMEOUT);
        let (debit, credit) = (self.tag(number), self.tag(number * 7 + number % 2));
        let order = json!({
            "id": Uuid::now_v7(), "debit": format!("{debit}:a"), "credit": format!("{credit}:b"), "amount": "0.02", "asset": "USD",
        });
        self.post(&client, number, "/v1/transfers", &order).await?;
        // The first answer may have been 202. The kept answer says how the transfer ended.
        for _ in 0..200 {
            let answer = self.post(&client, number, "/v1/transfers", &order).await?;
            if serde_json::from_slice::<Value>(&answer)?["status"] == "posted" {
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((order, answer));
                return Ok(());
            }
            tokio::time::sleep(REST).await;
        }
        bail!("{order} stays pending");
    }

    /// Sends a kept transfer again, and checks that the answer is the first one, byte by byte.
    async fn replay(&self, client: &HttpClient, round: usize) -> anyhow::Result<()> {
        let (order, first) = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept[round % kept.len()].clone()
        };
        let again = self.post(client, round, "/v1/transfers", &order).await?;
        let shown = String::from_utf8_lossy(&again);
        ensure!(again == first, "{order} was answered {shown}, and before {}", String::from_utf8_lossy(&first));
        self.note(|done| done.replays += 1);
        Ok(())
    }

    /// Places a hold and captures a part, releases it, or lets it expire. A captured part is reversed.
    async fn hold(&self, client: &HttpClient, round: usize) -> anyhow::Result<()> {
        let (debit, credit) = (format!("{}:a", self.tag(round)), format!("{}:b", self.tag(round * 5 + 1)));
        let id = Uuid::now_v7();
        let order = json!({
            "id": id, "debit": debit, "credit": credit, "amount": "0.05", "asset": "USD", "expires_in_s": EXPIRES_S,
        });
        self.post(client, round, "/v1/holds", &order).await?;
        self.note(|done| done.holds += 1);
        let of_debit = format!("?debit={}", encoded(&debit));
        let path = format!("/v1/holds/{id}");
        let ended = match round % 3 {
            0 => {
                let capture = Uuid::now_v7();
                let order = json!({"id": capture, "amount": "0.03"});
                self.post(client, round, &format!("{path}/capture{of_debit}"), &order).await?;
                self.note(|done| done.captures += 1);
                let back = json!({"id": Uuid::now_v7(), "amount": "0.03"});
                self.post(client, round, &format!("/v1/transfers/{capture}/reverse{of_debit}"), &back).await?;
                self.note(|done| done.reversals += 1);
                "captured"
            }
            1 => {
                self.post(client, round, &format!("{path}/release{of_debit}"), &json!({})).await?;
                "released"
            }
            _ => {
                tokio::time::sleep(Duration::from_secs(EXPIRES_S)).await;
                "expired"
            }
        };
        // A periodic sweep expires holds, and a capture may still be pending.
        for _ in 0..200 {
            let hold = self.get(client, round, &format!("{path}{of_debit}")).await?;
            if hold["status"] == ended {
                return Ok(());
            }
            tokio::time::sleep(REST).await;
        }
        bail!("hold {id} of {debit} does not become {ended}");
    }

    /// Pages through the statement of an account that the load uses, and checks that its versions have no gap.
    async fn page_statement(&self, client: &HttpClient, round: usize) -> anyhow::Result<()> {
        // The first account is the busiest one.
        let account = if round.is_multiple_of(2) { "bench:0".to_owned() } else { format!("{}:a", self.tag(round)) };
        let path = format!("/v1/accounts/{}/entries?limit={PAGE}", encoded(&account));
        let (mut cursor, mut expected) = (String::new(), None);
        for _ in 0..PAGES {
            let page = self.get(client, round, &format!("{path}{cursor}")).await?;
            for entry in page["data"].as_array().context("a page without data")? {
                let version = entry["version"].as_i64().context("an entry without a version")?;
                if let Some(expected) = expected {
                    ensure!(version == expected, "{account}: version {version} follows {}", expected + 1);
                }
                expected = Some(version - 1);
                self.note(|done| done.statement_entries += 1);
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={}", encoded(next)),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Lists the accounts of the probes, and adds them up.
    async fn list(&self, client: &HttpClient, round: usize) -> anyhow::Result<()> {
        let path = format!("/v1/accounts?prefix={}&limit={PAGE}", encoded("{probe"));
        let (mut cursor, mut ids) = (String::new(), Vec::new());
        loop {
            let page = self.get(client, round, &format!("{path}{cursor}")).await?;
            let accounts = page["data"].as_array().context("a page without data")?;
            ids.extend(accounts.iter().filter_map(|account| account["id"].as_str().map(str::to_owned)));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={}", encoded(next)),
                None => break,
            }
        }
        let expected = self.tags.len() * 2;
        ensure!(ids.len() == expected, "{} accounts are listed instead of {expected}", ids.len());
        ensure!(ids.is_sorted(), "the accounts are not listed in the order of their ids");
        let sums = self.get(client, round, "/v1/balances?prefix=bench:").await?;
        ensure!(sums["partial"] == false, "a shard did not report its sums: {sums}");
        self.note(|done| done.lists += 1);
        Ok(())
    }
}

/// Pairs of accounts, each in a slot of its own.
const PROBES: usize = 64;
/// The interval at which each probe pays.
const EVERY: Duration = Duration::from_millis(100);
/// The cut-over is widened by this time on both sides, because the release, the take and the answers are timed at different moments.
const AROUND_US: i64 = 20_000;

/// Payments a second of all probes together.
pub const RATE: f64 = PROBES as f64 * 10.0;

/// One payment.
#[derive(Debug, Clone, Copy)]
struct Wait {
    slot: Slot,
    sent_us: i64,
    took_us: i64,
}

pub struct Probes {
    urls: Vec<String>,
    tags: Vec<String>,
    waits: Mutex<Vec<Wait>>,
    failures: Mutex<Vec<String>>,
}

impl Probes {
    /// Opens the accounts.
    pub async fn open(urls: &[String]) -> anyhow::Result<Self> {
        let tags: Vec<String> = (0..PROBES).map(|number| format!("{{probe{number}}}")).collect();
        let accounts: Vec<_> = tags
            .iter()
            .flat_map(|tag| [format!("{tag}:a"), format!("{tag}:b")])
            .map(|id| json!({"id": id, "asset": "USD", "overdraft": "unlimited"}))
            .collect();
        let client = HttpClient::new(ANSWER_TIMEOUT);
        let body = serde_json::to_vec(&json!({"accounts": accounts}))?;
        let (status, answer) =
            client.send(Method::POST, &format!("{}/v1/accounts:batch", urls[0]), Bytes::from(body)).await?;
        ensure!(status.is_success(), "opening the probes' accounts: {status} {}", String::from_utf8_lossy(&answer));
        Ok(Self { urls: urls.to_vec(), tags, waits: Mutex::default(), failures: Mutex::default() })
    }

    /// The tags of the accounts, `{tag}:a` and `{tag}:b`.
    pub fn tags(&self) -> Vec<String> {
        self.tags.clone()
    }

    /// Pays until `stop`.
    pub async fn run(&self, stop: &CancellationToken) {
        join_all(self.tags.iter().enumerate().map(|(number, tag)| self.pay(number, tag, stop))).await;
    }

    async fn pay(&self, number: usize, tag: &str, stop: &CancellationToken) {
        let (client, slot) = (HttpClient::new(ANSWER_TIMEOUT), slot_of(tag));
        let url = format!("{}/v1/transfers", self.urls[number % self.urls.len()]);
        // The probes are spread over the interval.
        let mut due =
            Instant::now() + EVERY * u32::try_from(number).unwrap_or(0) / u32::try_from(PROBES).unwrap_or(1);
        while stop.run_until_cancelled(sleep_until(due)).await.is_some() {
            due = Instant::now().max(due) + EVERY;
            let (debit, credit) = (format!("{tag}:a"), format!("{tag}:b"));
            let order =
                json!({"id": Uuid::now_v7(), "debit": debit, "credit": credit, "amount": "0.01", "asset": "USD"});
            let (sent_us, begun) = (clock::now_us(), Instant::now());
            let answer = client.send(Method::POST, &url, Bytes::from(order.to_string())).await;
            let took_us = i64::try_from(begun.elapsed().as_micros()).unwrap_or(i64::MAX);
            match answer {
                Ok((status, _)) if status.is_success() => {
                    let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
                    waits.push(Wait { slot, sent_us, took_us });
                }
                Ok((status, body)) => {
                    self.fail(format!("{order} was answered {status}: {}", String::from_utf8_lossy(&body)))
                }
                Err(error) => self.fail(format!("{order}: {error:#}")),
            }
        }
    }

    fn fail(&self, what: String) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The longest wait for an answer, in microseconds, among the payments in slots of the move that were waiting during its cut-over.
    pub fn longest_wait(&self, view: &MoveView, pause_us: i64) -> Option<i64> {
        let slots: Vec<SlotRange> = view.slots.iter().filter_map(|range| range.parse().ok()).collect();
        // The driver takes the time of the release when its answer has arrived.
        let (from, to) = (view.released_at_us - pause_us - AROUND_US, view.released_at_us + pause_us + AROUND_US);
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let of_move = waits.iter().filter(|wait| {
            let overlaps = wait.sent_us <= to && wait.sent_us + wait.took_us >= from;
            overlaps && slots.iter().any(|range| range.contains(wait.slot))
        });
        of_move.map(|wait| wait.took_us).max()
    }
}
