//! The report of a run of rounds. For each round it shows what the clients got from each shard over time, with the faults drawn in.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use report_page::{
    chart::Series,
    page::{Mark, Page},
    timeline::{Event, Panel, Timeline},
};
use testkit::{
    client::Verdict,
    cluster::Placement,
    history::{Attempt, Record},
};

/// The length of the intervals in which answers are counted.
const INTERVAL: Duration = Duration::from_millis(500);
/// The percentile of the latency that is drawn.
const PERCENT: usize = 95;

/// The report. It is written after each round, so that a run that ends early leaves a report of its rounds.
pub struct Report {
    file: PathBuf,
    rounds: Vec<RoundReport>,
}

pub struct RoundReport {
    pub seed: u64,
    pub timeline: Timeline,
    pub line: String,
    pub is_clean: bool,
}

impl Report {
    /// A report in `target/chaos/report.html`.
    pub fn begin() -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/chaos/report.html");
        Self { file, rounds: Vec::new() }
    }

    /// Adds a round and writes the page.
    pub fn add(&mut self, round: RoundReport) -> anyhow::Result<()> {
        self.rounds.push(round);
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&self.file, self.page()).with_context(|| format!("cannot write {}", self.file.display()))
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: rounds of random faults");
        page.paragraph(
            "Each round draws some faults and causes them under payments, batches, holds, captures, reversals and retries through two \
             routers. It then lets the cluster heal, and audits every answer that a client got. A payment counts for the shard that owned its debit account when the round began.",
        );
        page.table(
            ["round", "SEED", "verdict"],
            self.rounds.iter().zip(1..).map(|(round, number)| {
                let (mark, verdict) = if round.is_clean { (Mark::Met, "clean") } else { (Mark::Missed, "FAILED") };
                (mark, [format!("{number}"), round.seed.to_string(), verdict.to_owned()])
            }),
        );
        for (round, number) in self.rounds.iter().zip(1..) {
            page.heading(&format!("Round {number}, SEED={}", round.seed));
            page.wide_chart(&round.timeline.svg());
            page.note(&round.line);
        }
        page.finish()
    }
}

/// Draws what the clients were answered, by the shard of the debit account.
pub fn timeline(records: &[Record], placement: &Placement, events: Vec<Event>, length: Duration) -> Timeline {
    let mut shards: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
    for record in records {
        shards.entry(placement.shard_of(&record.order.debit)).or_default().extend(&record.attempts);
    }
    let intervals = usize::try_from(length.as_millis().div_ceil(INTERVAL.as_millis())).unwrap_or(0).max(1);
    let panel = |label: &str, value: &dyn Fn(&[&Attempt]) -> Option<f64>| Panel {
        label: label.to_owned(),
        series: shards.iter().map(|(shard, attempts)| over_time(shard, attempts, intervals, value)).collect(),
    };
    let per_second = |count: usize| Some(count as f64 / INTERVAL.as_secs_f64());
    let posted = |attempts: &[&Attempt]| per_second(attempts.iter().filter(|a| a.verdict == Verdict::Posted).count());
    let without_result = |attempts: &[&Attempt]| {
        let has_none = |a: &&&Attempt| matches!(a.verdict, Verdict::NotExecuted { .. } | Verdict::Unknown { .. });
        per_second(attempts.iter().filter(has_none).count())
    };
    Timeline {
        title: "What the clients were answered".to_owned(),
        seconds: length.as_secs_f64(),
        panels: vec![
            panel("posted transfers/s", &posted),
            panel(&format!("ms until {PERCENT} % of the answers"), &latency_ms),
            panel("answers without a result/s", &without_result),
        ],
        events,
    }
}

/// Computes a value for each interval from the answers that came in it.
fn over_time(
    name: &str,
    attempts: &[&Attempt],
    intervals: usize,
    value: &dyn Fn(&[&Attempt]) -> Option<f64>,
) -> Series {
    let mut by_interval: Vec<Vec<&Attempt>> = vec![Vec::new(); intervals];
    for attempt in attempts {
        let interval = usize::try_from(attempt.returned.as_millis() / INTERVAL.as_millis()).unwrap_or(usize::MAX);
        if let Some(of_interval) = by_interval.get_mut(interval) {
            of_interval.push(attempt);
        }
    }
    let points = by_interval.iter().enumerate();
    let points = points.filter_map(|(place, of)| Some(((place as f64 + 0.5) * INTERVAL.as_secs_f64(), value(of)?)));
    Series::new(name, points)
}

fn latency_ms(attempts: &[&Attempt]) -> Option<f64> {
    let mut took: Vec<Duration> = attempts.iter().map(|a| a.returned.saturating_sub(a.invoked)).collect();
    took.sort_unstable();
    let place = (took.len() * PERCENT / 100).min(took.len().checked_sub(1)?);
    Some(took[place].as_secs_f64() * 1_000.0)
}
