//! What a run counted: outcomes and latencies.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies up to this are told apart; longer ones count as this.
const LONGEST_US: u64 = 120_000_000;
/// Three significant digits: 0.1 % of the value.
const DIGITS: u8 = 3;

/// Counts of one connection, or of all of them.
#[derive(Debug)]
pub struct Tally {
    pub requests: u64,
    pub posted: u64,
    pub pending: u64,
    /// Everything that neither posted nor is under way, by code: refusals, 503, broken connections.
    pub codes: BTreeMap<String, u64>,
    latency_us: Histogram<u64>,
}

/// Latency of requests, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
}

impl Tally {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            requests: 0,
            posted: 0,
            pending: 0,
            codes: BTreeMap::new(),
            latency_us: Histogram::new_with_bounds(1, LONGEST_US, DIGITS)?,
        })
    }

    pub fn record(&mut self, latency: std::time::Duration) {
        self.requests += 1;
        self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US).max(1));
    }

    pub fn count_code(&mut self, code: &str) {
        match self.codes.get_mut(code) {
            Some(count) => *count += 1,
            None => {
                self.codes.insert(code.to_owned(), 1);
            }
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.posted += other.posted;
        self.pending += other.pending;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        // Both have the same bounds, the one thing that could make this fail.
        let _ = self.latency_us.add(other.latency_us);
    }

    pub fn latency(&self) -> Latency {
        let at = |quantile| self.latency_us.value_at_quantile(quantile);
        Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max: self.latency_us.max() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tallies_add_up() {
        let (mut one, mut other) = (Tally::new().unwrap(), Tally::new().unwrap());
        for us in 1..=1_000 {
            one.record(Duration::from_micros(us));
        }
        other.record(Duration::from_secs(1_000));
        other.posted = 5;
        other.count_code("overloaded");
        one.merge(other);
        assert_eq!((one.requests, one.posted, one.codes["overloaded"]), (1_001, 5, 1));
        let latency = one.latency();
        assert_eq!(latency.p50, 501);
        assert!(latency.max >= LONGEST_US, "too long a latency counts as the longest: {}", latency.max);
    }
}
