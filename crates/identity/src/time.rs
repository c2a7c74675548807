//! Clocks that should agree: a node's own clock and those of PostgreSQL, the routers and the other nodes.
//!
//! A node dates entries and expires holds by its clock. A clock that is wrong by an hour would expire a hold of
//! thirty minutes at once, and an expired hold cannot be restored. The node therefore reads every clock it can reach,
//! takes the median as right, and never departs from the median by more than a bound.

use std::time::Duration;

use crate::disagreement::Disagreement;

/// A clock other than the node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherClock {
    /// The owner of the clock, such as `PostgreSQL` or `router router-0`.
    pub owner: String,
    /// How far the clock is ahead of the node's clock, in microseconds; negative if it is behind.
    pub ahead_us: i64,
    /// The true value is at most this far from `ahead_us`.
    pub uncertainty_us: i64,
}

impl OtherClock {
    /// Computes the difference from one exchange. By the node's clock, the question was sent at `asked_us` and the
    /// answer arrived at `answered_us`; the other clock said `said_us`.
    pub fn measured(owner: &str, asked_us: i64, said_us: i64, answered_us: i64) -> Self {
        let round_trip = answered_us.saturating_sub(asked_us).max(0);
        let middle = asked_us.saturating_add(round_trip / 2);
        Self { owner: owner.to_owned(), ahead_us: said_us.saturating_sub(middle), uncertainty_us: round_trip / 2 + 1 }
    }

    /// The smallest difference that the measurement proves.
    fn certain_us(&self) -> i64 {
        self.ahead_us.saturating_abs().saturating_sub(self.uncertainty_us).max(0)
    }
}

/// The node's judgement of all clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// How far the median clock is ahead of the node's own, in microseconds.
    pub middle_ahead_us: i64,
    /// Set if the node's own clock is further from the median than the bound.
    pub own_clock: Option<Disagreement>,
    /// Other clocks that are further from the node's own than the bound.
    pub others: Vec<Disagreement>,
}

impl Judgement {
    /// With an even number of clocks the earlier of the two middle ones counts: a hold that ends late can still be
    /// released, but a hold that ended early cannot be restored.
    pub fn of(clocks: &[OtherClock], bound: Duration) -> Self {
        let bound_us = i64::try_from(bound.as_micros()).unwrap_or(i64::MAX);
        let mut ahead: Vec<i64> = clocks.iter().map(|clock| clock.ahead_us).collect();
        // The node's own clock takes part.
        ahead.push(0);
        ahead.sort_unstable();
        let middle_ahead_us = ahead[(ahead.len() - 1) / 2];
        let wrong: Vec<&OtherClock> = clocks.iter().filter(|clock| clock.certain_us() > bound_us).collect();
        let describe = |ahead_us: i64| {
            format!("{} ms {}", ahead_us.saturating_abs() / 1000, if ahead_us < 0 { "behind" } else { "ahead" })
        };
        let within = format!("at most {} ms apart", bound.as_millis());
        // Two clocks that differ do not show which one is wrong; the node then doubts its own. With three or more,
        // the node doubts its own if most of the others differ from it.
        let is_off_the_middle = middle_ahead_us.saturating_abs() > bound_us;
        let doubts_itself = !wrong.is_empty() && (is_off_the_middle || wrong.len() * 2 > clocks.len());
        let own_clock = doubts_itself.then(|| {
            let others: Vec<String> =
                wrong.iter().map(|clock| format!("{} is {}", clock.owner, describe(clock.ahead_us))).collect();
            let remedy = "set the clocks of these machines (NTP); clock.max_difference_ms is the bound";
            Disagreement::new("clock", &within, format!("against this node's clock, {}", others.join(", ")), remedy)
        });
        let others = wrong.iter().map(|clock| {
            let remedy = format!("set the clock of {} (NTP)", clock.owner);
            Disagreement::new(format!("clock of {}", clock.owner), &within, describe(clock.ahead_us), remedy)
        });
        Self { middle_ahead_us, own_clock, others: others.collect() }
    }
}

/// The time that entries are dated with: the node's own clock, limited to `bound` from the median of all clocks.
pub fn bounded_us(own_us: i64, middle_ahead_us: i64, bound: Duration) -> i64 {
    let bound_us = i64::try_from(bound.as_micros()).unwrap_or(i64::MAX);
    let middle_us = own_us.saturating_add(middle_ahead_us);
    own_us.clamp(middle_us.saturating_sub(bound_us), middle_us.saturating_add(bound_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;
    const HOUR: i64 = 3600 * S;
    const BOUND: Duration = Duration::from_millis(500);

    fn clocks(ahead: &[i64]) -> Vec<OtherClock> {
        let clock = |(n, ahead_us): (usize, &i64)| OtherClock {
            owner: format!("c{n}"),
            ahead_us: *ahead_us,
            uncertainty_us: 100,
        };
        ahead.iter().enumerate().map(clock).collect()
    }

    #[test]
    fn the_median_clock_is_right() {
        for (others, middle, doubts_itself) in [
            (vec![], 0, false),
            (vec![100, -200], 0, false),
            // The node is an hour ahead of PostgreSQL and of a router.
            (vec![-HOUR, -HOUR], -HOUR, true),
            // PostgreSQL is the only other clock: the earlier of the two counts.
            (vec![-HOUR], -HOUR, true),
            (vec![HOUR], 0, true),
            // One router is wrong: the node names it and continues.
            (vec![0, 0, HOUR], 0, false),
            (vec![0, 0, -HOUR], 0, false),
            // PostgreSQL agrees with the node, and another node does not.
            (vec![0, HOUR], 0, false),
            (vec![0, -HOUR], 0, false),
            // No two clocks show exactly the same time.
            (vec![300, 500, HOUR], 300, false),
            (vec![-300, -500, HOUR], -300, false),
            // Node and database share a machine with a wrong clock; two routers run elsewhere.
            (vec![0, -HOUR, -HOUR], -HOUR, true),
        ] {
            let judgement = Judgement::of(&clocks(&others), BOUND);
            assert_eq!(judgement.middle_ahead_us, middle, "{others:?}");
            assert_eq!(judgement.own_clock.is_some(), doubts_itself, "{others:?}: {judgement:?}");
            assert_eq!(judgement.others.len(), others.iter().filter(|ahead| ahead.abs() > S).count(), "{others:?}");
        }
    }

    #[test]
    fn a_slow_answer_proves_little() {
        let slow = OtherClock::measured("router", 0, 20 * S, 40 * S);
        assert_eq!((slow.ahead_us, slow.uncertainty_us), (0, 20 * S + 1));
        let late = OtherClock::measured("router", 0, 0, 40 * S);
        assert!(Judgement::of(&[late], BOUND).own_clock.is_none(), "the difference may be the delay of the answer");
    }

    #[test]
    fn times_stay_within_the_bound_of_the_middle() {
        assert_eq!(bounded_us(10 * S, 0, BOUND), 10 * S);
        assert_eq!(bounded_us(10 * S, 200_000, BOUND), 10 * S, "within the bound the own clock counts");
        assert_eq!(bounded_us(HOUR, -HOUR, BOUND), 500_000, "an hour ahead");
        assert_eq!(bounded_us(0, HOUR, BOUND), HOUR - 500_000, "an hour behind");
    }
}
