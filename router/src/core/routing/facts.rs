//! What shards said about slots, and which of two statements counts. Pure: no clock, no file, no network.
//!
//! The rules, for each slot:
//! 1. While no shard has said anything, the map decides.
//! 2. Of two statements, the one with the higher epoch counts. At the same epoch, the statement of the owner, or of
//!    the shard that handed the slot over, counts more than that of a shard that still waits for the slot.
//! 3. A shard that denies owning a slot removes the belief that it owns it, and the map decides again.
//! 4. A new map changes nothing about a slot of which a shard has spoken. A map has a version but no epochs, so it
//!    cannot prove that it is newer than the statement. If it is, the shard says so at the first request.

use std::collections::HashMap;

use shard_map::{ShardIndex, ShardMap, Slot, SlotRange, merge_slots};

/// The statement of a shard about one slot. The states are those of the column `slot_ownership.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotStatement {
    /// The shard owns the slot.
    Owned { epoch: i64 },
    /// The shard handed the slot over.
    Released { epoch: i64, to: Option<ShardIndex> },
    /// The shard will receive the slot.
    Incoming { epoch: i64, from: Option<ShardIndex> },
    /// The shard never owned the slot.
    Absent,
}

impl SlotStatement {
    /// `peer` is the shard at the other end of the move, if the map knows it.
    pub fn new(state: u32, epoch: i64, peer: Option<ShardIndex>) -> Self {
        match state {
            1 => Self::Owned { epoch },
            2 => Self::Released { epoch, to: peer },
            3 => Self::Incoming { epoch, from: peer },
            _ => Self::Absent,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fact {
    epoch: i64,
    word: Word,
    owner: ShardIndex,
}

/// The source of a fact; later variants count more at the same epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    /// A shard that waits for the slot, speaking of its present owner.
    Successor,
    /// The owner, or the shard that handed the slot to it at this epoch.
    Owner,
}

/// All facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Slots with the same fact, in ascending order and in the fewest ranges. Of the other slots no shard has spoken.
    ranges: Vec<(SlotRange, Fact)>,
}

impl Facts {
    pub fn none() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Records what `shard` says about slots. Returns the slots that two shards claim at one epoch. INV-2 forbids this; an operator must look
    /// into it.
    pub fn hear(
        &mut self,
        map: &ShardMap,
        shard: ShardIndex,
        slots: impl Into<SlotRange>,
        statement: SlotStatement,
    ) -> Vec<SlotRange> {
        let slots = slots.into();
        match statement {
            SlotStatement::Owned { epoch } => {
                self.believe(map, slots, Fact { epoch, word: Word::Owner, owner: shard })
            }
            SlotStatement::Released { epoch, to: Some(owner) } => {
                self.believe(map, slots, Fact { epoch, word: Word::Owner, owner })
            }
            SlotStatement::Incoming { epoch, from: Some(owner) } => {
                self.believe(map, slots, Fact { epoch, word: Word::Successor, owner })
            }
            SlotStatement::Released { epoch, to: None } | SlotStatement::Incoming { epoch, from: None } => {
                self.deny(slots, shard, epoch)
            }
            SlotStatement::Absent => self.deny(slots, shard, i64::MAX),
        }
    }

    fn believe(&mut self, map: &ShardMap, slots: SlotRange, said: Fact) -> Vec<SlotRange> {
        let rank = |fact: Fact| (fact.epoch, fact.word);
        let mut contradicted = Vec::new();
        self.replace(slots, |part, known| match known {
            Some(known) if rank(said) < rank(known) => Some(known),
            Some(known) if rank(said) == rank(known) && said.owner != known.owner => {
                contradicted.push(part);
                Some(known)
            }
            _ => Some(said),
        });
        // Routers that hear the two claims in different orders must not send one account to two shards, so the map decides.
        for slot in contradicted.iter().flat_map(|part| part.slots()).filter(|slot| said.owner == map.owner(*slot)) {
            self.replace(slot.into(), |_, _| Some(said));
        }
        if said.word == Word::Owner { contradicted } else { Vec::new() }
    }

    /// Rule 3. A denial older than the belief is ignored.
    fn deny(&mut self, slots: SlotRange, shard: ShardIndex, epoch: i64) -> Vec<SlotRange> {
        self.replace(slots, |_, known| known.filter(|known| known.owner != shard || known.epoch > epoch));
        Vec::new()
    }

    /// Rule 3 for shards that gave a complete list: they do not own what they do not list. `listed` has the slots that each such shard
    /// lists, in any order.
    pub fn deny_unlisted(&mut self, listed: &HashMap<ShardIndex, Vec<SlotRange>>) {
        let before = std::mem::take(&mut self.ranges);
        for (range, fact) in before {
            let Some(listed) = listed.get(&fact.owner) else {
                self.push(range, fact);
                continue;
            };
            let mut kept: Vec<SlotRange> = listed.iter().filter_map(|listed| listed.intersection(range)).collect();
            kept.sort_unstable();
            merge_slots(kept).into_iter().for_each(|range| self.push(range, fact));
        }
    }

