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

/// The result of recording a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The statement counts, or an earlier one counts more.
    Understood,
    /// Two shards claim the slot at one epoch. INV-2 forbids this; an operator must look into it.
    Conflict,
}

/// All facts, by slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    slots: Box<[Option<Fact>]>,
}

impl Facts {
    pub fn none() -> Self {
        Self { slots: vec![None; Slot::all().len()].into_boxed_slice() }
    }

    /// Records what `shard` says about a slot.
    pub fn hear(&mut self, map: &ShardMap, shard: ShardIndex, slot: Slot, statement: SlotStatement) -> Heard {
        match statement {
            SlotStatement::Owned { epoch } => {
                self.believe(map, slot, Fact { epoch, word: Word::Owner, owner: shard })
            }
            SlotStatement::Released { epoch, to: Some(owner) } => {
                self.believe(map, slot, Fact { epoch, word: Word::Owner, owner })
            }
            SlotStatement::Incoming { epoch, from: Some(owner) } => {
                self.believe(map, slot, Fact { epoch, word: Word::Successor, owner })
            }
            SlotStatement::Released { epoch, to: None } | SlotStatement::Incoming { epoch, from: None } => {
                self.deny(slot, shard, epoch)
            }
            SlotStatement::Absent => self.deny(slot, shard, i64::MAX),
        }
    }

    fn believe(&mut self, map: &ShardMap, slot: Slot, said: Fact) -> Heard {
        let place = &mut self.slots[usize::from(slot.index())];
        let rank = |fact: Fact| (fact.epoch, fact.word);
        match *place {
            Some(known) if rank(said) < rank(known) => Heard::Understood,
            Some(known) if rank(said) == rank(known) && said.owner != known.owner => {
                // Routers that hear the two claims in different orders must not send one account to two shards, so
                // the map decides.
                if said.owner == map.owner(slot) {
                    *place = Some(said);
                }
                if said.word == Word::Owner { Heard::Conflict } else { Heard::Understood }
            }
            _ => {
                *place = Some(said);
                Heard::Understood
            }
        }
    }

    /// Rule 3. A denial older than the belief is ignored.
    fn deny(&mut self, slot: Slot, shard: ShardIndex, epoch: i64) -> Heard {
        let place = &mut self.slots[usize::from(slot.index())];
        if place.is_some_and(|known| known.owner == shard && known.epoch <= epoch) {
            *place = None;
        }
        Heard::Understood
    }

    /// Rule 3 for shards that gave a complete list: they do not own what they do not list. `listed` says of each such shard which
    /// slots it lists.
    pub fn deny_unlisted(&mut self, listed: &HashMap<ShardIndex, Vec<bool>>) {
        for (slot, place) in self.slots.iter_mut().enumerate() {
            if place.and_then(|fact| listed.get(&fact.owner)).is_some_and(|slots| !slots[slot]) {
                *place = None;
            }
        }
    }

    /// The shard that receives the requests of each slot.
    pub fn owners(&self, map: &ShardMap) -> Box<[ShardIndex]> {
        Slot::all()
            .zip(&self.slots)
            .map(|(slot, fact)| fact.map_or_else(|| map.owner(slot), |fact| fact.owner))
            .collect()
    }

    /// The owner of a slot, if a shard said so.
    pub fn owner(&self, slot: Slot) -> Option<ShardIndex> {
        self.slots[usize::from(slot.index())].map(|fact| fact.owner)
    }

    /// The epoch of a slot's owner, if a shard said so.
    pub fn epoch(&self, slot: Slot) -> Option<i64> {
        self.slots[usize::from(slot.index())].map(|fact| fact.epoch)
    }

    /// The same facts under a new map (rule 4), and the slots whose owner the new map lacks; for those the new map
    /// decides.
    pub fn carried_over(&self, old: &ShardMap, new: &ShardMap) -> (Self, Vec<SlotRange>) {
        let mut lost = Vec::new();
        let indices: Vec<Option<ShardIndex>> = old.shards.iter().map(|shard| new.index_of(&shard.id)).collect();
        let slots = Slot::all().zip(&self.slots).map(|(slot, fact)| {
            let fact = (*fact)?;
            let owner = indices[usize::from(fact.owner.0)];
            if owner.is_none() {
                lost.push(slot);
            }
            owner.map(|owner| Fact { owner, ..fact })
        });
        let slots = slots.collect();
        (Self { slots }, merge_slots(lost))
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
            assert_eq!(facts.hear(&map, order[0], SLOT, owned(1)), Heard::Understood);
            assert_eq!(facts.hear(&map, order[1], SLOT, owned(1)), Heard::Conflict);
            assert_eq!(facts.owners(&map)[0], S0);
        }
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
