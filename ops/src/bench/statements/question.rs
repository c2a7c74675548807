//! What is asked about a history.

use anyhow::{Context, ensure};
use http::StatusCode;
use serde_json::Value;
use telemetry::clock::format_rfc3339;

use super::history::History;
use crate::bench::random::Random;

/// One kind of request.
pub struct Question {
    /// Its name in the report.
    pub name: &'static str,
    /// What it may take, in microseconds at the 99th percentile.
    pub bar_p99_us: Option<u64>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// A page of entries: its query and how many there should be.
    Page { query: &'static str, entries: usize },
    /// A page of a window in time that begins somewhere in the middle.
    PageByTime { query: &'static str },
    /// The balance at some time in the middle.
    BalanceAt,
}

/// Of a balance or a page of the default size.
const BAR_P99_US: Option<u64> = Some(20_000);

pub const QUESTIONS: [Question; 6] = [
    of("first page", BAR_P99_US, What::Page { query: "limit=50", entries: 50 }),
    of("page by time, newest first", BAR_P99_US, What::PageByTime { query: "order=desc" }),
    of("page by time, oldest first", BAR_P99_US, What::PageByTime { query: "order=asc" }),
    of("last page", BAR_P99_US, What::Page { query: "order=asc&limit=50", entries: 50 }),
    of("balance at a time", BAR_P99_US, What::BalanceAt),
    of("first page, 500 entries", None, What::Page { query: "limit=500", entries: 500 }),
];

const fn of(name: &'static str, bar_p99_us: Option<u64>, what: What) -> Question {
    Question { name, bar_p99_us, what }
}

impl Question {
    pub fn path(&self, history: &History, random: &mut Random) -> String {
        let account = format!("/v1/accounts/{}", history.account);
        // Another moment each time, so that no cache has the answer.
        let length_us = history.last_us - history.first_us;
        let mut moment = |share: f64| {
            let after_us = (length_us as f64 * (0.1 + share * random.fraction())) as i64;
            format_rfc3339(history.first_us + after_us)
        };
        match self.what {
            What::Page { query, .. } => format!("{account}/entries?{query}"),
            What::PageByTime { query } => {
                let (from, to) = (moment(0.4), format_rfc3339(history.first_us + length_us / 10 * 9));
                format!("{account}/entries?{query}&limit=50&from={from}&to={to}")
            }
            What::BalanceAt => format!("{account}/balance?at={}", moment(0.8)),
        }
    }

    /// An answer that is not what was asked for is not worth timing.
    pub fn check(&self, status: StatusCode, answer: &[u8]) -> anyhow::Result<()> {
        ensure!(status == StatusCode::OK, "answered {status}: {}", String::from_utf8_lossy(answer));
        let answer: Value = serde_json::from_slice(answer)?;
        let entries = || answer["data"].as_array().map(Vec::len).context("a page without data");
        match self.what {
            What::Page { entries: expected, .. } => ensure!(entries()? == expected, "{} entries", entries()?),
            What::PageByTime { .. } => ensure!(entries()? > 0, "an empty page"),
            What::BalanceAt => ensure!(answer["version"].as_i64() > Some(0), "{answer}"),
        }
        Ok(())
    }
}
