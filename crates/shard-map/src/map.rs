//! The shard map: every slot owned by exactly one shard.
//!
//! A [`ShardMap`] can only be made from a text ([`ShardMap::parse`]) or from its parts ([`ShardMap::new`]), and both
//! refuse anything incomplete: INV-7, in a map every slot has exactly one owner, shard ids, shard numbers and node
//! addresses are unique. It is immutable; a changed map is another map with a higher version.

use std::fmt;

use crate::{
    cluster::ClusterId,
    error::MapError,
    slot::{SLOTS, Slot, SlotRange},
    validate::{self, Draft, Lines},
};

/// The highest shard number: a journal position has 12 bits for the number.
pub const MAX_SHARD_NUMBER: u16 = (1 << 12) - 1;

/// A complete, valid assignment of slots to shards.
#[derive(Clone, PartialEq, Eq)]
pub struct ShardMap {
    /// The cluster that the map describes. Databases and nodes of another cluster are refused.
    pub cluster: ClusterId,
    /// Grows with every change; at least 1.
    pub version: u64,
    /// In the order of the file. [`ShardIndex`] is an index into this list.
    pub shards: Vec<Shard>,
    /// Shards that the cluster had before. Their ids and numbers are never given to another shard, because positions and rows of
    /// moves contain them.
    pub removed: Vec<RemovedShard>,
    /// By slot: what routing reads.
    owners: Box<[ShardIndex]>,
    /// The shards in order of their ids, for look-ups by id.
    by_id: Box<[ShardIndex]>,
}

/// One shard of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// `s0`: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    pub id: String,
    /// Part of every journal position of the shard. A number is never given to another shard.
    pub number: u16,
    /// Where its nodes listen, in order of preference: `http://host:port`.
    pub nodes: Vec<String>,
    /// Its slots in ascending order, in the fewest ranges. Empty for a shard that waits for its first slots.
    pub slots: Vec<SlotRange>,
}

/// A shard that was removed from the cluster when it was empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedShard {
    pub id: String,
    pub number: u16,
}

/// A place in [`ShardMap::shards`]. Means nothing without its map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardIndex(pub u16);

impl ShardMap {
    /// The id of the shard that owns a slot in this map.
    pub fn owner_id(&self, slot: Slot) -> &str {
        &self.shard(self.owner(slot)).id
    }

    /// A map from its parts, with the checks of [`ShardMap::parse`].
    pub fn new(cluster: ClusterId, version: u64, shards: Vec<Shard>) -> Result<Self, MapError> {
        validate::validate(Draft::from_parts(cluster, version, shards, Vec::new()), &Lines::of(""))
    }

    /// The next version of this map, with these shards.
    ///
    /// # Errors
    /// When the shards do not make a map.
    pub fn successor(&self, shards: Vec<Shard>) -> Result<Self, MapError> {
        let draft = Draft::from_parts(self.cluster, self.version + 1, shards, self.removed.clone());
        validate::validate(draft, &Lines::of(""))
    }

    /// The next version of this map, without a shard. Its id and number stay in the list of removed shards.
    ///
    /// # Errors
    /// When the shard has slots, or is the only one.
    pub fn successor_without(&self, id: &str) -> Result<Self, MapError> {
        let (kept, gone): (Vec<Shard>, Vec<Shard>) = self.shards.iter().cloned().partition(|shard| shard.id != id);
        let gone = gone.into_iter().map(|shard| RemovedShard { id: shard.id, number: shard.number });
        let removed = self.removed.iter().cloned().chain(gone).collect();
        validate::validate(Draft::from_parts(self.cluster, self.version + 1, kept, removed), &Lines::of(""))
    }

    /// Builds the map from validated parts.
    ///
    /// # Panics
    /// If a slot has no owner, which validation excludes.
    pub(crate) fn assemble(cluster: ClusterId, version: u64, shards: Vec<Shard>, removed: Vec<RemovedShard>) -> Self {
        let indices = || (0..=u16::MAX).map(ShardIndex);
        let mut owners = vec![None; usize::from(SLOTS)];
        for (index, shard) in indices().zip(&shards) {
            for slot in shard.slots.iter().flat_map(|range| range.slots()) {
                let earlier = owners[usize::from(slot.index())].replace(index);
                assert!(earlier.is_none(), "INV-7: slot {slot} has two owners");
            }
        }
        let owners = Slot::all()
            .zip(owners)
            .map(|(slot, owner)| owner.unwrap_or_else(|| panic!("INV-7: slot {slot} has no owner")))
            .collect();
        let mut by_id: Box<[ShardIndex]> = indices().take(shards.len()).collect();
        by_id.sort_by_key(|index| &shards[usize::from(index.0)].id);
        Self { cluster, version, shards, removed, owners, by_id }
    }

