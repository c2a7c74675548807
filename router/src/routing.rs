//! Which shard a request goes to.
//!
//! The shard map in the file is a hint; the database of the owning shard is authoritative for a slot. This module
//! holds the [map](shard_map::ShardMap) and the [facts] that shards stated about single slots, each with its epoch.
//! Together they make the [`RoutingTable`], an immutable snapshot; a request uses one snapshot from start to end. A
//! wrong table costs a round trip, never money: the shard's fence refuses the operation, and the router learns from
//! the refusal and resends it.
//!
//! - [`table`]: the snapshot and the look-up.
//! - [`facts`]: what shards said, and which of two statements counts.
//! - [`reload`]: makes a new snapshot from a new file or from a node's newer map. A bad map is refused and the old
//!   one stays in use.
//!
//! The crate [`file_watch`] says when to read the file: on changes of its folder, every few seconds, and on SIGHUP.

mod facts;
mod metrics;
mod ownership;
mod reload;
mod status;
mod table;

#[cfg(test)]
pub mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use shard_map::ShardMap;
use tokio::sync::watch as changes;

pub use reload::{MAX_MAP_BYTES, Reload, ReloadError};
pub use status::{MapRefusal, MapStatus, Override};
pub use table::RoutingTable;

use facts::Facts;

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
    /// Reads the map for the first time. A router does not start without a valid map.
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
        metrics::describe();
        let table = writer.table(1);
        metrics::loaded(writer.map.version);
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
        let ids = table::shard_ids(&map);
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
