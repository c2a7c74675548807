//! Which shard a request goes to.
//!
//! The shard map of the file is a hint; the truth about a slot is in the database of the shard that owns it. This module
//! keeps both: the [map](shard_map::ShardMap), and on top of it the [facts] that shards stated about single slots, each
//! with its epoch. Together they make the [`RoutingTable`], an immutable snapshot of which a request uses one from start
//! to end. A table that is wrong costs a round trip, never money: the fence of the shard refuses, the router learns from
//! the refusal and sends the operation again.
//!
//! - [`table`]: the snapshot, and the look-up itself.
//! - [`facts`]: what shards said, and which of two statements counts.
//! - [`reload`]: from a new file, or from a newer map of a node, to a new snapshot; a bad one is refused and the old one serves on.
//! - [`watch`]: when to look at the file: on changes of its folder, every few seconds, on SIGHUP.

mod facts;
mod metrics;
mod ownership;
mod reload;
mod status;
mod table;
mod watch;

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
    /// Whoever changes the table holds this; readers never do.
    writer: Mutex<Writer>,
    generation: changes::Sender<u64>,
}

/// What a new table is made from.
struct Writer {
    map: Arc<ShardMap>,
    /// The ids of the map's shards, for every table made from it.
    ids: Arc<[Arc<str>]>,
    facts: Facts,
    /// Shards that claimed a slot of another shard at the same epoch when all were last asked.
    disputed: Vec<Arc<str>>,
    /// Absent where the map came from no file, in tests.
    file: Option<PathBuf>,
    /// The text of the file when it was last looked at, good or bad; `None` when it could not be read.
    seen: Option<String>,
    source: String,
    loaded_at_us: i64,
    refusal: Option<MapRefusal>,
}

impl Routing {
    /// Reads the map for the first time. A router does not start without a good one.
    pub fn open(file: impl Into<PathBuf>) -> Result<Self, ReloadError> {
        let file = file.into();
        let text = reload::read(&file)?;
        let source = reload::name(&file);
        let map = ShardMap::parse(&text).map_err(|error| ReloadError::Map { source_name: source.clone(), error })?;
        tracing::info!(source, version = map.version, shards = map.shards.len(), "shard map loaded");
        Ok(Self::assemble(Writer::new(map, source, Some(file), Some(text))))
    }

    /// Routes by a map that came from no file, and so never changes by itself.
    #[cfg(test)]
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

    /// The snapshot to use for one request, from start to end.
    pub fn load(&self) -> Arc<RoutingTable> {
        self.shared.table.load_full()
    }

    /// Shards of which two claim the same slot. Sums over them would count accounts twice or omit them.
    pub fn disputed(&self) -> Vec<Arc<str>> {
        self.writer().disputed.clone()
    }

    /// Is told the [generation](RoutingTable::generation) of each new table.
    pub fn subscribe(&self) -> changes::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// A panic in between leaves the writer as it was or with a change that the next table shows: nothing half-done.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what `writer` holds the table that requests see, unless it is that already. Holding the writer keeps
    /// generations in order.
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
