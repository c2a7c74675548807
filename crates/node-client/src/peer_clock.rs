//! The steady clock of the node at the other end of a connection.
//!
//! A time limit that counts from the arrival of a call says nothing about a call that has slept in the socket of a frozen node. A caller
//! therefore names the instant at which it made up the call, on the node's own clock.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A reading is replaced after this time in any case: clocks drift apart.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// A measurement that took longer than this replaces an earlier one only if it is more exact.
const QUICK: Duration = Duration::from_millis(50);

/// What one caller knows of a node's steady clock. The clock belongs to a process, so each connection has its own.
#[derive(Debug, Default)]
pub struct PeerClock(Mutex<Option<Reading>>);

/// At `at`, the node's clock showed at most `at_most_us`.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    at_most_us: i64,
}

impl Reading {
    fn carried_to(self, now: Instant) -> i64 {
        let since = now.saturating_duration_since(self.at).as_micros();
        self.at_most_us.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }
}

impl PeerClock {
    /// Takes in an answer that named the node's clock. `steady_us` is in microseconds; 0: the node does not say.
    pub fn heard(&self, asked: Instant, answered: Instant, steady_us: i64) {
        if steady_us <= 0 {
            return;
        }
        // The node read its clock after `asked`.
        let heard = Reading { at: asked, at_most_us: steady_us };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_quick = answered.saturating_duration_since(asked) <= QUICK;
        let is_better = |known: Reading| {
            answered.saturating_duration_since(known.at) >= FORGET_AFTER
                || heard.carried_to(answered) < known.carried_to(answered)
        };
        if is_quick || known.is_none_or(is_better) {
            *known = Some(heard);
        }
    }

    /// What the node's clock shows now, in microseconds, or a little more: the true value is less by at most the round trip of the
    /// measurement. `None` before the first measurement.
    pub fn at(&self, now: Instant) -> Option<i64> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(|known| known.carried_to(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_carried_on_and_a_slow_answer_does_not_spoil_it() {
        let clock = PeerClock::default();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(clock.at(begin), None);
        clock.heard(at(0), at(2), 0);
        assert_eq!(clock.at(begin), None, "the node does not say");
        clock.heard(at(0), at(2), 1_000_000);
        assert_eq!(clock.at(at(10)), Some(1_010_000));
        // The node was frozen for 3 s and then read its clock: the reading says little about the instant of the question.
        clock.heard(at(100), at(3_100), 4_090_000);
        assert_eq!(clock.at(at(3_100)), Some(4_100_000));
        // A quick answer counts, also if it shows more: clocks drift.
        clock.heard(at(5_000), at(5_010), 6_004_000);
        assert_eq!(clock.at(at(5_000)), Some(6_004_000));
        clock.heard(at(6_000), at(9_000), 7_002_000);
        assert_eq!(clock.at(at(9_000)), Some(10_002_000), "slow, and more exact all the same");
        clock.heard(at(70_000), at(70_200), 75_000_000);
        assert_eq!(clock.at(at(70_200)), Some(75_200_000), "the reading before is too old to count");
    }
}
