//! Marks: how far a shard had come when it acknowledged something, remembered outside the shard.

use std::collections::BTreeMap;

use crate::disagreement::Disagreement;

/// A point in a shard's history. A database that is behind a mark which a caller was given has lost what was
/// acknowledged up to that mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Mark {
    /// The number of times the shard was accepted anew (`shard-node accept`), plus 1. 0 means that nothing is known.
    pub incarnation: i64,
    /// PostgreSQL's timeline. It grows with each promotion and each point-in-time recovery.
    pub timeline: i64,
    /// The next position of the journal.
    pub position: i64,
}

impl Mark {
    /// The higher mark of the two. A later incarnation replaces everything known of an earlier one.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        match self.incarnation.cmp(&other.incarnation) {
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Equal => Self {
                incarnation: self.incarnation,
                timeline: self.timeline.max(other.timeline),
                position: self.position.max(other.position),
            },
        }
    }

    /// Whether a shard at this mark lacks something that was acknowledged up to `acknowledged`.
    pub fn is_behind(self, acknowledged: Self) -> bool {
        self.merged(acknowledged) != self
    }

    /// The disagreement if this mark is behind `acknowledged`. `holder` names the participant that remembers it.
    pub fn compare(self, acknowledged: Self, holder: &str) -> Option<Disagreement> {
        if self.incarnation == acknowledged.incarnation && self.timeline < acknowledged.timeline {
            let remedy = "this is a former primary: a stand-by was promoted and has been served since. What this server wrote after the \
                          promotion is not part of the shard. Rebuild this server as a stand-by (pg_rewind or pg_basebackup), and \
                          connect to the new primary. If the new primary is lost, promote another stand-by of it, or run `shard-node \
                          accept --accept-loss --config FILE`";
            let expected = format!("timeline {} or later, as {holder} remembers", acknowledged.timeline);
            return Some(Disagreement::new("timeline", expected, self, remedy));
        }
        self.is_behind(acknowledged).then(|| {
            let remedy = "the database went back in time, or is an older copy: restore the newest backup or promote the stand-by \
                          that has everything. To continue without what is missing, run `shard-node accept --accept-loss \
                          --config FILE`. In a cluster that `shardctl up` started, run `shardctl down` and then `shardctl up --accept-loss \
                          SHARD`. After that, `shardctl reconcile` lists what is missing";
            Disagreement::new("position", format!("{acknowledged} or later, as {holder} remembers"), self, remedy)
        })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { incarnation, timeline, position } = self;
        write!(f, "position {position} of incarnation {incarnation}, timeline {timeline}")
    }
}

/// Marks by shard number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks(BTreeMap<u16, Mark>);

impl Marks {
    /// The highest known mark of a shard; the default mark if none is known.
    pub fn of(&self, shard: u16) -> Mark {
        self.0.get(&shard).copied().unwrap_or_default()
    }

    /// Records a mark. Returns `true` if it is higher than the known one.
    pub fn observe(&mut self, shard: u16, mark: Mark) -> bool {
        let known = self.0.entry(shard).or_default();
        let merged = known.merged(mark);
        let is_news = merged != *known;
        *known = merged;
        is_news
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, Mark)> {
        self.0.iter().map(|(shard, mark)| (*shard, *mark))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The mark of one shard and at most [`MOST_OTHERS`] others, which differ from second to second and from shard to shard. All marks
    /// to every shard in every second would be a million messages for 1,024 shards. With this, each mark still reaches several
    /// shards in each second, and every shard within minutes.
    pub fn excerpt(&self, of: u16, second: u64) -> Self {
        let others = self.0.len() - usize::from(self.0.contains_key(&of));
        let turn = second.wrapping_add(u64::from(of)).wrapping_mul(MOST_OTHERS as u64);
        let first = usize::try_from(turn % others.max(1) as u64).unwrap_or_default();
        let others = || self.iter().filter(|(shard, _)| *shard != of);
        let from_first = others().skip(first).chain(others().take(first)).take(MOST_OTHERS);
        let own = self.0.get(&of).map(|mark| (of, *mark));
        Self(from_first.chain(own).collect())
    }
}

/// See [`Marks::excerpt`].
const MOST_OTHERS: usize = 16;

impl FromIterator<(u16, Mark)> for Marks {
    fn from_iter<I: IntoIterator<Item = (u16, Mark)>>(marks: I) -> Self {
        let mut all = Self::default();
        for (shard, mark) in marks {
            all.observe(shard, mark);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_has_the_own_mark_and_in_turn_every_other() {
        let marks =
            |shards: u16| (0..shards).map(|shard| (shard, mark(1, 1, i64::from(shard) + 1))).collect::<Marks>();
        let few = marks(17);
        assert_eq!(few.excerpt(3, 12_345), few, "a small cluster sends all marks");
        assert!(Marks::default().excerpt(3, 1).is_empty());
        let many = marks(1_000);
        let mut seen = Marks::default();
        for second in 7..7 + 63 {
            let excerpt = many.excerpt(999, second);
            assert_eq!((excerpt.iter().count(), excerpt.of(999)), (17, many.of(999)));
            assert_ne!(excerpt, many.excerpt(998, second), "another shard gets others");
            for (shard, mark) in excerpt.iter() {
                seen.observe(shard, mark);
            }
        }
        assert_eq!(seen, many);
    }

    fn mark(incarnation: i64, timeline: i64, position: i64) -> Mark {
        Mark { incarnation, timeline, position }
    }

    #[test]
    fn a_shard_is_behind_if_its_incarnation_lacks_a_position_or_a_timeline() {
        let acknowledged = mark(1, 2, 100);
        for (shard, behind) in [
            (mark(1, 2, 100), false),
            (mark(1, 2, 101), false),
            (mark(1, 3, 100), false),
            (mark(1, 2, 99), true),
            // Promoted from a stand-by that lacked some commits.
            (mark(1, 3, 99), true),
            // A former primary that continued on its own.
            (mark(1, 1, 500), true),
            // A new incarnation: the loss was accepted.
            (mark(2, 1, 7), false),
            (mark(0, 9, 900), true),
        ] {
            let fact = shard.compare(acknowledged, "router r").map(|disagreement| disagreement.fact);
            let by_timeline = shard.incarnation == 1 && shard.timeline < 2;
            let expected = if by_timeline { "timeline" } else { "position" };
            assert_eq!(fact.as_deref(), behind.then_some(expected), "{shard}");
            assert_eq!(shard.is_behind(acknowledged), behind, "{shard}");
            assert_eq!(shard.compare(acknowledged, "router r").is_some(), behind, "{shard}");
        }
        assert!(!mark(1, 1, 1).is_behind(Mark::default()), "nothing was acknowledged");
    }

    #[test]
    fn marks_only_rise() {
        let mut marks = Marks::default();
        assert!(marks.observe(3, mark(1, 1, 10)));
        assert!(!marks.observe(3, mark(1, 1, 9)));
        assert!(marks.observe(3, mark(1, 2, 9)), "a promotion");
        assert_eq!(marks.of(3), mark(1, 2, 10));
        assert!(marks.observe(3, mark(2, 1, 5)), "a new incarnation counts from its own positions");
        assert!(!marks.observe(3, mark(1, 9, 999)), "a late mark of an earlier incarnation");
        assert_eq!((marks.of(3), marks.of(4)), (mark(2, 1, 5), Mark::default()));
    }
}