    /// The shard that owns a slot; one array access.
    pub fn owner(&self, slot: Slot) -> ShardIndex {
        self.owners[usize::from(slot.index())]
    }

    /// The shard that owns each slot, in the order of the slots.
    pub fn owners(&self) -> &[ShardIndex] {
        &self.owners
    }

    /// # Panics
    /// If the index belongs to another map and is out of range here.
    pub fn shard(&self, index: ShardIndex) -> &Shard {
        &self.shards[usize::from(index.0)]
    }

    pub fn index_of(&self, id: &str) -> Option<ShardIndex> {
        let place = self.by_id.binary_search_by_key(&id, |index| &self.shard(*index).id).ok()?;
        Some(self.by_id[place])
    }

    /// The number after the highest that any shard has or had. A new shard gets it.
    pub fn next_number(&self) -> u16 {
        let present = self.shards.iter().map(|shard| shard.number);
        let removed = self.removed.iter().map(|shard| shard.number);
        present.chain(removed).max().map_or(0, |highest| highest.saturating_add(1))
    }

    /// Every shard with its index.
    pub fn indexed(&self) -> impl ExactSizeIterator<Item = (ShardIndex, &Shard)> {
        self.shards.iter().enumerate().map(|(place, shard)| (ShardIndex(place as u16), shard))
    }
}

impl Shard {
    /// The number of the shard's slots.
    pub fn slot_count(&self) -> u16 {
        self.slots.iter().map(|range| range.len()).sum()
    }
}

impl fmt::Debug for ShardMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardMap")
            .field("cluster", &self.cluster)
            .field("version", &self.version)
            .field("shards", &self.shards)
            .field("removed", &self.removed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u16, slots: Vec<SlotRange>) -> Shard {
        Shard { id: format!("s{number}"), number, nodes: vec![format!("http://127.0.0.1:{}", 7500 + number)], slots }
    }

    #[test]
    fn every_slot_leads_to_the_shard_that_lists_it() {
        for count in [1, 4, 1000, MAX_SHARD_NUMBER + 1] {
            let shards = SlotRange::split_evenly(count).enumerate().map(|(n, range)| shard(n as u16, vec![range]));
            let map = ShardMap::new(ClusterId::generate(), 1, shards.collect()).unwrap();
            for slot in Slot::all() {
                assert!(map.shard(map.owner(slot)).slots[0].contains(slot), "{count} shards, slot {slot}");
            }
            for (index, shard) in map.indexed() {
                assert_eq!(map.index_of(&shard.id), Some(index));
            }
            assert_eq!(map.index_of("s"), None);
            assert_eq!(map.index_of("t"), None);
        }
    }

    #[test]
    fn slots_are_kept_in_the_fewest_ranges() {
        let range = |text: &str| text.parse().unwrap();
        let scattered = shard(0, ["16000-16383", "0-4", "6-15999", "5"].map(range).to_vec());
        let map = ShardMap::new(ClusterId::generate(), 3, vec![scattered, shard(1, vec![])]).unwrap();
        assert_eq!(map.shards[0].slots, [SlotRange::ALL]);
        assert_eq!(map.shards[0].slot_count(), SLOTS);
        assert_eq!(map.shards[1].slot_count(), 0);
    }

    #[test]
    fn a_removed_shard_leaves_its_id_and_number_behind() {
        let before =
            ShardMap::new(ClusterId::generate(), 7, vec![shard(0, vec![SlotRange::ALL]), shard(1, vec![])]).unwrap();
        let map = before.successor_without("s1").unwrap();
        assert_eq!((map.version, map.shards.len(), map.next_number()), (8, 1, 2));
        assert_eq!(ShardMap::parse(&map.to_toml()).unwrap(), map);
        let with = |added: Shard| map.successor(vec![map.shards[0].clone(), added]).unwrap_err().to_string();
        assert_eq!(
            with(shard(1, vec![])),
            "shard id \"s1\" belonged to a removed shard: choose another id; shard s1: number 1 belonged to the removed shard s1: \
             choose a number that is not in the map"
        );
        assert!(before.check_successor(&map).is_ok());
        let forgotten = ShardMap::new(map.cluster, 9, map.shards.clone()).unwrap();
        assert!(map.check_successor(&forgotten).unwrap_err().to_string().contains("removed shard s1"));
        assert!(before.successor_without("s0").is_err(), "its slots would belong to no shard");
    }

    #[test]
    fn parts_are_checked_as_a_file_is() {
        let error =
            ShardMap::new(ClusterId::generate(), 1, vec![shard(0, vec!["0-9".parse().unwrap()])]).unwrap_err();
        assert_eq!(error.to_string(), "slots 10-16383 belong to no shard");
    }
}
