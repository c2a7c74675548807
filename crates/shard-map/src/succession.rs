//! Which map may replace which, and what changes from one map to another.

use std::collections::HashMap;

use crate::{
    error::{MapError, MapProblem, Reason},
    map::ShardMap,
    slot::{Slot, SlotRange, merge_slots},
    validate::{Lines, Places},
};

impl ShardMap {
    /// Checks whether `new` may replace this map. It must belong to the same cluster and have a greater version;
    /// shards must keep their numbers, no number may go to another shard, removed shards stay listed, and no slot may change its shard.
    ///
    /// A map that follows a finished move fails this check, because the map alone cannot distinguish a move from a
    /// mistake. [`ShardMap::parse_successor`] also considers what the shards say.
    pub fn check_successor(&self, new: &Self) -> Result<(), MapError> {
        let problems = self.succession_problems(new, &Places::default(), &Lines::of(""), |_| None);
        if problems.is_empty() { Ok(()) } else { Err(MapError::new(problems)) }
    }

    /// The shards and removed shards of this map that `new` does not list any more. A shard that is not listed could still have accounts,
    /// and its number could be given to another shard.
    pub fn missing_in(&self, new: &Self) -> Vec<Reason> {
        let is_removed =
            |id: &str, number: u16| new.removed.iter().any(|gone| gone.id == id && gone.number == number);
        let shards = self
            .shards
            .iter()
            .filter(|shard| new.index_of(&shard.id).is_none() && !is_removed(&shard.id, shard.number));
        let shards = shards.map(|it| Reason::ShardMissing { shard: it.id.clone(), number: it.number });
        let removed = self.removed.iter().filter(|gone| !is_removed(&gone.id, gone.number));
        let removed = removed.map(|it| Reason::RemovedForgotten { shard: it.id.clone(), number: it.number });
        shards.chain(removed).collect()
    }

    pub(crate) fn succession_problems<'a>(
        &self,
        new: &Self,
        places: &Places,
        lines: &Lines<'_>,
        owner_by_shards: impl Fn(Slot) -> Option<&'a str>,
    ) -> Vec<MapProblem> {
        let mut problems = Vec::new();
        let mut add = |offset, reason| problems.push(MapProblem { line: lines.at(offset), reason });
        if new.cluster != self.cluster {
            add(places.cluster, Reason::OtherCluster { current: self.cluster, new: new.cluster });
        }
        if new.version <= self.version {
            add(places.version, Reason::VersionNotGreater { current: self.version, new: new.version });
        }
        let before_by_number: HashMap<u16, &str> =
            self.shards.iter().map(|shard| (shard.number, shard.id.as_str())).collect();
        for (place, shard) in new.shards.iter().enumerate() {
            let offset = places.numbers.get(place).copied().flatten();
            let (id, number) = (shard.id.clone(), shard.number);
            match self.index_of(&shard.id).map(|index| self.shard(index).number) {
                Some(kept) if kept != number => add(offset, Reason::NumberChanged { shard: id, number, kept }),
                Some(_) => {}
                None => {
                    if let Some(before) = before_by_number.get(&number) {
                        add(offset, Reason::NumberReused { shard: id, number, before: (*before).to_owned() });
                    }
                }
            }
        }
        for reason in self.missing_in(new) {
            add(None, reason);
        }
        // A map may lag behind the shards and leave a slot where it was. It may not assign a slot to a shard that
        // does not own it.
        let reassigned = |slot: Slot| {
            let (before, to, known) = (self.owner_id(slot), new.owner_id(slot), owner_by_shards(slot));
            (before != to && known != Some(to)).then(|| (known.unwrap_or(before), to))
        };
        let slots: Vec<Slot> = Slot::all().collect();
        for run in slots.chunk_by(|a, b| reassigned(*a) == reassigned(*b)) {
            let Some((from, to)) = run.first().copied().and_then(reassigned) else { continue };
            for slots in merge_slots(run.iter().copied()) {
                let of_shard = places.slots.get(usize::from(new.owner(slots.first()).0));
                let stated =
                    of_shard.and_then(|ranges| ranges.iter().find(|(range, _)| range.contains(slots.first())));
                let offset = stated.and_then(|(_, offset)| *offset);
                add(offset, Reason::SlotsReassigned { slots, from: from.to_owned(), to: to.to_owned() });
            }
        }
        problems
    }
}

/// The difference between two maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MapDiff {
    /// In order of slots.
    pub moves: Vec<SlotMove>,
    /// Ids of shards that only the new map has.
    pub added: Vec<String>,
    /// Ids of shards that only the old map has.
    pub removed: Vec<String>,
    /// Shards whose nodes differ.
    pub endpoints: Vec<Endpoints>,
}

/// Slots that change hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotMove {
    pub slots: SlotRange,
    pub from: String,
    pub to: String,
}

/// A shard whose nodes differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    pub shard: String,
    pub old: Vec<String>,
    pub new: Vec<String>,
}

impl ShardMap {
    /// What is different in `new`. The version alone is no difference.
    pub fn diff(&self, new: &Self) -> MapDiff {
        let lacks = |map: &Self, id: &str| map.index_of(id).is_none();
        let ids_only_in = |here: &Self, there: &Self| {
            here.shards.iter().map(|shard| shard.id.clone()).filter(|id| lacks(there, id)).collect()
        };
        let endpoints = self.shards.iter().filter_map(|old| {
            let new = new.shard(new.index_of(&old.id)?);
            (old.nodes != new.nodes).then(|| Endpoints {
                shard: old.id.clone(),
                old: old.nodes.clone(),
                new: new.nodes.clone(),
            })
        });
        MapDiff {
            moves: self.moves_to(new),
            added: ids_only_in(new, self),
            removed: ids_only_in(self, new),
            endpoints: endpoints.collect(),
        }
    }

    fn moves_to(&self, new: &Self) -> Vec<SlotMove> {
        let owners = |slot: Slot| (&self.shard(self.owner(slot)).id, &new.shard(new.owner(slot)).id);
        let slots: Vec<Slot> = Slot::all().collect();
        slots
            .chunk_by(|a, b| owners(*a) == owners(*b))
            .flat_map(|run| merge_slots(run.iter().copied()))
            .filter_map(|slots| {
                let (from, to) = owners(slots.first());
                (from != to).then(|| SlotMove { slots, from: from.clone(), to: to.clone() })
            })
            .collect()
    }
}

impl MapDiff {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many slots change hands.
    pub fn slots_moved(&self) -> u16 {
        self.moves.iter().map(|moved| moved.slots.len()).sum()
    }
}
