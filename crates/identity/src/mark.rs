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
    /// The next position of the journal when a node first accepted the timeline; 0 if that is not known. What was acknowledged on an
    /// earlier timeline from this position on is lost, however far the timeline has come since.
    pub began: i64,
    /// The highest position that is known from earlier timelines of the incarnation; 0 if none is known.
    pub earlier: i64,
}

impl Mark {
    /// The higher mark of the two. A later incarnation replaces everything known of an earlier one.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        match self.incarnation.cmp(&other.incarnation) {
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Equal => {
                let timeline = self.timeline.max(other.timeline);
                let began = |mark: Self| if mark.timeline == timeline { mark.began } else { 0 };
                Self {
                    incarnation: self.incarnation,
                    timeline,
                    position: self.position.max(other.position),
                    began: began(self).max(began(other)),
                    earlier: self.before(timeline).max(other.before(timeline)),
                }
            }
        }
    }

    /// The highest position that is known from timelines before this one.
    fn before(self, timeline: i64) -> i64 {
        if self.timeline < timeline { self.earlier.max(self.position) } else { self.earlier }
    }

    /// Whether a shard at this mark lacks something that was acknowledged up to `acknowledged`.
    pub fn is_behind(self, acknowledged: Self) -> bool {
        match self.incarnation.cmp(&acknowledged.incarnation) {
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => {
                self.timeline < acknowledged.timeline
                    || self.position < acknowledged.position
                    || self.lost_from(acknowledged).is_some()
            }
        }
    }

    /// The first position that is lost, if the shard's timeline began without something that was acknowledged on an earlier one. The
    /// shard may have passed that position since.
    pub fn lost_from(self, acknowledged: Self) -> Option<i64> {
        let is_overtaken = self.incarnation == acknowledged.incarnation
            && self.began > 0
            && acknowledged.before(self.timeline) > self.began;
        is_overtaken.then_some(self.began)
    }

    /// This mark and what it says about earlier timelines, as marks that each have one position.
    pub fn parts(self) -> impl Iterator<Item = Self> {
        let own = Self { began: 0, earlier: 0, ..self };
        let earlier = Self { timeline: self.timeline - 1, position: self.earlier, ..own };
        std::iter::once(own).chain((self.earlier > 0).then_some(earlier))
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
        if let Some(began) = self.lost_from(acknowledged).filter(|_| self.position >= acknowledged.position) {
            let remedy = "a stand-by was promoted, or a backup was restored, that lacked acknowledged payments, and new payments have taken the \
                          positions since. To continue without what is missing, run `shard-node accept --accept-loss --config FILE`. In a \
                          cluster that `shardctl up` started, run `shardctl down` and then `shardctl up --accept-loss SHARD`. After that, \
                          `shardctl reconcile` lists what is missing";
            let acknowledged = acknowledged.before(self.timeline);
            let expected = format!(
                "a timeline {} that begins at position {acknowledged} or later, as {holder} remembers",
                self.timeline
            );
            return Some(Disagreement::new(
                "position",
                expected,
                format!("its beginning at position {began}"),
                remedy,
            ));
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
        let Self { incarnation, timeline, position, .. } = self;
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
        Mark { incarnation, timeline, position, ..Mark::default() }
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
        assert_eq!(marks.of(3), Mark { earlier: 10, ..mark(1, 2, 10) });
        assert!(marks.observe(3, mark(2, 1, 5)), "a new incarnation counts from its own positions");
        assert!(!marks.observe(3, mark(1, 9, 999)), "a late mark of an earlier incarnation");
        assert_eq!((marks.of(3), marks.of(4)), (mark(2, 1, 5), Mark::default()));
    }

    fn began(began: i64, mark: Mark) -> Mark {
        Mark { began, ..mark }
    }

    #[test]
    fn a_mark_of_an_earlier_timeline_beyond_the_beginning_of_the_present_one_is_a_loss_however_far_the_shard_has_come()
     {
        for (shard, acknowledged, lost_from) in [
            // The stand-by had 90 of 100 when it was promoted, and new commits have overtaken the mark.
            (began(90, mark(1, 2, 500)), mark(1, 1, 100), Some(90)),
            // It had everything.
            (began(100, mark(1, 2, 500)), mark(1, 1, 100), None),
            // Nothing is known about the beginning.
            (mark(1, 2, 500), mark(1, 1, 100), None),
            // The mark is from the timeline itself.
            (began(90, mark(1, 2, 500)), mark(1, 2, 400), None),
            // The router has heard of the new timeline through another shard, and still knows what it was told before.
            (began(90, mark(1, 2, 500)), mark(1, 1, 100).merged(mark(1, 2, 400)), Some(90)),
            (began(90, mark(1, 2, 500)), mark(1, 2, 400).merged(mark(1, 1, 90)), None),
            // The loss was accepted.
            (began(90, mark(2, 2, 500)), mark(1, 1, 100), None),
        ] {
            assert_eq!(shard.lost_from(acknowledged), lost_from, "{shard:?} {acknowledged:?}");
            assert_eq!(shard.is_behind(acknowledged), lost_from.is_some(), "{shard:?} {acknowledged:?}");
            let named = shard.compare(acknowledged, "router r");
            assert_eq!(named.map(|named| named.fact).as_deref(), lost_from.map(|_| "position"));
        }
    }

    #[test]
    fn merging_keeps_the_beginning_of_the_later_timeline_and_the_highest_position_before_it() {
        let (first, second, third) = (mark(1, 1, 100), began(90, mark(1, 2, 300)), began(300, mark(1, 3, 310)));
        let expected = Mark { earlier: 100, ..second };
        assert_eq!((first.merged(second), second.merged(first)), (expected, expected));
        assert_eq!(mark(1, 2, 299).merged(second), second, "an answer that does not say where the timeline began");
        assert_eq!(first.merged(second).merged(third), Mark { earlier: 300, ..third });
        assert_eq!(first.merged(third), Mark { earlier: 100, ..third });
    }

    #[test]
    fn the_parts_of_a_mark_say_the_same_as_the_mark() {
        let known = mark(1, 1, 100).merged(mark(1, 2, 300));
        let parts: Vec<Mark> = known.parts().collect();
        assert_eq!(parts, [mark(1, 2, 300), mark(1, 1, 100)]);
        assert_eq!(parts.into_iter().reduce(Mark::merged), Some(known));
        assert_eq!(mark(1, 1, 7).parts().count(), 1);
    }
}
