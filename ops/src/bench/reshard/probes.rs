//! Clients that pay between two accounts of one slot at short intervals, in many slots: what they wait for while slots are handed over
//! is the pause as clients see it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::ensure;
use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use shard_map::{Slot, SlotRange, slot_of};
use telemetry::clock;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{http_client::HttpClient, resharding::view::MoveView};

/// Pairs of accounts, each in a slot of its own.
const PROBES: usize = 64;
/// How often each pays.
const EVERY: Duration = Duration::from_millis(100);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers are looked at from so long before the release to so long after the take, because clocks are read at other moments.
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
        // Spread over the interval.
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

    /// The longest wait for an answer, in microseconds, among those for a slot of the move that were waiting during its cut-over.
    pub fn longest_wait(&self, view: &MoveView, pause_us: i64) -> Option<i64> {
        let slots: Vec<SlotRange> = view.slots.iter().filter_map(|range| range.parse().ok()).collect();
        // The time of the release is taken when its answer has come.
        let (from, to) = (view.released_at_us - pause_us - AROUND_US, view.released_at_us + pause_us + AROUND_US);
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let of_move = waits.iter().filter(|wait| {
            let overlaps = wait.sent_us <= to && wait.sent_us + wait.took_us >= from;
            overlaps && slots.iter().any(|range| range.contains(wait.slot))
        });
        of_move.map(|wait| wait.took_us).max()
    }
}
