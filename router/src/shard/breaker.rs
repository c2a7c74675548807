//! A circuit breaker: after some failures in a row, no request waits for a shard that is not there.
//!
//! Only connection-class failures count. A shard that answers, however slowly or however unpleasantly, is there.
//! Time is passed in, so that the transitions can be tested without waiting.

use std::time::Duration;

use tokio::time::Instant;

/// The breaker of one shard.
#[derive(Debug)]
pub struct Breaker {
    failures_to_open: u32,
    open_for: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// One call is on its way to find out. Its caller always reports how it ended; `until` is a bound in case the caller does not.
    Probing {
        until: Instant,
    },
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The shard answered, whatever it said.
    Answered,
    /// It could not be reached, or the connection broke.
    ConnectionFailed,
    /// No answer in time on a connection that stands: proves nothing either way.
    NoAnswer,
}

impl Breaker {
    /// Longer than any call takes to end: to a shard that is frozen, one call at a time is enough.
    const PROBE_PATIENCE: Duration = Duration::from_secs(40);

    pub fn new(failures_to_open: u32, open_for: Duration) -> Self {
        assert!(failures_to_open > 0, "a breaker that opens after no failure never closes");
        Self { failures_to_open, open_for, state: State::Closed { failures: 0 } }
    }

    /// Whether new work should be refused without queueing it.
    pub fn refuses(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { until } | State::Probing { until } => now < until,
        }
    }

    /// Whether a call may be made now. When the breaker has been open for long enough, the first caller becomes the
    /// probe and everybody else keeps being refused until its answer is in.
    pub fn admit(&mut self, now: Instant) -> bool {
        if self.refuses(now) {
            return false;
        }
        if !matches!(self.state, State::Closed { .. }) {
            self.state = State::Probing { until: now + Self::PROBE_PATIENCE };
        }
        true
    }

    /// Takes note of a call's fate. Returns true when this opened a closed breaker.
    pub fn record(&mut self, signal: Signal, now: Instant) -> bool {
        let open = State::Open { until: now + self.open_for };
        let next = match (self.state, signal) {
            (_, Signal::Answered) => State::Closed { failures: 0 },
            (State::Closed { failures }, Signal::ConnectionFailed) => {
                let failures = failures.saturating_add(1);
                if failures < self.failures_to_open { State::Closed { failures } } else { open }
            }
            (State::Probing { .. }, Signal::ConnectionFailed | Signal::NoAnswer) => open,
            // A call from before the breaker opened.
            (state @ State::Open { .. }, Signal::ConnectionFailed) => state,
            (state, Signal::NoAnswer) => state,
        };
        let opened = matches!(self.state, State::Closed { .. }) && matches!(next, State::Open { .. });
        self.state = next;
        opened
    }

    /// Whether calls are let through without a condition. An open breaker that lets a probe through is not closed.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// `closed`, `open`, or `probing` while one call finds out whether the shard is back.
    pub fn name(&self) -> &'static str {
        match self.state {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::Probing { .. } => "probing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_FOR: Duration = Duration::from_millis(500);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(3, OPEN_FOR);
        for _ in 0..3 {
            breaker.record(Signal::ConnectionFailed, now);
        }
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let now = Instant::now();
        let mut breaker = Breaker::new(3, OPEN_FOR);
        for signal in [Signal::ConnectionFailed, Signal::ConnectionFailed, Signal::Answered] {
            assert!(!breaker.record(signal, now));
        }
        assert!(!breaker.record(Signal::ConnectionFailed, now));
        assert!(!breaker.record(Signal::NoAnswer, now), "a slow answer is no connection failure");
        assert!(!breaker.record(Signal::ConnectionFailed, now));
        assert!(!breaker.refuses(now));
        assert!(breaker.record(Signal::ConnectionFailed, now), "the third in a row");
        assert!(breaker.refuses(now));
        assert!(!breaker.admit(now));
    }

    #[test]
    fn one_probe_at_a_time() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + OPEN_FOR;
        assert!(!breaker.refuses(later));
        assert!(breaker.admit(later), "the probe");
        assert!(!breaker.admit(later), "nobody beside it");
        assert!(breaker.refuses(later));
        breaker.record(Signal::Answered, later);
        assert!(breaker.admit(later));
        assert_eq!(breaker.name(), "closed");
    }

    #[test]
    fn a_failed_or_silent_probe_opens_it_again() {
        for signal in [Signal::ConnectionFailed, Signal::NoAnswer] {
            let now = Instant::now();
            let mut breaker = opened(now);
            let later = now + OPEN_FOR;
            assert!(breaker.admit(later));
            assert!(!breaker.record(signal, later), "it was not closed before");
            assert!(breaker.refuses(later + OPEN_FOR - Duration::from_millis(1)));
            assert!(breaker.admit(later + OPEN_FOR));
        }
    }

    #[test]
    fn a_lost_probe_does_not_keep_it_shut_for_ever() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.admit(now + OPEN_FOR));
        assert!(!breaker.admit(now + 2 * OPEN_FOR), "it may still report back");
        assert!(breaker.admit(now + OPEN_FOR + Breaker::PROBE_PATIENCE));
    }

    #[test]
    fn late_failures_do_not_prolong_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.record(Signal::ConnectionFailed, now + OPEN_FOR / 2);
        assert!(breaker.admit(now + OPEN_FOR));
    }
}
