//! The shards of the current map, one consistent view of routes and shards for each request, and values grouped by shard.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use ledger::AccountId;
use shard_map::{ShardIndex, ShardMap, Slot, SlotRange};
use telemetry::tasks::Tasks;

use super::{Shard, witness::Witness};
use crate::{
    config::CoreConfig,
    core::{
        call::CallError,
        metrics,
        routing::{Routing, RoutingTable},
    },
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
        let empty = Directory { map_version: 0, shards: Vec::new() };
        let shards = Self {
            routing,
            config,
            witness,
            tasks,
            current: ArcSwap::from_pointee(empty),
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

/// The gauges of the shards of the map. They are set from the directory when `/metrics` is read, because a breaker changes with time and
/// through probes, and because a shard whose nodes have changed has the series of its predecessor.
#[derive(Debug, Default)]
pub struct ShardGauges {
    /// The shards that have series.
    known: Mutex<BTreeSet<Arc<str>>>,
}

impl ShardGauges {
    pub fn set(&self, view: &View) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in view.shards() {
            metrics::shard_gauges(shard.id(), shard.queued_operations(), shard.breaker_state() == "closed");
            known.insert(Arc::clone(shard.id()));
        }
        // A series cannot be removed. The gauges of a shard that has left the map say that nothing is wrong with it.
        for gone in known.iter().filter(|id| view.shards().all(|shard| shard.id() != *id)) {
            metrics::shard_gauges(gone, 0, true);
        }
    }
}

/// Values by shard, in order of first use: a small map that one pass over a batch fills.
#[derive(Debug)]
pub struct ByShard<T> {
    /// Shard index to place in `groups`, plus one; 0: none. Grown on demand.
    places: Vec<u16>,
    groups: Vec<(ShardIndex, T)>,
}

impl<T> Default for ByShard<T> {
    fn default() -> Self {
        Self { places: Vec::new(), groups: Vec::new() }
    }
}

impl<T: Default> ByShard<T> {
    pub fn entry(&mut self, shard: ShardIndex) -> &mut T {
        let index = usize::from(shard.0);
        if index >= self.places.len() {
            self.places.resize(index + 1, 0);
        }
        let place = match self.places[index] {
            0 => {
                self.groups.push((shard, T::default()));
                // No more groups than shards, and their indices fit.
                self.places[index] = u16::try_from(self.groups.len()).unwrap_or(u16::MAX);
                self.groups.len() - 1
            }
            place => usize::from(place) - 1,
        };
        &mut self.groups[place].1
    }
}

impl<T> IntoIterator for ByShard<T> {
    type Item = (ShardIndex, T);
    type IntoIter = std::vec::IntoIter<(ShardIndex, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.groups.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use shard_map::ClusterId;
    use tokio::time::Instant;

    use super::*;
    use crate::core::shard::breaker::Signal;

    #[test]
    fn groups_come_in_order_of_first_use() {
        let mut groups: ByShard<Vec<u32>> = ByShard::default();
        for (shard, item) in [(7, 0), (2, 1), (7, 2), (900, 3), (2, 4)] {
            groups.entry(ShardIndex(shard)).push(item);
        }
        let groups: Vec<_> = groups.into_iter().map(|(shard, items)| (shard.0, items)).collect();
        assert_eq!(groups, [(7, vec![0, 2]), (2, vec![1, 4]), (900, vec![3])]);
    }

    /// The router's side of a cluster of one shard.
    fn shards(id: &str) -> Shards {
        let nodes = vec!["http://127.0.0.1:1".to_owned()];
        let shard = shard_map::Shard { id: id.to_owned(), number: 0, nodes, slots: vec![SlotRange::ALL] };
        let map = ShardMap::new(ClusterId::generate(), 1, vec![shard]).unwrap();
        Shards::start(Routing::fixed(map), CoreConfig::default(), Tasks::new())
    }

    fn record(shards: &Shards, signal: Signal) {
        for shard in shards.view().shards() {
            shard.breaker().record(signal, Instant::now());
        }
    }

    #[tokio::test]
    async fn the_gauge_of_a_breaker_is_that_of_the_shard_in_the_map() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let gauges = ShardGauges::default();
        let says = |shards: &Shards, series: &str| {
            ::metrics::with_local_recorder(&recorder, || gauges.set(&shards.view()));
            let text = recorder.handle().render();
            assert!(text.lines().any(|line| line == series), "no {series} in {text}");
        };
        let (before, after) = (shards("s0"), shards("s0"));
        for _ in 0..CoreConfig::default().breaker_failures {
            record(&after, Signal::ConnectionFailed);
        }
        // A call of the shard that the map had before is answered late.
        record(&before, Signal::Answered);
        says(&after, r#"shardledger_breaker_open_state{shard="s0"} 1"#);
        let probe = after.view().shards().next().unwrap().breaker().admit(Instant::now() + Duration::from_secs(5));
        assert!(probe);
        says(&after, r#"shardledger_breaker_open_state{shard="s0"} 1"#);
        says(&shards("s1"), r#"shardledger_breaker_open_state{shard="s0"} 0"#);
        record(&after, Signal::Answered);
        says(&after, r#"shardledger_breaker_open_state{shard="s0"} 0"#);
    }
}
