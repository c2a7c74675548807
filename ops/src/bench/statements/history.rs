//! Two accounts: one that is part of every transfer, and one that is part of a thousandth of them.

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use http::StatusCode;
use serde::Deserialize;
use telemetry::clock;

use crate::{
    bench::{
        accounts,
        connection::{Address, Answer, Connection},
        random::Random,
        request::{self, Ids, Writer},
        tally::Tally,
        workload::{Locality, Picker, Workload},
    },
    progress,
};

/// The account every transfer touches.
pub const LONG: usize = 0;
/// One of those at the other end.
pub const SHORT: usize = 1;
/// Roughly, of the accounts at the other end.
pub const SHORT_ENTRIES: usize = 1_000;

const BATCH: usize = 1_000;
const CONNECTIONS: usize = 8;
const PATH: &str = "/v1/transfers:batch";

/// Writes `entries` entries into the long history, in batches such as busy accounts get them.
pub async fn write(router: &Address, entries: usize, seed: u64) -> anyhow::Result<()> {
    let others = (entries / SHORT_ENTRIES).max(1);
    accounts::open(router, others + 1).await?;
    let picker = Picker::new(Workload::Hot, Locality::Any, vec![0; others + 1])?;
    let batches = entries.div_ceil(BATCH);
    progress::counted("entries", entries, async |bar| {
        let writers = (0..CONNECTIONS).map(async |number| {
            let mut connection = Connection::open(router).await?;
            let mut writer = Writer::new(Random::new(seed, number as u64), Ids::TimeOrdered, 0.0);
            for _ in (number..batches).step_by(CONNECTIONS) {
                let now_ms = u64::try_from(clock::now_us() / 1_000).unwrap_or_default();
                let answer = connection.post(PATH, |body| writer.batch(&picker, BATCH, now_ms, body)).await?;
                check(&answer)?;
                bar.inc(BATCH as u64);
            }
            anyhow::Ok(())
        });
        try_join_all(writers).await.map(|_| ())
    })
    .await
}

fn check(answer: &Answer<'_>) -> anyhow::Result<()> {
    let mut tally = Tally::new()?;
    request::count(answer.status, answer.body, BATCH as u64, &mut tally);
    ensure!(tally.posted == BATCH as u64, "of {BATCH} transfers {} were posted: {:?}", tally.posted, tally.codes);
    Ok(())
}

/// An account's history, as far as a question about it needs to know it.
pub struct History {
    pub account: String,
    pub entries: usize,
    /// The first transfer and the last, in microseconds.
    pub first_us: i64,
    pub last_us: i64,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    version: i64,
    created_at: String,
}

impl History {
    /// What the API says of an account that should have at least half of `expected` entries.
    pub async fn read(connection: &mut Connection, account: String, expected: usize) -> anyhow::Result<Self> {
        // The very first entry is the opening.
        let first = edge(connection, &account, "order=asc&limit=2").await?;
        let last = edge(connection, &account, "limit=1").await?;
        let entries = usize::try_from(last.version)?;
        ensure!(entries > expected / 2, "{account} has {entries} entries instead of about {expected}");
        let time = |entry: &Entry| {
            clock::parse_rfc3339(&entry.created_at).with_context(|| format!("{} is no time", entry.created_at))
        };
        Ok(Self { account, entries, first_us: time(&first)?, last_us: time(&last)? })
    }
}

/// The last entry of a page.
async fn edge(connection: &mut Connection, account: &str, query: &str) -> anyhow::Result<Entry> {
    let path = format!("/v1/accounts/{account}/entries?{query}");
    let answer = connection.get(&path).await?;
    ensure!(answer.status == StatusCode::OK, "{path}: {}", answer.status);
    let page: Page = serde_json::from_slice(answer.body).with_context(|| path.clone())?;
    page.data.into_iter().next_back().with_context(|| format!("{path}: no entries"))
}
