//! How long a driver rests after each page, so that a copy does not take the source from its clients. No I/O.
//!
//! The measure is the source's commit latency: what clients wait for. The driver compares it with the lowest that it has seen in the
//! move. While commits take no longer, the rest shrinks; while they take longer, it grows.

use std::time::Duration;

/// The rest is a multiple of the time that the page took, within these bounds.
const LEAST: f64 = 0.5;
const MOST: f64 = 16.0;
const FIRST: f64 = 2.0;
/// A latency is too high from this multiple of the lowest one on.
const TOO_HIGH: f64 = 1.5;
/// A commit that takes less is not slow, whatever the lowest one was.
const NEVER_SLOW: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Throttle {
    factor: f64,
    lowest: Option<Duration>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { factor: FIRST, lowest: None }
    }
}

impl Throttle {
    /// Takes in the latency of the source's last commit.
    pub fn hear(&mut self, last_commit: Duration) {
        if last_commit.is_zero() {
            return;
        }
        let lowest = self.lowest.map_or(last_commit, |lowest| lowest.min(last_commit));
        self.lowest = Some(lowest);
        let is_slow = last_commit > lowest.mul_f64(TOO_HIGH) && last_commit > NEVER_SLOW;
        self.factor = (self.factor * if is_slow { 1.5 } else { 0.9 }).clamp(LEAST, MOST);
    }

    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// The rest after a page of so many bytes that took so long, with a limit of bytes a second (0: none).
    pub fn rest(&self, page: Duration, bytes: usize, rate: u64) -> Duration {
        let by_latency = page.mul_f64(self.factor);
        if rate == 0 {
            return by_latency;
        }
        #[allow(clippy::cast_precision_loss, reason = "a pause need not be exact")]
        let by_rate = Duration::from_secs_f64(bytes as f64 / rate as f64).saturating_sub(page);
        by_latency.max(by_rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn slow_commits_make_the_rest_longer_and_fast_ones_shorter() {
        let mut throttle = Throttle::default();
        (0..50).for_each(|_| throttle.hear(MS * 4));
        assert!((throttle.factor() - LEAST).abs() < 1e-9);
        (0..50).for_each(|_| throttle.hear(MS * 9));
        assert!((throttle.factor() - MOST).abs() < 1e-9);
        (0..50).for_each(|_| throttle.hear(MS * 4));
        assert!((throttle.factor() - LEAST).abs() < 1e-9);
        // A millisecond is no slow commit.
        let mut throttle = Throttle::default();
        throttle.hear(MS / 4);
        (0..50).for_each(|_| throttle.hear(MS));
        assert!((throttle.factor() - LEAST).abs() < 1e-9);
    }

    #[test]
    fn a_rate_bounds_the_bytes() {
        let throttle = Throttle::default();
        assert_eq!(throttle.rest(MS * 10, 1_000_000, 0), MS * 20);
        assert_eq!(throttle.rest(MS * 10, 1_000_000, 1_000_000), MS * 990);
    }
}
