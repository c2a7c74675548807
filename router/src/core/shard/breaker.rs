//! Whether a shard is called: a circuit breaker, and a budget for resending.
//!
//! After some failures in a row, the breaker lets no request wait for a shard that cannot be reached. Only failures of the connection
//! count: a shard that answers slowly or with an error can be reached. Time is passed in, so that tests of the transitions do not wait.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// The breaker of one shard.
#[derive(Debug)]
pub struct Breaker {
    failures_to_open: u32,
    open_for: Duration,
    state: BreakerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BreakerState {
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

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The shard answered, with a result or an error.
    Answered,
    /// It could not be reached, or the connection broke.
    ConnectionFailed,
    /// No answer in time on a connection that stands. The shard may be slow.
    NoAnswer,
}

impl Breaker {
    /// Longer than any call takes to end: to a shard that is frozen, one call at a time is enough.
    const PROBE_PATIENCE: Duration = Duration::from_secs(40);

    pub fn new(failures_to_open: u32, open_for: Duration) -> Self {
        assert!(failures_to_open > 0, "a breaker that opens after no failure never closes");
        Self { failures_to_open, open_for, state: BreakerState::Closed { failures: 0 } }
    }

    /// Whether new work should be refused without queueing it.
    pub fn refuses(&self, now: Instant) -> bool {
        match self.state {
            BreakerState::Closed { .. } => false,
            BreakerState::Open { until } | BreakerState::Probing { until } => now < until,
        }
    }

    /// Whether a call may be made now. When the breaker has been open for long enough, the call of the first caller is the probe, and other
    /// calls are refused until the probe has an answer.
    pub fn admit(&mut self, now: Instant) -> bool {
        if self.refuses(now) {
            return false;
        }
        if !matches!(self.state, BreakerState::Closed { .. }) {
            self.state = BreakerState::Probing { until: now + Self::PROBE_PATIENCE };
        }
        true
    }

    /// Records how a call ended. Returns true if that opened a closed breaker.
    pub fn record(&mut self, signal: Signal, now: Instant) -> bool {
        let open = BreakerState::Open { until: now + self.open_for };
        let next = match (self.state, signal) {
            (_, Signal::Answered) => BreakerState::Closed { failures: 0 },
            (BreakerState::Closed { failures }, Signal::ConnectionFailed) => {
                let failures = failures.saturating_add(1);
                if failures < self.failures_to_open { BreakerState::Closed { failures } } else { open }
            }
            (BreakerState::Probing { .. }, Signal::ConnectionFailed | Signal::NoAnswer) => open,
            // A call from before the breaker opened.
            (state @ BreakerState::Open { .. }, Signal::ConnectionFailed) => state,
            (state, Signal::NoAnswer) => state,
        };
        let opened = matches!(self.state, BreakerState::Closed { .. }) && matches!(next, BreakerState::Open { .. });
        self.state = next;
        opened
    }

    /// Whether calls are let through without a condition. An open breaker that lets a probe through is not closed.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, BreakerState::Closed { .. })
    }

    /// `closed`, `open`, or `probing` while one call finds out whether the shard is back.
    pub fn name(&self) -> &'static str {
        match self.state {
            BreakerState::Closed { .. } => "closed",
            BreakerState::Open { .. } => "open",
            BreakerState::Probing { .. } => "probing",
        }
    }
}

/// The retry budget: resending is allowed in proportion to the calls that went through, so that a shard in trouble does not get twice
/// the load. It counts tokens in tenths: a resend costs ten, a call that went through earns one.
#[derive(Debug)]
pub struct RetryBudget {
    tenths: AtomicU32,
}

impl RetryBudget {
    /// Resends allowed in one burst. A node that is killed loses at most the calls in flight, so this covers a restart.
    const BURST: u32 = 32;
    const COST: u32 = 10;
    const EARNED: u32 = 1;

    pub fn new() -> Self {
        Self { tenths: AtomicU32::new(Self::BURST * Self::COST) }
    }

    pub fn earn(&self) {
        let add = |tenths: u32| Some((tenths + Self::EARNED).min(Self::BURST * Self::COST));
        // Relaxed: the number guards nothing but itself.
        let _ = self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes the price of one resend, if it is there.
    pub fn spend(&self) -> bool {
        self.tenths
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tenths| tenths.checked_sub(Self::COST))
            .is_ok()
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

    #[test]
    fn a_burst_then_one_in_ten() {
        let budget = RetryBudget::new();
        for _ in 0..RetryBudget::BURST {
            assert!(budget.spend());
        }
        assert!(!budget.spend());
        for _ in 0..9 {
            budget.earn();
        }
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
    }

    #[test]
    fn savings_are_bounded() {
        let budget = RetryBudget::new();
        for _ in 0..10_000 {
            budget.earn();
        }
        let spent = (0..10_000).filter(|_| budget.spend()).count();
        assert_eq!(spent, RetryBudget::BURST as usize);
    }
}
