//! Clocks that should agree: a node's own, PostgreSQL's, the routers', the other nodes'.
//!
//! A node dates entries and ends holds by its clock. A clock that is wrong by an hour would end a hold of thirty minutes at
//! once, and nothing brings it back. So the node looks at every clock it can reach, takes the one in the middle for right, and
//! never goes further from it than a bound.

use std::time::Duration;

use crate::disagreement::Disagreement;

/// A clock beside the node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherClock {
    /// Whose it is, such as `PostgreSQL` or `router router-0`.
    pub owner: String,
    /// How far it is ahead of the node's clock, in microseconds; negative: behind.
    pub ahead_us: i64,
    /// The true value is at most this far from `ahead_us`.
    pub uncertainty_us: i64,
}

impl OtherClock {
    /// From an exchange: asked at `asked_us` and answered at `answered_us` by the own clock, the other clock said `said_us`.
    pub fn measured(owner: &str, asked_us: i64, said_us: i64, answered_us: i64) -> Self {
        let round_trip = answered_us.saturating_sub(asked_us).max(0);
        let middle = asked_us.saturating_add(round_trip / 2);
        Self { owner: owner.to_owned(), ahead_us: said_us.saturating_sub(middle), uncertainty_us: round_trip / 2 + 1 }
    }

    /// How far the clocks certainly are apart.
    fn certain_us(&self) -> i64 {
        self.ahead_us.saturating_abs().saturating_sub(self.uncertainty_us).max(0)
    }
}

/// What the node makes of all clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// How far the middle clock is ahead of the node's own, in microseconds.
    pub middle_ahead_us: i64,
    /// The node's own clock is further from the middle one than the bound.
    pub own_clock: Option<Disagreement>,
    /// Other clocks that are further from the node's own than the bound.
    pub others: Vec<Disagreement>,
}

impl Judgement {
    /// With an even number of clocks the earlier of the two in the middle counts: a hold that ends late can still be released,
    /// one that ended early cannot be had back.
    pub fn of(clocks: &[OtherClock], bound: Duration) -> Self {
        let bound_us = i64::try_from(bound.as_micros()).unwrap_or(i64::MAX);
        let mut ahead: Vec<i64> = clocks.iter().map(|clock| clock.ahead_us).collect();
        // The node's own clock is one of them.
        ahead.push(0);
        ahead.sort_unstable();
        let middle_ahead_us = ahead[(ahead.len() - 1) / 2];
        let wrong: Vec<&OtherClock> = clocks.iter().filter(|clock| clock.certain_us() > bound_us).collect();
        let describe = |ahead_us: i64| {
            format!("{} ms {}", ahead_us.saturating_abs() / 1000, if ahead_us < 0 { "behind" } else { "ahead" })
        };
        let within = format!("at most {} ms apart", bound.as_millis());
        // Two clocks that differ, and no third, do not say which of them is wrong; then the node doubts its own. With more, it doubts
        // its own when most of the others differ from it.
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

/// The time to date entries with: the own clock, but no further than `bound` from the middle of all clocks.
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
    fn the_clock_in_the_middle_is_right() {
        for (others, middle, doubts_itself) in [
            (vec![], 0, false),
            (vec![100, -200], 0, false),
            // The node is an hour ahead of PostgreSQL and of a router.
            (vec![-HOUR, -HOUR], -HOUR, true),
            // Only PostgreSQL is there to compare with: the earlier of the two counts.
            (vec![-HOUR], -HOUR, true),
            (vec![HOUR], 0, true),
            // One router is wrong: it is named, and the node goes on.
            (vec![0, 0, HOUR], 0, false),
            (vec![0, 0, -HOUR], 0, false),
            // PostgreSQL agrees with the node, one other node does not.
            (vec![0, HOUR], 0, false),
            (vec![0, -HOUR], 0, false),
            // No two clocks say exactly the same.
            (vec![300, 500, HOUR], 300, false),
            (vec![-300, -500, HOUR], -300, false),
            // Node and database on one machine with a wrong clock, two routers elsewhere.
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
        assert!(Judgement::of(&[late], BOUND).own_clock.is_none(), "the difference may be the way of the answer");
    }

    #[test]
    fn times_stay_within_the_bound_of_the_middle() {
        assert_eq!(bounded_us(10 * S, 0, BOUND), 10 * S);
        assert_eq!(bounded_us(10 * S, 200_000, BOUND), 10 * S, "within the bound the own clock counts");
        assert_eq!(bounded_us(HOUR, -HOUR, BOUND), 500_000, "an hour ahead");
        assert_eq!(bounded_us(0, HOUR, BOUND), HOUR - 500_000, "an hour behind");
    }
}