    /// Replaces what is believed of some slots. `belief` gets each range of them of which the same is believed, some of them twice if it changes
    /// what is believed.
    fn replace(&mut self, slots: SlotRange, mut belief: impl FnMut(SlotRange, Option<Fact>) -> Option<Fact>) {
        // Most statements repeat what is believed already: a batch is refused with one statement for each of its operations.
        if let Some((range, known)) = self.range_of(slots.first())
            && range.contains(slots.last())
            && belief(slots, Some(known)) == Some(known)
        {
            return;
        }
        let ranges = std::mem::take(&mut self.ranges);
        let parts = |part: fn(SlotRange, SlotRange) -> Option<SlotRange>| {
            ranges.iter().filter_map(move |(range, fact)| Some((part(*range, slots)?, *fact)))
        };
        parts(SlotRange::part_before).for_each(|(part, fact)| self.push(part, fact));
        let mut put = |part: SlotRange, known: Option<Fact>| {
            belief(part, known).into_iter().for_each(|fact| self.push(part, fact));
        };
        // The first slot that is still to be looked at.
        let mut next = Some(slots.first());
        for (part, fact) in parts(SlotRange::intersection) {
            next.and_then(|next| SlotRange::until(next, part.first())).into_iter().for_each(|part| put(part, None));
            put(part, Some(fact));
            next = part.last().next();
        }
        next.and_then(|next| SlotRange::new(next, slots.last()).ok()).into_iter().for_each(|part| put(part, None));
        parts(SlotRange::part_after).for_each(|(part, fact)| self.push(part, fact));
    }

    /// Adds a fact about slots behind all others.
    fn push(&mut self, range: SlotRange, fact: Fact) {
        match self.ranges.last_mut() {
            Some((before, same)) if *same == fact && before.reaches(range) => *before = before.up_to(range),
            _ => self.ranges.push((range, fact)),
        }
    }

    fn range_of(&self, slot: Slot) -> Option<(SlotRange, Fact)> {
        let place = self.ranges.partition_point(|(range, _)| range.last() < slot);
        self.ranges.get(place).filter(|(range, _)| range.contains(slot)).copied()
    }

    fn fact(&self, slot: Slot) -> Option<Fact> {
        self.range_of(slot).map(|(_, fact)| fact)
    }

    /// The shard that receives the requests of each slot.
    pub fn owners(&self, map: &ShardMap) -> Box<[ShardIndex]> {
        let mut owners: Box<[ShardIndex]> = map.owners().into();
        for (range, fact) in &self.ranges {
            owners[range.indices()].fill(fact.owner);
        }
        owners
    }

    /// The owner of a slot, if a shard said so.
    pub fn owner(&self, slot: Slot) -> Option<ShardIndex> {
        self.fact(slot).map(|fact| fact.owner)
    }

    /// The epoch of a slot's owner, if a shard said so.
    pub fn epoch(&self, slot: Slot) -> Option<i64> {
        self.fact(slot).map(|fact| fact.epoch)
    }

