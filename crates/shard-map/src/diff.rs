//! What changes from one map to another: for people who are about to publish it.

use crate::{
    map::ShardMap,
    slot::{Slot, SlotRange, merge_slots},
};

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
