//! Which shard a request goes to.
//!
//! The shard map in the file is a hint; the database of the owning shard is authoritative for a slot. [`Routing`] holds the
//! [map](shard_map::ShardMap) and the [facts] that shards stated about single slots, each with its epoch. Together they make the
//! [`RoutingTable`], an immutable snapshot; a request uses one snapshot from start to end. A wrong table costs a round trip, never money:
//! the shard's fence refuses the operation, and the router learns from the refusal and resends it.
//!
//! - [`facts`]: what shards said, and which of two statements counts.
//! - [`ownership`]: learns from refusals, and from the answers of shards about the slots that they own.
//! - [`reload`]: makes a new snapshot from a new file or from a node's newer map. A bad map is refused and the old
//!   one stays in use.
//!
//! The crate [`file_watch`] says when to read the file: on changes of its folder, every few seconds, and on SIGHUP.

mod facts;
mod ownership;
mod reload;

#[cfg(test)]
pub mod tests;

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use shard_map::{ClusterId, Shard, ShardIndex, ShardMap, Slot, SlotRange, merge_slots, slot_of};
use tokio::sync::watch as changes;

use self::facts::Facts;
use super::metrics;

pub use self::reload::{MAX_MAP_BYTES, Reload, ReloadError};

/// A handle on the routing of this process; clones share it.
#[derive(Clone)]
pub struct Routing {
    shared: Arc<Shared>,
}

struct Shared {
    table: ArcSwap<RoutingTable>,
    /// Locked by every change of the table; readers do not need it.
    writer: Mutex<Writer>,
    generation: changes::Sender<u64>,
}

/// The parts of which a new table is made.
struct Writer {
    map: Arc<ShardMap>,
    /// The ids of the map's shards, shared by every table made from the map.
    ids: Arc<[Arc<str>]>,
    facts: Facts,
    /// Shards that claimed a slot of another shard at the same epoch when all were last asked.
    disputed: Vec<Arc<str>>,
    /// `None` for a map that did not come from a file, in tests.
    file: Option<PathBuf>,
    /// The text of the file when it was last read, valid or not; `None` if it could not be read.
    seen: Option<String>,
    source: String,
    loaded_at_us: i64,
    refusal: Option<MapRefusal>,
}

impl Routing {
    /// Reads the map for the first time.
    ///
    /// # Errors
    /// A router does not start without a valid map.
    pub fn open(file: impl Into<PathBuf>) -> Result<Self, ReloadError> {
        let file = file.into();
        let text = reload::read(&file)?;
        let source = reload::name(&file);
        let map = ShardMap::parse(&text).map_err(|error| ReloadError::Map { source_name: source.clone(), error })?;
        tracing::info!(source, version = map.version, shards = map.shards.len(), "shard map loaded");
        Ok(Self::assemble(Writer::new(map, source, Some(file), Some(text))))
    }

    /// Routes by a map that did not come from a file and therefore never changes.
    #[cfg(any(test, feature = "simulation"))]
    pub fn fixed(map: ShardMap) -> Self {
        Self::assemble(Writer::new(map, "test".to_owned(), None, None))
    }

