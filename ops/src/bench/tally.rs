//! The counts of a run: outcomes and latencies, in total and by window of time.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The longest latency that is recorded. A longer latency counts as this one.
const LONGEST_US: u64 = 120_000_000;
/// Three significant digits, so latencies are exact to 0.1 %.
const DIGITS: u8 = 3;
/// A run may have many windows; two digits keep each of them small.
const WINDOW_DIGITS: u8 = 2;

/// Counts of one thread, or of all of them.
#[derive(Debug)]
pub struct Tally {
    pub requests: u64,
    pub posted: u64,
    pub pending: u64,
    /// The part of `posted` and `pending` whose transfers had been sent before.
    pub replayed: u64,
    /// Transfers that are neither posted nor under way, by code: refusals, 503, broken connections.
    pub codes: BTreeMap<String, u64>,
    latency_us: Histogram<u64>,
    refusal_latency_us: Histogram<u64>,
}

/// Latency of requests, in microseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
}

impl Tally {
    pub fn new() -> anyhow::Result<Self> {
        Self::with_digits(DIGITS)
    }

    fn with_digits(digits: u8) -> anyhow::Result<Self> {
        Ok(Self {
            requests: 0,
            posted: 0,
            pending: 0,
            replayed: 0,
            codes: BTreeMap::new(),
            latency_us: Histogram::new_with_bounds(1, LONGEST_US, digits)?,
            refusal_latency_us: Histogram::new_with_bounds(1, LONGEST_US, WINDOW_DIGITS)?,
        })
    }

    pub fn record(&mut self, latency: Duration) {
        self.requests += 1;
        self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US).max(1));
    }

    /// Records how long a request without a result took, from when it was sent.
    pub fn record_refusal(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US).max(1);
        self.refusal_latency_us.saturating_record(us);
    }

    pub fn count_code(&mut self, code: &str) {
        match self.codes.get_mut(code) {
            Some(count) => *count += 1,
            None => {
                self.codes.insert(code.to_owned(), 1);
            }
        }
    }

    /// Transfers that were posted or begun for the first time.
    pub fn effects(&self) -> u64 {
        (self.posted + self.pending).saturating_sub(self.replayed)
    }

    pub fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.posted += other.posted;
        self.pending += other.pending;
        self.replayed += other.replayed;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        // This fails only for different bounds, and both histograms have the same bounds.
        let _ = self.latency_us.add(other.latency_us);
        let _ = self.refusal_latency_us.add(other.refusal_latency_us);
    }

    pub fn latency(&self) -> Latency {
        Latency::of(&self.latency_us)
    }

    /// The latency of requests without a result, from the moment they were sent.
    pub fn refusal_latency(&self) -> Latency {
        Latency::of(&self.refusal_latency_us)
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
        }
    }
}

/// Counts of the requests that were meant to leave in one window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Window {
    /// Seconds from the moment the counting began.
    pub from_s: f64,
    pub transfers_per_s: f64,
    pub requests: u64,
    /// Requests that were not answered with posted or pending transfers.
    pub failures: u64,
    pub latency_us: Latency,
}

/// The recorder of one thread, in which its connections record the outcomes of their requests.
#[derive(Debug)]
pub struct Recorder {
    pub total: Tally,
    /// What was answered before the counting began.
    pub warm_up: Tally,
    counted_from: Instant,
    window: Option<Duration>,
    windows: Vec<Tally>,
    last_success: Option<Instant>,
    longest_pause: Duration,
}

impl Recorder {
    pub fn new(counted_from: Instant, window: Option<Duration>) -> anyhow::Result<Self> {
        let (total, warm_up) = (Tally::new()?, Tally::with_digits(WINDOW_DIGITS)?);
        let (windows, last_success, longest_pause) = (Vec::new(), None, Duration::ZERO);
        Ok(Self { total, warm_up, counted_from, window, windows, last_success, longest_pause })
    }

    /// Records one request that was meant to leave at `intended`; `count` adds its outcome. A request that was meant to leave
    /// before the counting began is part of the warm-up.
    pub fn record(&mut self, intended: Instant, answered: Instant, count: impl Fn(&mut Tally)) {
        let Some(since) = intended.checked_duration_since(self.counted_from) else {
            count(&mut self.warm_up);
            return;
        };
        let latency = answered.duration_since(intended);
        let before = self.total.posted + self.total.pending;
        self.total.record(latency);
        count(&mut self.total);
        if self.total.posted + self.total.pending > before {
            let last = self.last_success.replace(answered).unwrap_or(self.counted_from);
            self.longest_pause = self.longest_pause.max(answered.duration_since(last));
        }
        let Some(window) = self.window else { return };
        let place = (since.as_nanos() / window.as_nanos().max(1)) as usize;
        while self.windows.len() <= place {
            // The bounds are constants, so this succeeds because it succeeded for the total.
            let Ok(tally) = Tally::with_digits(WINDOW_DIGITS) else { return };
            self.windows.push(tally);
        }
        self.windows[place].record(latency);
        count(&mut self.windows[place]);
    }

    /// Adds what another thread recorded.
    pub fn merge(&mut self, other: Self) {
        self.total.merge(other.total);
        self.warm_up.merge(other.warm_up);
        self.longest_pause = self.longest_pause.max(other.longest_pause);
        for (place, tally) in other.windows.into_iter().enumerate() {
            match self.windows.get_mut(place) {
                Some(own) => own.merge(tally),
                None => self.windows.push(tally),
            }
        }
    }

    /// The longest time between two successful answers of one thread.
    pub fn longest_pause(&self) -> Duration {
        self.longest_pause
    }

    pub fn windows(&self) -> Vec<Window> {
        let seconds = self.window.unwrap_or_default().as_secs_f64();
        let each = self.windows.iter().enumerate();
        each.map(|(place, tally)| Window {
            from_s: place as f64 * seconds,
            transfers_per_s: (tally.posted + tally.pending) as f64 / seconds,
            requests: tally.requests,
            failures: tally.codes.values().sum(),
            latency_us: tally.latency(),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn requests_count_in_the_window_in_which_they_were_meant_to_leave() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut recorder = Recorder::new(at(100), Some(Duration::from_millis(100))).unwrap();
        let posted = |tally: &mut Tally| tally.posted += 10;
        recorder.record(at(50), at(150), posted);
        recorder.record(at(100), at(110), posted);
        recorder.record(at(320), at(500), posted);
        recorder.record(at(350), at(510), |tally| tally.count_code("overloaded"));
        assert_eq!((recorder.total.requests, recorder.total.posted, recorder.warm_up.posted), (3, 20, 10));
        assert_eq!(recorder.longest_pause(), Duration::from_millis(390));
        let windows = recorder.windows();
        assert_eq!(windows.iter().map(|window| window.requests).collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!((windows[0].transfers_per_s, windows[2].failures), (100.0, 1));
        let mut other = Recorder::new(at(100), Some(Duration::from_millis(100))).unwrap();
        other.record(at(450), at(451), posted);
        recorder.merge(other);
        assert_eq!(recorder.windows().len(), 4);
    }
}
