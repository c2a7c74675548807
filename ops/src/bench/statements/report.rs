//! What came out, held against the bar.

use serde::Serialize;

use crate::bench::{Latency, tally::Tally};

/// What a statement may take, in microseconds at the 99th percentile.
const BAR_P99_US: u64 = 20_000;

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
    pub bar_p99_us: u64,
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
    pub met: bool,
}

impl Report {
    pub fn new(plan: Plan, rows: Vec<Row>, verified: bool) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self { plan, cores, bar_p99_us: BAR_P99_US, verified, rows }
    }

    pub fn all_met(&self) -> bool {
        self.rows.iter().all(|row| row.met)
    }
}

impl Row {
    pub fn new(question: &'static str, entries: usize, tally: &Tally) -> Self {
        let latency_us = tally.latency();
        Self { question, entries, met: latency_us.p99 <= BAR_P99_US, latency_us }
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
        assert!(Row::new("page", 1, &tally(5)).met);
        assert!(!Row::new("page", 1, &tally(50)).met);
    }
}