    /// The same facts under a new map (rule 4), and the slots whose owner the new map lacks; for those the new map
    /// decides.
    pub fn carried_over(&self, old: &ShardMap, new: &ShardMap) -> (Self, Vec<SlotRange>) {
        let indices: Vec<Option<ShardIndex>> = old.shards.iter().map(|shard| new.index_of(&shard.id)).collect();
        let (mut facts, mut lost) = (Self::none(), Vec::new());
        for (range, fact) in &self.ranges {
            match indices[usize::from(fact.owner.0)] {
                Some(owner) => facts.push(*range, Fact { owner, ..*fact }),
                None => lost.push(*range),
            }
        }
        (facts, merge_slots(lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::routing::tests::map_of;

    const S0: ShardIndex = ShardIndex(0);
    const S1: ShardIndex = ShardIndex(1);
    const S2: ShardIndex = ShardIndex(2);
    const SLOT: Slot = Slot::FIRST;

    fn owned(epoch: i64) -> SlotStatement {
        SlotStatement::Owned { epoch }
    }
    fn released(epoch: i64, to: ShardIndex) -> SlotStatement {
        SlotStatement::Released { epoch, to: Some(to) }
    }
    fn incoming(epoch: i64, from: ShardIndex) -> SlotStatement {
        SlotStatement::Incoming { epoch, from: Some(from) }
    }

    /// Where slot 0 goes (s0 by the map) after these statements.
    fn owner_after(statements: &[(ShardIndex, SlotStatement)]) -> ShardIndex {
        let map = map_of(1, &["s0", "s1", "s2"]);
        let mut facts = Facts::none();
        for (shard, statement) in statements {
            facts.hear(&map, *shard, SLOT, *statement);
        }
        facts.owners(&map)[0]
    }

    #[test]
    fn while_no_shard_has_spoken_the_map_decides() {
        assert_eq!(owner_after(&[]), S0);
    }

    #[test]
    fn the_higher_epoch_counts_in_any_order() {
        for order in [[(S1, owned(2)), (S0, owned(1))], [(S0, owned(1)), (S1, owned(2))]] {
            assert_eq!(owner_after(&order), S1);
        }
        assert_eq!(owner_after(&[(S0, released(5, S1)), (S1, released(6, S2)), (S0, released(5, S1))]), S2);
        assert_eq!(owner_after(&[(S0, released(2, S1)), (S1, released(3, S0)), (S0, released(2, S1))]), S0);
    }

    /// A move from s0 to s1 at epoch 2, heard in every order and from either side.
    #[test]
    fn a_hand_over_is_understood_in_every_order() {
        let heard = [(S0, owned(1)), (S1, incoming(2, S0)), (S0, released(2, S1)), (S1, owned(2))];
        for first in 0..heard.len() {
            for second in 0..heard.len() {
                for third in 0..heard.len() {
                    let order = [heard[first], heard[second], heard[third]];
                    let handed_over = order.iter().any(|said| [heard[2], heard[3]].contains(said));
                    assert_eq!(owner_after(&order), if handed_over { S1 } else { S0 }, "{order:?}");
                }
            }
        }
    }

    #[test]
    fn a_shard_that_waits_for_a_slot_names_its_owner() {
        assert_eq!(owner_after(&[(S2, incoming(4, S1))]), S1);
    }

    #[test]
    fn a_denial_removes_the_belief() {
        assert_eq!(owner_after(&[(S1, owned(4)), (S1, SlotStatement::Absent)]), S0);
        assert_eq!(owner_after(&[(S1, owned(4)), (S1, SlotStatement::Released { epoch: 5, to: None })]), S0);
        assert_eq!(owner_after(&[(S1, owned(4)), (S2, SlotStatement::Absent)]), S1, "no other shard can deny it");
        assert_eq!(
            owner_after(&[(S1, owned(4)), (S1, SlotStatement::Released { epoch: 3, to: None })]),
            S1,
            "late news"
        );
    }

    #[test]
    fn two_claims_at_one_epoch_are_a_conflict_that_every_router_settles_the_same_way() {
        let map = map_of(1, &["s0", "s1", "s2"]);
        for order in [[S0, S1], [S1, S0]] {
            let mut facts = Facts::none();
            assert_eq!(facts.hear(&map, order[0], SLOT, owned(1)), []);
            assert_eq!(facts.hear(&map, order[1], SLOT, owned(1)), [SlotRange::from(SLOT)]);
            assert_eq!(facts.owners(&map)[0], S0);
        }
    }

    #[test]
    fn a_statement_about_a_range_is_one_about_each_of_its_slots() {
        let map = map_of(1, &["s0", "s1", "s2"]);
        let statements = [
            (S1, "10-30", owned(2)),
            (S0, "0-40", owned(1)),
            (S2, "5-9", owned(1)),
            (S0, "25-35", released(3, S2)),
            (S1, "0-16383", incoming(2, S0)),
            (S1, "12-13", SlotStatement::Absent),
            (S2, "16380-16383", owned(7)),
            (S0, "38-50", SlotStatement::Released { epoch: 1, to: None }),
        ];
        let (mut by_range, mut by_slot) = (Facts::none(), Facts::none());
        for (shard, slots, statement) in statements {
            let slots: SlotRange = slots.parse().unwrap();
            let conflicts = by_range.hear(&map, shard, slots, statement);
            let by_one = slots.slots().flat_map(|slot| by_slot.hear(&map, shard, slot, statement));
            assert_eq!(merge_slots(conflicts), merge_slots(by_one), "{slots}");
            assert_eq!(by_range, by_slot, "{slots}");
            assert!(by_range.ranges.iter().is_sorted_by(|(before, _), (after, _)| before.last() < after.first()));
        }
        let listed = HashMap::from([(S0, vec!["20-22".parse().unwrap(), "2-3".parse().unwrap()]), (S1, Vec::new())]);
        by_range.deny_unlisted(&listed);
        let kept = |slot: u16| by_range.owner(Slot::new(slot).unwrap());
        assert_eq!(
            [1, 2, 3, 4, 15, 26, 16_383].map(kept),
            [None, Some(S0), Some(S0), None, None, Some(S2), Some(S2)]
        );
    }

    #[test]
    fn a_new_map_does_not_overrule_a_shard() {
        let old = map_of(1, &["s0", "s1", "s2"]);
        let mut facts = Facts::none();
        facts.hear(&old, S1, SLOT, owned(4));
        facts.hear(&old, S2, Slot::LAST, owned(4));

        let reordered = map_of(2, &["s9", "s1", "s0"]);
        let (facts, lost) = facts.carried_over(&old, &reordered);
        assert_eq!(reordered.shard(facts.owners(&reordered)[0]).id, "s1");
        assert_eq!(facts.epoch(SLOT), Some(4));
        assert_eq!(lost, [SlotRange::new(Slot::LAST, Slot::LAST).unwrap()], "s2 is gone: the map decides");
        assert_eq!(facts.epoch(Slot::LAST), None);
    }
}
