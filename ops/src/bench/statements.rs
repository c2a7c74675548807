//! `shardctl bench statements` measures how long a statement of an account with a long history takes, compared with an account with a short
//! history. The histories are written through the API.

use std::path::Path;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::clock::{self, format_rfc3339};
use tokio::time::Instant;

use super::{
    Experiment,
    connection::{Address, Answer, Connection},
    own_cluster::OwnCluster,
    print_verdict,
    request::{self, Ids, RequestWriter, account_id},
    subject,
    tally::{Latency, Tally},
    workload::{Locality, Picker, Random, Workload},
};
use crate::{output, verify};

/// Exit code 1: a question takes longer than its bar. 3: the ledger that was measured does not balance.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct StatementsPlan {
    /// Entries of the long history
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(10_000..))]
    entries: u32,
    /// Number of times each question is asked
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..))]
    requests: u32,
    #[arg(skip)]
    seed: u64,
}

/// The rounds that do not count. Meanwhile connections open, caches fill and statements are planned.
const WARM_UP: usize = 50;

impl Experiment for StatementsPlan {
    type Report = StatementsReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        self.seed = seed;
        output::note(&format!("seed {seed}, a history of {} entries", self.entries));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<StatementsReport> {
        let cluster = OwnCluster::start(folder.join("statements"), 1, 1)?;
        let router = cluster.description.routers.first().context("a cluster without routers")?;
        let router = Address::parse(&router.url())?;
        write_history(&router, self.entries as usize, self.seed).await?;
        let mut connection = Connection::open(&router).await?;
        let accounts = [
            StoredHistory::read(&mut connection, account_id(LONG), self.entries as usize).await?,
            StoredHistory::read(&mut connection, account_id(SHORT), SHORT_ENTRIES).await?,
        ];
        let rows = ask(&mut connection, &self, &accounts).await?;
        let clean = verify::verify(&cluster.databases()?).await?.is_clean();
        Ok(StatementsReport::new(self, rows, clean))
    }
}

