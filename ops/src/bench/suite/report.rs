//! The sums of the comparison: medians, ratios, and the bars they are held against.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{super::Measurement, cpu::PerTransfer};

/// How long, how often, and from which seed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    pub rounds: u32,
    pub seconds: u32,
    pub seed: u64,
}

/// Of each run, its samples, one a round.
pub type Samples = BTreeMap<String, Vec<Sample>>;

#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    pub transfers_per_s: f64,
    pub cpu_us_per_transfer: PerTransfer,
    /// In full, where it is ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours: Option<Measurement>,
}

/// A ratio that is promised.
struct Bar {
    claim: &'static str,
    ours: &'static str,
    /// The best of these is what ours is compared with.
    others: &'static [&'static str],
    at_least: f64,
}

const BARS: [Bar; 4] = [
    Bar {
        claim: "batches of 1,000, uniform, one shard : PL/pgSQL function",
        ours: "batch_uniform",
        others: &["function_uniform_16", "function_uniform_48"],
        at_least: 4.0,
    },
    Bar {
        claim: "batches of 1,000, hot account, one shard : PL/pgSQL function, hot account",
        ours: "batch_hot",
        others: &["function_hot_16", "function_hot_48"],
        at_least: 15.0,
    },
    Bar {
        claim: "single transfers over HTTP, 64 connections, one shard : PL/pgSQL function",
        ours: "single_uniform",
        others: &["function_uniform_16", "function_uniform_48"],
        at_least: 1.0,
    },
    Bar {
        claim: "batches of 1,000, all cross-shard, two shards : all local",
        ours: "two_shards_cross",
        others: &["two_shards_local"],
        at_least: 0.3,
    },
];

/// The result of `make bench`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub plan: Plan,
    pub cores: usize,
    /// Of PostgreSQL, the same on both sides.
    pub settings: BTreeMap<String, String>,
    /// Whether `verify` found the ledgers clean after all rounds.
    pub verified: bool,
    pub comparisons: Vec<Comparison>,
    pub samples: Samples,
}

#[derive(Debug, Serialize)]
pub struct Comparison {
    pub claim: &'static str,
    /// Median transfers a second.
    pub ours: f64,
    pub other: f64,
    pub ratio: f64,
    pub at_least: f64,
    pub met: bool,
}

impl Report {
    pub fn new(plan: Plan, settings: Vec<(String, String)>, samples: Samples, verified: bool) -> Self {
        Self {
            plan,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            settings: settings.into_iter().collect(),
            verified,
            comparisons: BARS.iter().map(|bar| bar.compare(&samples)).collect(),
            samples,
        }
    }

    pub fn all_met(&self) -> bool {
        self.comparisons.iter().all(|comparison| comparison.met)
    }
}

impl Bar {
    fn compare(&self, samples: &Samples) -> Comparison {
        let median_of = |name: &str| samples.get(name).map_or(0.0, |samples| median(samples));
        let ours = median_of(self.ours);
        let other = self.others.iter().map(|name| median_of(name)).fold(0.0, f64::max);
        let ratio = if other > 0.0 { ours / other } else { 0.0 };
        Comparison { claim: self.claim, ours, other, ratio, at_least: self.at_least, met: ratio >= self.at_least }
    }
}

/// Median transfers a second of some rounds.
pub fn median(samples: &[Sample]) -> f64 {
    let mut rates: Vec<f64> = samples.iter().map(|sample| sample.transfers_per_s).collect();
    rates.sort_unstable_by(f64::total_cmp);
    match rates.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => rates[odd / 2],
        even => (rates[even / 2 - 1] + rates[even / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rates: &[f64]) -> Vec<Sample> {
        let cpu_us_per_transfer = PerTransfer { client: 0.0, routers: 0.0, nodes: 0.0, postgres: 0.0 };
        rates.iter().map(|&transfers_per_s| Sample { transfers_per_s, cpu_us_per_transfer, ours: None }).collect()
    }

    #[test]
    fn medians_shrug_off_one_bad_round() {
        assert_eq!(median(&samples(&[3.0, 100.0, 1.0])), 3.0);
        assert_eq!(median(&samples(&[4.0, 2.0])), 3.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_better_of_the_others_counts() {
        let measured = Samples::from([
            ("batch_uniform".to_owned(), samples(&[40.0])),
            ("function_uniform_16".to_owned(), samples(&[8.0])),
            ("function_uniform_48".to_owned(), samples(&[10.0])),
        ]);
        let comparison = BARS[0].compare(&measured);
        assert_eq!((comparison.other, comparison.ratio, comparison.met), (10.0, 4.0, true));
        assert!(!BARS[1].compare(&measured).met, "what was not measured is not met");
    }
}