    fn assemble(writer: Writer) -> Self {
        let table = writer.table(1);
        metrics::map_loaded(writer.map.version);
        metrics::overrides(table.override_count());
        let shared = Shared {
            table: ArcSwap::from_pointee(table),
            writer: Mutex::new(writer),
            generation: changes::Sender::new(1),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The snapshot for one request, used from start to end.
    pub fn load(&self) -> Arc<RoutingTable> {
        self.shared.table.load_full()
    }

    /// Shards of which two claim the same slot. Sums over them would count accounts twice or omit them.
    pub fn disputed(&self) -> Vec<Arc<str>> {
        self.writer().disputed.clone()
    }

    /// Receives the [generation](RoutingTable::generation) of each new table.
    pub fn subscribe(&self) -> changes::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// The state of the map for operators.
    pub fn status(&self) -> MapStatus {
        let writer = self.writer();
        let (map, owners) = (&writer.map, writer.facts.owners(&writer.map));
        // The override of a slot; neighbouring slots with equal overrides form one run.
        let routed_elsewhere = |slot: Slot| {
            let (in_map, owner) = (map.owner(slot), owners[usize::from(slot.index())]);
            (in_map != owner).then(|| (in_map, owner, writer.facts.epoch(slot).unwrap_or_default()))
        };
        let slots: Vec<Slot> = Slot::all().collect();
        let overrides = slots.chunk_by(|a, b| routed_elsewhere(*a) == routed_elsewhere(*b)).flat_map(|run| {
            let found = run.first().copied().and_then(routed_elsewhere);
            found.into_iter().flat_map(move |(in_map, owner, epoch)| {
                let (in_map, owner) = (map.shard(in_map).id.clone(), map.shard(owner).id.clone());
                merge_slots(run.iter().copied()).into_iter().map(move |slots| Override {
                    slots,
                    in_map: in_map.clone(),
                    owner: owner.clone(),
                    epoch,
                })
            })
        });
        MapStatus {
            cluster: map.cluster,
            version: map.version,
            source: writer.source.clone(),
            loaded_at_us: writer.loaded_at_us,
            refusal: writer.refusal.clone(),
            overrides: overrides.collect(),
        }
    }

    /// A panic while the lock is held leaves the writer unchanged, or with a complete change that the next table
    /// contains.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the state of `writer` as the table that requests see, unless it is published already. Holding the
    /// writer keeps generations in order.
    fn publish(&self, writer: &MutexGuard<'_, Writer>) {
        let current = self.load();
        let table = writer.table(current.generation() + 1);
        if table.routes_like(&current) {
            return;
        }
        let overrides = table.override_count();
        metrics::overrides(overrides);
        if overrides != current.override_count() {
            tracing::info!(
                slots = overrides,
                "slots that go elsewhere than the shard map says, by the shards' own word"
            );
        }
        let generation = table.generation();
        self.shared.table.store(Arc::new(table));
        self.shared.generation.send_replace(generation);
    }
}

impl Writer {
    fn new(map: ShardMap, source: String, file: Option<PathBuf>, seen: Option<String>) -> Self {
        let loaded_at_us = telemetry::clock::now_us();
        let ids = shard_ids(&map);
        Self {
            map: Arc::new(map),
            ids,
            facts: Facts::none(),
            disputed: Vec::new(),
            file,
            seen,
            source,
            loaded_at_us,
            refusal: None,
        }
    }

    fn table(&self, generation: u64) -> RoutingTable {
        RoutingTable::new(Arc::clone(&self.map), Arc::clone(&self.ids), self.facts.owners(&self.map), generation)
    }
}

/// An immutable snapshot of the routing. Its [`ShardIndex`]es mean nothing in another snapshot: keep shard ids where something outlives
/// the request.
pub struct RoutingTable {
    map: Arc<ShardMap>,
    /// By slot: the owner by the map, or by the statement of a shard where that counts more.
    owners: Box<[ShardIndex]>,
    ids: Arc<[Arc<str>]>,
    generation: u64,
}

impl RoutingTable {
    /// `owners` has one entry for each slot, all of them shards of `map`.
    fn new(map: Arc<ShardMap>, ids: Arc<[Arc<str>]>, owners: Box<[ShardIndex]>, generation: u64) -> Self {
        assert_eq!(owners.len(), Slot::all().len(), "INV-7: every slot has an owner");
        Self { map, owners, ids, generation }
    }

    /// Whether no request could tell this table from `other`.
    fn routes_like(&self, other: &Self) -> bool {
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

    /// The slots of every shard that has any, in one pass.
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

fn shard_ids(map: &ShardMap) -> Arc<[Arc<str>]> {
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

/// The map in use and its problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapStatus {
    pub cluster: ClusterId,
    pub version: u64,
    /// The file or the node that the map came from.
    pub source: String,
    pub loaded_at_us: i64,
    /// The refusal of the newest offered map; `None` after a map was taken, or after the file has the content in use
    /// again.
    pub refusal: Option<MapRefusal>,
    /// Slots whose requests go to another shard than the map says.
    pub overrides: Vec<Override>,
}

/// A map that was offered and refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRefusal {
    pub at_us: i64,
    pub source: String,
    pub line: Option<usize>,
    pub reason: String,
}

/// Slots that the map gives to one shard, while the shards say that another owns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub slots: SlotRange,
    pub in_map: String,
    pub owner: String,
    pub epoch: i64,
}
