//! How far a shard had come when it acknowledged something, remembered outside the shard.

use std::collections::BTreeMap;

use crate::disagreement::Disagreement;

/// A point in the life of a shard. A database that is behind a mark that somebody was given has lost what was acknowledged
/// up to the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Mark {
    /// How often the shard was accepted anew (`shard-node accept`), plus 1. 0: nothing is known.
    pub incarnation: i64,
    /// PostgreSQL's timeline: grows with each promotion and each recovery to a point in time.
    pub timeline: i64,
    /// The next position that the journal will give out.
    pub position: i64,
}

impl Mark {
    /// What both marks together prove. A later incarnation outdates all that was known of an earlier one.
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

    /// Whether a shard that is here lacks something of what was acknowledged up to `acknowledged`.
    pub fn is_behind(self, acknowledged: Self) -> bool {
        self.merged(acknowledged) != self
    }

    /// Says so, in words. `holder` is who remembers `acknowledged`.
    pub fn compare(self, acknowledged: Self, holder: &str) -> Option<Disagreement> {
        self.is_behind(acknowledged).then(|| {
            let remedy = "the database went back in time or is another copy of it: restore the newest backup or promote the stand-by \
                          that has everything. To go on without what is missing, run `shard-node accept --accept-loss`";
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
    /// The highest mark known of a shard; the default one where nothing is known.
    pub fn of(&self, shard: u16) -> Mark {
        self.0.get(&shard).copied().unwrap_or_default()
    }

    /// Takes a mark in. `true` when it says something new.
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
}

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

    fn mark(incarnation: i64, timeline: i64, position: i64) -> Mark {
        Mark { incarnation, timeline, position }
    }

    #[test]
    fn a_shard_is_behind_when_it_lacks_a_position_or_a_timeline_of_its_incarnation() {
        let acknowledged = mark(1, 2, 100);
        for (shard, behind) in [
            (mark(1, 2, 100), false),
            (mark(1, 2, 101), false),
            (mark(1, 3, 100), false),
            (mark(1, 2, 99), true),
            // Promoted from a stand-by that had not everything.
            (mark(1, 3, 99), true),
            // An old primary that went on by itself.
            (mark(1, 1, 500), true),
            // Accepted anew: what was lost is known to be lost.
            (mark(2, 1, 7), false),
            (mark(0, 9, 900), true),
        ] {
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
        assert!(!marks.observe(3, mark(1, 9, 999)), "late news of an earlier one");
        assert_eq!((marks.of(3), marks.of(4)), (mark(2, 1, 5), Mark::default()));
    }
}
