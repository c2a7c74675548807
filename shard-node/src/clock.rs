//! The node's clock: it dates entries and expires holds.
//!
//! The machine's clock may be wrong, or may be set while the node runs. The node therefore compares it with the
//! clocks of PostgreSQL, the routers and the other nodes (`identity::time`). It carries the agreed time forward with
//! the monotonic clock and never departs from it by more than a bound. An entry is never dated an hour ahead because
//! a clock jumped, not even before the next comparison.
//!
//! Other clocks are measured against [`steady_us`], not against the machine's clock. A measurement against the
//! machine's clock becomes wrong when that clock is set.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use identity::{
    Disagreement,
    time::{Judgement, OtherClock, bounded_us},
};
use tokio::time::Instant;

/// A measurement older than this is discarded.
const FORGET_AFTER: Duration = Duration::from_secs(10);
/// Upper bound on the clocks kept; a cluster has fewer routers than this.
const MAX_CLOCKS: usize = 256;
/// The label of this machine's own earlier time, carried forward from the last agreement.
const OWN_PAST: &str = "this machine before its clock was set";

#[derive(Debug)]
pub struct NodeClock {
    bound: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    measured: HashMap<String, (Instant, OtherClock)>,
    /// The median of all clocks at the instant of the last comparison.
    agreed: Option<(Instant, i64)>,
    /// How far the median of the last comparison is ahead of this machine's clock.
    middle_ahead_us: i64,
    own_clock: Option<Disagreement>,
    others: Vec<Disagreement>,
}

impl NodeClock {
    pub fn new(bound: Duration) -> Self {
        Self { bound, state: Mutex::default() }
    }

    /// Microseconds since the epoch, within the bound around the agreed time.
    pub fn now_us(&self) -> i64 {
        let own_us = telemetry::clock::now_us();
        match self.state().agreed {
            Some(agreed) => bounded_us(own_us, carried_on(agreed) - own_us, self.bound),
            None => own_us,
        }
    }

    /// Records a measurement: how far another clock is ahead of [`steady_us`].
    pub fn measured(&self, clock: OtherClock) {
        let mut state = self.state();
        if state.measured.len() < MAX_CLOCKS || state.measured.contains_key(&clock.owner) {
            state.measured.insert(clock.owner.clone(), (Instant::now(), clock));
        }
    }

    /// How far the median of all compared clocks is ahead of this machine's, in microseconds; 0 before the first comparison.
    pub fn middle_ahead_us(&self) -> i64 {
        self.state().middle_ahead_us
    }

    /// Compares all clocks again.
    pub fn compare(&self) {
        let mut state = self.state();
        state.measured.retain(|_, (at, _)| at.elapsed() < FORGET_AFTER);
        let own_us = telemetry::clock::now_us();
        let set_by_us = own_us - steady_us();
        let against_own = |(_, clock): &(Instant, OtherClock)| OtherClock {
            ahead_us: clock.ahead_us.saturating_sub(set_by_us),
            ..clock.clone()
        };
        let mut clocks: Vec<OtherClock> = state.measured.values().map(against_own).collect();
        clocks.extend(state.agreed.map(|agreed| OtherClock {
            owner: OWN_PAST.to_owned(),
            ahead_us: carried_on(agreed) - own_us,
            uncertainty_us: 0,
        }));
        let judgement = Judgement::of(&clocks, self.bound);
        // While no clock is in doubt, the machine's own clock is used unchanged, so the agreed time does not drift.
        let middle_us = if judgement.own_clock.is_some() { own_us + judgement.middle_ahead_us } else { own_us };
        state.agreed = Some((Instant::now(), middle_us));
        state.middle_ahead_us = judgement.middle_ahead_us;
        match (&state.own_clock, &judgement.own_clock) {
            (None, Some(disagreement)) => tracing::error!(
                %disagreement,
                "the clocks disagree: entries are dated within the bound of the clock in the middle"
            ),
            (Some(_), None) => tracing::info!("the clocks agree again"),
            _ => {}
        }
        state.own_clock = judgement.own_clock;
        state.others = judgement.others.into_iter().filter(|clock| !clock.fact.contains(OWN_PAST)).collect();
    }

    /// The disagreement about this machine's clock, if there is one.
    pub fn disagreement(&self) -> Option<Disagreement> {
        self.state().own_clock.clone()
    }

    /// The disagreements about other clocks.
    pub fn others(&self) -> Vec<Disagreement> {
        self.state().others.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machine's clock as this process first read it, carried forward by the monotonic clock. Setting the machine's
/// clock does not change it.
pub fn steady_us() -> i64 {
    // The runtimes of two simulations have no instant in common.
    #[cfg(feature = "simulation")]
    if let Some(us) = telemetry::simulation::now_us() {
        return us;
    }
    static FIRST_SEEN: OnceLock<(Instant, i64)> = OnceLock::new();
    carried_on(*FIRST_SEEN.get_or_init(|| (Instant::now(), telemetry::clock::now_us())))
}

fn carried_on((at, agreed_us): (Instant, i64)) -> i64 {
    agreed_us.saturating_add(i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;
    const BOUND: Duration = Duration::from_millis(500);

    fn clock(owner: &str, ahead_us: i64) -> OtherClock {
        OtherClock { owner: owner.to_owned(), ahead_us, uncertainty_us: 100 }
    }

    #[test]
    fn a_clock_an_hour_ahead_of_the_others_is_limited_to_the_bound() {
        let node = NodeClock::new(BOUND);
        assert!((node.now_us() - telemetry::clock::now_us()).abs() < 100_000, "nothing to compare with");
        node.measured(clock("PostgreSQL", -HOUR_US));
        node.measured(clock("router", -HOUR_US));
        node.compare();
        let off_us = telemetry::clock::now_us() - node.now_us();
        assert!((HOUR_US - 1_000_000..HOUR_US).contains(&off_us), "{off_us}");
        assert!(node.disagreement().is_some());
        node.measured(clock("PostgreSQL", 0));
        node.measured(clock("router", 0));
        node.compare();
        // The earlier agreed time says that the clock was set; two other clocks say that it is right now.
        assert!((node.now_us() - telemetry::clock::now_us()).abs() < 1_000_000);
        node.compare();
        assert!(node.disagreement().is_none(), "{:?}", node.disagreement());
    }

    #[test]
    fn one_wrong_router_changes_nothing() {
        let node = NodeClock::new(BOUND);
        node.measured(clock("PostgreSQL", 0));
        node.measured(clock("router a", HOUR_US));
        node.measured(clock("router b", 0));
        node.compare();
        assert!(node.disagreement().is_none());
        assert_eq!(node.others().len(), 1);
        assert!((node.now_us() - telemetry::clock::now_us()).abs() < 100_000);
    }
}
