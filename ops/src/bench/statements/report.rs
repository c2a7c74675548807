//! What came out, held against the bar.

use serde::Serialize;

use super::question::Question;
use crate::bench::{Latency, tally::Tally};

/// How many entries the long history has, how often each question is asked, and from which seed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    pub entries: usize,
    pub requests: usize,
    pub seed: u64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub plan: Plan,
    pub cores: usize,
    /// Whether `verify` found the ledger clean.
    pub verified: bool,
    pub rows: Vec<Row>,
}

/// One question about one history.
#[derive(Debug, Serialize)]
pub struct Row {
    pub question: &'static str,
    pub entries: usize,
    pub latency_us: Latency,
    /// What it may take at the 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar_p99_us: Option<u64>,
    pub met: bool,
}

impl Report {
    pub fn new(plan: Plan, rows: Vec<Row>, verified: bool) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self { plan, cores, verified, rows }
    }

    pub fn all_met(&self) -> bool {
        self.rows.iter().all(|row| row.met)
    }
}

impl Row {
    pub fn new(question: &Question, entries: usize, tally: &Tally) -> Self {
        let latency_us = tally.latency();
        let bar_p99_us = question.bar_p99_us;
        let met = bar_p99_us.is_none_or(|bar| latency_us.p99 <= bar);
        Self { question: question.name, entries, latency_us, bar_p99_us, met }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::statements::question::QUESTIONS;

    #[test]
    fn the_slowest_hundredth_counts() {
        let tally = |slow: usize| {
            let mut tally = Tally::new().unwrap();
            (0..1_000).for_each(|n| tally.record(Duration::from_millis(if n < slow { 30 } else { 1 })));
            tally
        };
        let [barred, .., free] = &QUESTIONS;
        assert!(Row::new(barred, 1, &tally(5)).met);
        assert!(!Row::new(barred, 1, &tally(50)).met);
        assert!(Row::new(free, 1, &tally(50)).met);
    }
}
