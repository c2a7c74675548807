//! One immutable answer to "which shard has this account?".

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

use shard_map::{Shard, ShardIndex, ShardMap, Slot, SlotRange, merge_slots, slot_of};

/// A snapshot of the routing. Its [`ShardIndex`]es mean nothing in another snapshot: keep shard ids where something
/// outlives the request.
pub struct RoutingTable {
    map: Arc<ShardMap>,
    /// By slot: the owner by the map, or by what a shard said where that counts more.
    owners: Box<[ShardIndex]>,
    ids: Arc<[Arc<str>]>,
    generation: u64,
}

impl RoutingTable {
    /// `owners` has one entry a slot, all of them shards of `map`.
    pub(super) fn new(map: Arc<ShardMap>, ids: Arc<[Arc<str>]>, owners: Box<[ShardIndex]>, generation: u64) -> Self {
        assert_eq!(owners.len(), Slot::all().len(), "INV-7: every slot has an owner");
        Self { map, owners, ids, generation }
    }

    /// Whether no request could tell this table from `other`.
    pub(super) fn routes_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.map, &other.map) && self.owners == other.owners
    }

    /// The shard of an account, by its id.
    pub fn route(&self, account: &(impl Borrow<str> + ?Sized)) -> ShardIndex {
        self.owner(slot_of(account.borrow()))
    }

    pub fn owner(&self, slot: Slot) -> ShardIndex {
        self.owners[usize::from(slot.index())]
    }

    /// The id of a shard, cheap to keep.
    pub fn shard_id(&self, index: ShardIndex) -> &Arc<str> {
        &self.ids[usize::from(index.0)]
    }

    /// Every shard with its index.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = (ShardIndex, &Shard)> {
        self.map.indexed()
    }

    /// The map beneath, as its file or a node stated it.
    pub fn map(&self) -> &Arc<ShardMap> {
        &self.map
    }

    /// Grows with every change of routing, also those that leave the map's version as it is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The slots that requests to this shard come from.
    pub fn slots_of(&self, shard: ShardIndex) -> Vec<SlotRange> {
        merge_slots(Slot::all().filter(|slot| self.owner(*slot) == shard))
    }

    /// The same of every shard that has any, in one pass.
    pub fn slots_by_shard(&self) -> Vec<(ShardIndex, Vec<SlotRange>)> {
        let mut slots: BTreeMap<ShardIndex, Vec<Slot>> = BTreeMap::new();
        for slot in Slot::all() {
            slots.entry(self.owner(slot)).or_default().push(slot);
        }
        slots.into_iter().map(|(shard, slots)| (shard, merge_slots(slots))).collect()
    }

    /// How many slots go elsewhere than the map says.
    pub fn override_count(&self) -> usize {
        Slot::all().filter(|slot| self.owner(*slot) != self.map.owner(*slot)).count()
    }
}

pub(super) fn shard_ids(map: &ShardMap) -> Arc<[Arc<str>]> {
    map.shards.iter().map(|shard| Arc::from(shard.id.as_str())).collect()
}

impl fmt::Debug for RoutingTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoutingTable")
            .field("version", &self.map.version)
            .field("generation", &self.generation)
            .field("overrides", &self.override_count())
            .finish_non_exhaustive()
    }
}
