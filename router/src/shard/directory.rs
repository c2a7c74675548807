//! The shards of the current map, and one consistent view of routes and shards for each request.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use ledger::AccountId;
use shard_map::{ShardIndex, ShardMap, Slot, SlotRange};
use telemetry::tasks::Tasks;

use super::{Shard, witness::Witness};
use crate::{
    routing::{Routing, RoutingTable},
    service::{CallError, CoreConfig},
};

/// Every shard of the map. Shards that remain after a change of the map keep their queues and connections.
pub struct Shards {
    routing: Routing,
    config: CoreConfig,
    witness: Arc<Witness>,
    tasks: Tasks,
    current: ArcSwap<Directory>,
    /// Locked while the directory follows a new map.
    following: Mutex<()>,
}

/// The shards of one map version, by [`ShardIndex`].
struct Directory {
    map_version: u64,
    shards: Vec<Arc<Shard>>,
}

/// Routes and shards of the same map.
pub struct View {
    table: Arc<RoutingTable>,
    directory: Arc<Directory>,
}

impl Shards {
    pub fn start(routing: Routing, config: CoreConfig, tasks: Tasks) -> Self {
        let witness = Arc::new(Witness::new(routing.clone(), &config.name, config.assets.clone()));
        let nobody = Directory { map_version: 0, shards: Vec::new() };
        let shards = Self {
            routing,
            config,
            witness,
            tasks,
            current: ArcSwap::from_pointee(nobody),
            following: Mutex::new(()),
        };
        shards.view();
        shards
    }

    pub fn view(&self) -> View {
        let table = self.routing.load();
        let directory = self.current.load_full();
        // Overrides learned from shards change routes, never the set of shards, so comparing map versions suffices.
        if directory.map_version == table.map().version {
            return View { table, directory };
        }
        self.follow()
    }

    /// Updates the directory to the newest map.
    fn follow(&self) -> View {
        let _turn = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.routing.load();
        let before = self.current.load_full();
        if before.map_version == table.map().version {
            return View { table, directory: before };
        }
        let directory = Arc::new(self.directory_of(table.map(), &before));
        self.current.store(Arc::clone(&directory));
        for shard in &before.shards {
            if !directory.shards.iter().any(|kept| Arc::ptr_eq(kept, shard)) {
                shard.retire();
            }
        }
        View { table, directory }
    }

    fn directory_of(&self, map: &ShardMap, before: &Directory) -> Directory {
        let shard = |wanted: &shard_map::Shard| {
            let same = |shard: &&Arc<Shard>| {
                **shard.id() == *wanted.id && shard.number() == wanted.number && shard.nodes() == wanted.nodes
            };
            match before.shards.iter().find(same) {
                Some(shard) => Arc::clone(shard),
                None => Shard::start(wanted, &self.routing, &self.witness, &self.config, &self.tasks),
            }
        };
        Directory { map_version: map.version, shards: map.shards.iter().map(shard).collect() }
    }
}

impl View {
    pub fn route(&self, account: &AccountId) -> ShardIndex {
        self.table.route(account)
    }

    /// The shard to which requests for the slot go.
    pub fn owner(&self, slot: Slot) -> &Arc<Shard> {
        self.shard(self.table.owner(slot))
    }

    /// # Panics
    /// When the index is of another view and beyond the shards of this one.
    pub fn shard(&self, index: ShardIndex) -> &Arc<Shard> {
        &self.directory.shards[usize::from(index.0)]
    }

    /// Every shard that has slots, with the slots whose requests go to it.
    pub fn shards_with_slots(&self) -> Vec<(Arc<Shard>, Vec<SlotRange>)> {
        let slots = self.table.slots_by_shard();
        slots.into_iter().map(|(index, slots)| (Arc::clone(self.shard(index)), slots)).collect()
    }

    /// Asks every shard at once; returns each answer with its shard.
    pub async fn ask_all<A, Asked>(&self, ask: impl Fn(Arc<Shard>) -> Asked) -> Vec<(Arc<str>, Result<A, CallError>)>
    where
        Asked: Future<Output = Result<A, CallError>>,
    {
        let asked = self.shards().map(|shard| {
            let answer = ask(Arc::clone(shard));
            async { (Arc::clone(shard.id()), answer.await) }
        });
        join_all(asked).await
    }

    pub fn shards(&self) -> impl ExactSizeIterator<Item = &Arc<Shard>> {
        self.directory.shards.iter()
    }
}
