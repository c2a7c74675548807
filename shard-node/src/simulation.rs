//! A node over a database in memory, for simulations of the cluster (`crates/simulation`).
//!
//! Its RPC service, gate, lane, fold and expiry are those that serve. It does not compare its database with other shards and
//! their clocks, and takes no part in moves of slots.

use std::{sync::Arc, time::Duration};

use ledger::{Account, Booking, Position};
use shard_map::{ClusterId, SlotRange};
use telemetry::Tasks;
use wire::shard_node_server::ShardNodeServer;

use crate::{
    clock::NodeClock,
    config::LaneConfig,
    expiry, fold,
    gate::Gate,
    lane::{Lane, LaneHandle},
    role::NodeRole,
    rpc::Service,
    store::{
        memory::{self, Memory},
        ownership::Ownership,
        read::Readable,
    },
    tail::Tail,
};

pub use crate::store::memory::{Fault, FoldFault};

/// A shard as its nodes are configured for it.
#[derive(Debug, Clone)]
pub struct ShardName {
    pub cluster: ClusterId,
    pub id: String,
    pub number: u16,
}

/// How a node runs.
#[derive(Debug, Clone, Copy)]
pub struct NodeSettings {
    pub fold_interval: Duration,
    /// Memory for accounts that may be evicted, in bytes.
    pub cache_bytes: usize,
    /// The seed of the pauses before and after each statement; 0: none.
    pub pauses: u64,
}

/// The database of a shard. Clones share it.
#[derive(Debug, Clone)]
pub struct ShardDatabase(memory::Database);

impl ShardDatabase {
    /// An empty shard that owns these slots.
    pub fn new(number: u16, slots: &[SlotRange]) -> Self {
        Self(memory::Database::of_shard(number, Ownership::of_ranges(slots)))
    }

    /// A database of its own with the same content.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(self.0.copy())
    }

    /// Breaks every session. The server is down until [`ShardDatabase::restart`].
    pub fn crash(&self) {
        self.0.crash();
    }

    pub fn restart(&self) {
        self.0.restart();
    }

    /// Restarts the server, and again after each later crash.
    pub fn stay_up(&self) {
        self.0.stay_up();
    }

    pub fn set_read_only(&self, is_read_only: bool) {
        self.0.set_read_only(is_read_only);
    }

    /// The version of slot ownership changes, and every slot stays where it is.
    pub fn change_ownership(&self) {
        self.0.change_ownership();
    }

    /// The journal, in the order in which it was appended.
    pub fn bookings(&self) -> Vec<Booking> {
        self.0.bookings()
    }

    /// Every account as the fold of the journal has it, and the number of sagas under way.
    ///
    /// # Panics
    /// If the journal breaks an invariant.
    pub fn fold(&self) -> (Vec<Account>, usize) {
        let folded = self.0.fold();
        (folded.accounts.into_values().collect(), folded.sagas.len())
    }

    /// Sagas whose settlement is not in the journal.
    pub fn sagas_under_way(&self) -> usize {
        self.0.sagas_under_way()
    }

    /// Compares every projection with the fold of the journal.
    ///
    /// # Panics
    /// If one differs.
    pub fn check(&self) {
        self.0.check();
    }

    /// Whether the projections reach the end of the journal.
    pub fn is_folded(&self) -> bool {
        self.0.folded_position() == Position(self.0.state().next_position - 1)
    }

    /// As [`ShardDatabase::check`], and the rows are the newest states.
    ///
    /// # Panics
    /// If one differs.
    pub fn check_folded(&self) {
        self.0.check_folded();
    }
}

/// A node that serves. Dropping it leaves its tasks running; [`Node::tasks`] is its process.
pub struct Node {
    tasks: Tasks,
    store: Arc<Memory>,
    handle: LaneHandle,
    tail: Tail,
    service: ShardNodeServer<Service>,
}

impl Node {
    /// Starts a node in front of a database. The lane connects by itself.
    ///
    /// # Errors
    /// When the lane's timer cannot be made.
    pub fn start(shard: &ShardName, database: &ShardDatabase, settings: &NodeSettings) -> std::io::Result<Self> {
        let ShardDatabase(database) = database;
        let config = LaneConfig { cache_bytes: settings.cache_bytes, ..LaneConfig::default() };
        let gate = Gate::open_to(shard.cluster, &shard.id, shard.number, database.state());
        let clock = Arc::new(NodeClock::new(Duration::from_secs(1)));
        let store = Arc::new(Memory::new(database.clone(), gate.clone()));
        store.pause_by(settings.pauses);
        // Without a monitor, a node acts once a router uses it.
        let (tail, role, tasks) = (Tail::new(config.tail_bounds()), NodeRole::new(), Tasks::new());
        let (lane, handle) = Lane::new(
            gate.clone(),
            Arc::clone(&clock),
            Arc::clone(&store),
            tail.clone(),
            role.clone(),
            tasks.clone(),
            &config,
        )?;
        let from = Readable::Memory(database.clone());
        let service = Service::new(
            gate.clone(),
            role.clone(),
            Arc::clone(&clock),
            handle.clone(),
            from.clone(),
            tail.clone(),
            tasks.clone(),
        );
        gate.set_reads(Ok(()));
        tasks.spawn_essential("lane", lane.run(tasks.token().clone()));
        let fold =
            fold::run(Arc::clone(&store), tail.clone(), role.clone(), settings.fold_interval, tasks.token().clone());
        tasks.spawn_essential("fold", fold);
        let expiry = expiry::run(from, gate, role, handle.clone(), clock, tasks.token().clone());
        tasks.spawn_essential("expiry", expiry);
        Ok(Self { tasks, store, handle, tail, service: service.into_server() })
    }

    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The node's RPC service. Each call takes a copy.
    pub fn service(&self) -> ShardNodeServer<Service> {
        self.service.clone()
    }

    /// Orders a fault for each of the next commits.
    pub fn order(&self, faults: impl IntoIterator<Item = Fault>) {
        self.store.order(faults);
    }

    pub fn order_fold_fault(&self, fault: FoldFault) {
        self.store.order_fold_fault(fault);
    }

    /// Lets one stalled commit go on.
    pub fn release(&self) {
        self.store.release();
    }

    /// Forgets the faults that have not occurred.
    pub fn calm(&self) {
        self.store.calm();
    }

    /// Makes the fold run soon, once the lane has caught up with other nodes.
    pub fn fold_soon(&self) {
        self.handle.look_again();
        self.tail.want_fold();
    }
}