/// Asks every question about every account in turn, so that a disturbance of the machine affects all questions alike.
async fn ask(
    connection: &mut Connection,
    plan: &StatementsPlan,
    accounts: &[StoredHistory],
) -> anyhow::Result<Vec<StatementsRow>> {
    let mut random = Random::new(plan.seed, u64::MAX);
    let mut asked: Vec<(&'static Question, &StoredHistory, Tally)> = Vec::new();
    for question in &QUESTIONS {
        for account in accounts {
            asked.push((question, account, Tally::new()?));
        }
    }
    let requests = plan.requests as usize;
    output::counted("statements", requests, async |bar| {
        for round in 0..WARM_UP + requests {
            for (question, account, tally) in &mut asked {
                let path = question.path(account, &mut random);
                let sent = Instant::now();
                let answer = connection.get(&path).await?;
                let latency = sent.elapsed();
                question.check(answer.status, answer.body).with_context(|| path.clone())?;
                if round >= WARM_UP {
                    tally.record(latency);
                }
            }
            bar.inc(1);
        }
        anyhow::Ok(())
    })
    .await?;
    Ok(asked
        .into_iter()
        .map(|(question, account, tally)| StatementsRow::new(question, account.entries, &tally))
        .collect())
}

/// The account of every transfer.
const LONG: usize = 0;
/// One of the accounts at the other end of the transfers.
const SHORT: usize = 1;
/// The approximate number of entries of each account at the other end.
const SHORT_ENTRIES: usize = 1_000;

const BATCH: usize = 1_000;
const CONNECTIONS: usize = 8;
const PATH: &str = "/v1/transfers:batch";

/// Writes `entries` entries into the long history, in batches, as busy accounts get them.
async fn write_history(router: &Address, entries: usize, seed: u64) -> anyhow::Result<()> {
    let others = (entries / SHORT_ENTRIES).max(1);
    subject::open_accounts(router, others + 1).await?;
    let picker = Picker::new(Workload::Hot, Locality::Any, vec![0; others + 1])?;
    let batches = entries.div_ceil(BATCH);
    output::counted("entries", entries, async |bar| {
        let writers = (0..CONNECTIONS).map(async |number| {
            let mut connection = Connection::open(router).await?;
            let mut writer = RequestWriter::new(Random::new(seed, number as u64), Ids::TimeOrdered, 0.0);
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

/// The facts of an account's history that questions about it need.
struct StoredHistory {
    account: String,
    entries: usize,
    /// The first transfer and the last, in microseconds.
    first_us: i64,
    last_us: i64,
}

#[derive(Deserialize)]
struct EntriesPage {
    data: Vec<HistoryEntry>,
}

#[derive(Deserialize)]
struct HistoryEntry {
    version: i64,
    created_at: String,
}

impl StoredHistory {
    /// What the API says of an account that should have at least half of `expected` entries.
    async fn read(connection: &mut Connection, account: String, expected: usize) -> anyhow::Result<Self> {
        // The first entry is the opening of the account.
        let first = edge(connection, &account, "order=asc&limit=2").await?;
        let last = edge(connection, &account, "limit=1").await?;
        let entries = usize::try_from(last.version)?;
        ensure!(entries > expected / 2, "{account} has {entries} entries instead of about {expected}");
        let time = |entry: &HistoryEntry| {
            clock::parse_rfc3339(&entry.created_at).with_context(|| format!("{} is no time", entry.created_at))
        };
        Ok(Self { account, entries, first_us: time(&first)?, last_us: time(&last)? })
    }
}

/// The last entry of a page.
async fn edge(connection: &mut Connection, account: &str, query: &str) -> anyhow::Result<HistoryEntry> {
    let path = format!("/v1/accounts/{account}/entries?{query}");
    let answer = connection.get(&path).await?;
    ensure!(answer.status == StatusCode::OK, "{path}: {}", answer.status);
    let page: EntriesPage = serde_json::from_slice(answer.body).with_context(|| path.clone())?;
    page.data.into_iter().next_back().with_context(|| format!("{path}: no entries"))
}

/// One kind of request.
struct Question {
    /// Its name in the report.
    name: &'static str,
    /// The longest time it may take, in microseconds at the 99th percentile.
    bar_p99_us: Option<u64>,
    what: QuestionKind,
}

#[derive(Clone, Copy)]
enum QuestionKind {
    /// A page of entries: its query, and the expected number of entries.
    Page { query: &'static str, entries: usize },
    /// A page of a window in time that begins in the middle of the history.
    PageByTime { query: &'static str },
    /// The balance at a time in the middle of the history.
    BalanceAt,
}

/// The bar of a balance or a page of the default size.
const BAR_P99_US: Option<u64> = Some(20_000);

const QUESTIONS: [Question; 6] = [
    of("first page", BAR_P99_US, QuestionKind::Page { query: "limit=50", entries: 50 }),
    of("page by time, newest first", BAR_P99_US, QuestionKind::PageByTime { query: "order=desc" }),
    of("page by time, oldest first", BAR_P99_US, QuestionKind::PageByTime { query: "order=asc" }),
    of("last page", BAR_P99_US, QuestionKind::Page { query: "order=asc&limit=50", entries: 50 }),
    of("balance at a time", BAR_P99_US, QuestionKind::BalanceAt),
    of("first page, 500 entries", None, QuestionKind::Page { query: "limit=500", entries: 500 }),
];

const fn of(name: &'static str, bar_p99_us: Option<u64>, what: QuestionKind) -> Question {
    Question { name, bar_p99_us, what }
}

impl Question {
    fn path(&self, history: &StoredHistory, random: &mut Random) -> String {
        let account = format!("/v1/accounts/{}", history.account);
        // The moment differs in each request, so that no cache contains the answer.
        let length_us = history.last_us - history.first_us;
        let mut moment = |share: f64| {
            let after_us = (length_us as f64 * (0.1 + share * random.fraction())) as i64;
            format_rfc3339(history.first_us + after_us)
        };
        match self.what {
            QuestionKind::Page { query, .. } => format!("{account}/entries?{query}"),
            QuestionKind::PageByTime { query } => {
                let (from, to) = (moment(0.4), format_rfc3339(history.first_us + length_us / 10 * 9));
                format!("{account}/entries?{query}&limit=50&from={from}&to={to}")
            }
            QuestionKind::BalanceAt => format!("{account}/balance?at={}", moment(0.8)),
        }
    }

    /// Fails if the answer is not the expected one, because its latency would then be meaningless.
    fn check(&self, status: StatusCode, answer: &[u8]) -> anyhow::Result<()> {
        ensure!(status == StatusCode::OK, "answered {status}: {}", String::from_utf8_lossy(answer));
        let answer: Value = serde_json::from_slice(answer)?;
        let entries = || answer["data"].as_array().map(Vec::len).context("a page without data");
        match self.what {
            QuestionKind::Page { entries: expected, .. } => ensure!(entries()? == expected, "{} entries", entries()?),
            QuestionKind::PageByTime { .. } => ensure!(entries()? > 0, "an empty page"),
            QuestionKind::BalanceAt => ensure!(answer["version"].as_i64() > Some(0), "{answer}"),
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
pub struct StatementsReport {
    pub plan: StatementsPlan,
    pub cores: usize,
    /// Whether `verify` found the ledger clean.
    pub verified: bool,
    pub rows: Vec<StatementsRow>,
}

/// One question about one history.
#[derive(Debug, Serialize)]
pub struct StatementsRow {
    pub question: &'static str,
    pub entries: usize,
    pub latency_us: Latency,
    /// The longest time it may take at the 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar_p99_us: Option<u64>,
    pub met: bool,
}

impl StatementsReport {
    fn new(plan: StatementsPlan, rows: Vec<StatementsRow>, verified: bool) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self { plan, cores, verified, rows }
    }
}

impl StatementsRow {
    fn new(question: &Question, entries: usize, tally: &Tally) -> Self {
        let latency_us = tally.latency();
        let bar_p99_us = question.bar_p99_us;
        let met = bar_p99_us.is_none_or(|bar| latency_us.p99 <= bar);
        Self { question: question.name, entries, latency_us, bar_p99_us, met }
    }
}

fn cells(row: &StatementsRow) -> [String; 6] {
    let ms = |us: u64| format!("{:.1}", us as f64 / 1_000.0);
    let verdict = match (row.bar_p99_us, row.met) {
        (None, _) => "",
        (Some(_), true) => "met",
        (Some(_), false) => "ABOVE",
    };
    [
        row.question.to_owned(),
        row.entries.to_string(),
        ms(row.latency_us.p50),
        ms(row.latency_us.p99),
        row.bar_p99_us.map_or_else(String::new, ms),
        verdict.to_owned(),
    ]
}

impl super::ExperimentReport for StatementsReport {
    fn is_right(&self) -> bool {
        self.verified
    }

    fn figures(&self) -> &[super::figures::Figure] {
        &[]
    }

    fn meets_bars(&self) -> bool {
        self.rows.iter().all(|row| row.met)
    }

    fn print(&self) -> anyhow::Result<()> {
        let rows: Vec<[String; 6]> = self.rows.iter().map(cells).collect();
        output::table(["statement over HTTP", "entries", "p50 ms", "p99 ms", "bar", ""], &rows)?;
        print_verdict(self.verified)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_slowest_hundredth_counts() {
        let tally = |slow: usize| {
            let mut tally = Tally::new().unwrap();
            (0..1_000).for_each(|n| tally.record(Duration::from_millis(if n < slow { 30 } else { 1 })));
            tally
        };
        let [barred, .., free] = &QUESTIONS;
        assert!(StatementsRow::new(barred, 1, &tally(5)).met);
        assert!(!StatementsRow::new(barred, 1, &tally(50)).met);
        assert!(StatementsRow::new(free, 1, &tally(50)).met);
    }
}
