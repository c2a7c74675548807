//! A node over a database in memory, for simulations of the cluster (`crates/simulation`).
//!
//! Its RPC service, gate, lane, fold, expiry and moves of slots are those that serve. It does not compare its database with other
//! shards and their clocks.

use std::{sync::Arc, time::Duration};

use ledger::{Account, AccountId, Booking, Position};
use shard_map::{ClusterId, ShardMap, Slot, SlotRange};
use telemetry::Tasks;
use uuid::Uuid;
use wire::{shard_node_server::ShardNodeServer, slot_moves_server::SlotMovesServer};

use crate::{
    clock::NodeClock,
    config::LaneConfig,
    expiry, fold,
    gate::Gate,
    lane::{Lane, LaneHandle},
    moves::{
        Moves, driver,
        phase::{Phase, Role},
        progress::{self, Progress, Wishes},
    },
    role::NodeRole,
    rpc::Service,
    store::{
        memory::{
            self, Memory,
            moves::{MemoryMoves, MoveFaults},
        },
        moves::MoveRow,
        ownership::Ownership,
        read::Readable,
    },
    tail::Tail,
};

pub use crate::store::memory::{
    Fault, FoldFault,
    moves::{MoveFault, forget_pages},
};

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
    /// The node takes part in moves of slots. Its database must have a map ([`ShardDatabase::remember_map`]).
    pub moves: bool,
}

/// A move in which a shard takes part.
#[derive(Debug, Clone)]
pub struct MoveState {
    pub id: Uuid,
    /// The shard at the other end.
    pub peer: String,
    pub slots: Vec<SlotRange>,
    pub is_target: bool,
    pub phase: &'static str,
    /// The move may still change at this shard.
    pub is_open: bool,
    /// The source has accepted it; at the source, always.
    pub is_accepted: bool,
    /// The slots have not changed hands yet.
    pub is_before_cut_over: bool,
    /// An operator wants the source to clean up, and it has not done so yet.
    pub is_finishing: bool,
    /// The map that names the new owner is known to every shard that answered.
    pub is_published: bool,
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

    /// The newest map that the shard was given.
    pub fn remember_map(&self, map: &ShardMap) {
        let version = i64::try_from(map.version).unwrap_or(i64::MAX);
        self.0.remember_map(&map.to_toml(), version);
    }

    /// The moves in which the shard takes part or took part, oldest first.
    pub fn moves(&self) -> Vec<MoveState> {
        self.0.move_rows().into_iter().map(MoveState::of).collect()
    }

    /// Whether the shard owns the slot of a client's account.
    pub fn owns(&self, account: &AccountId) -> bool {
        self.0.owns(account)
    }

    pub fn owns_slot(&self, slot: Slot) -> bool {
        self.0.owns_slot(slot)
    }

    /// How many slots the shard owns.
    pub fn slots_owned(&self) -> usize {
        self.0.slots_owned()
    }

    /// Whether the shard has or had anything of another one.
    pub fn has_moves(&self) -> bool {
        !self.0.move_rows().is_empty()
    }

    /// The journal, in the order in which it was appended.
    pub fn bookings(&self) -> Vec<Booking> {
        self.0.bookings()
    }

    /// Every account as the fold of the journal has it, and the number of sagas under way. After moves, the rows: [`ShardDatabase::check_folded`]
    /// compares them.
    ///
    /// # Panics
    /// If the journal breaks an invariant.
    pub fn fold(&self) -> (Vec<Account>, usize) {
        if self.has_moves() {
            return (self.0.rows(), self.0.sagas_under_way());
        }
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
        if self.has_moves() {
            self.0.compare_books().unwrap_or_else(|difference| panic!("{difference}"));
            return;
        }
        self.0.check_folded();
    }
}

/// A node that serves. Dropping it leaves its tasks running; [`Node::tasks`] is its process.
pub struct Node {
    tasks: Tasks,
    role: NodeRole,
    store: Arc<Memory>,
    handle: LaneHandle,
    tail: Tail,
    service: ShardNodeServer<Service>,
    moves: Option<NodeMoves>,
}

/// A node's part in moves of slots.
struct NodeMoves {
    moves: Moves<MemoryMoves>,
    faults: MoveFaults,
}

impl MoveState {
    fn of(row: MoveRow) -> Self {
        let Progress { published_map, slot_epoch, .. } = progress::read(&row.progress).unwrap_or_default();
        let is_to_finish = progress::read::<Wishes>(&row.wishes).is_ok_and(|wishes| wishes.finish);
        Self {
            id: row.id,
            peer: row.peer,
            slots: row.slots,
            is_target: row.phase.role() == Role::Target,
            phase: row.phase.as_str(),
            is_open: row.phase.is_open(),
            is_accepted: slot_epoch > 0,
            is_before_cut_over: row.phase.is_before_cut_over(),
            is_finishing: is_to_finish && row.phase == Phase::Taken,
            is_published: published_map > 0,
        }
    }
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
        let own_role = role.clone();
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
        let moves = settings.moves.then(|| {
            let store = MemoryMoves::new(database.clone(), settings.pauses.rotate_left(32));
            let faults = store.faults();
            let (gate, role, clock) = (gate.clone(), role.clone(), Arc::clone(&clock));
            let moves = Moves::new(store, gate, role, clock, handle.clone(), from.clone(), None);
            tasks.spawn_essential("moves", driver::run(moves.clone(), tasks.clone(), tasks.token().clone()));
            NodeMoves { moves, faults }
        });
        let expiry = expiry::run(from, gate, role, handle.clone(), clock, tasks.token().clone());
        tasks.spawn_essential("expiry", expiry);
        Ok(Self { tasks, role: own_role, store, handle, tail, service: service.into_server(), moves })
    }

    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The node's RPC service. Each call takes a copy.
    pub fn service(&self) -> ShardNodeServer<Service> {
        self.service.clone()
    }

    /// The node's service of moves, if it has one.
    pub fn moves(&self) -> Option<SlotMovesServer<impl wire::slot_moves_server::SlotMoves + use<>>> {
        self.moves.as_ref().map(|it| it.moves.clone().into_server())
    }

    /// Begins a move to this node's shard. `reverses` is the move that it reverses.
    ///
    /// # Errors
    /// What speaks against the move, or that the source did not answer.
    pub async fn start_move(
        &self,
        id: Uuid,
        source: &str,
        slots: Vec<SlotRange>,
        reverses: Option<Uuid>,
    ) -> Result<(), String> {
        let Some(NodeMoves { moves, .. }) = &self.moves else { return Err("the node moves no slots".to_owned()) };
        self.role.use_now();
        let started = moves.start(id, source, slots, reverses, Wishes::default()).await;
        started.map_err(|error| error.to_string())
    }

    /// Changes what is wanted of a move to this node's shard.
    ///
    /// # Errors
    /// If the wish cannot be met any more, or the database does not answer.
    pub async fn control_move(&self, id: Uuid, wishes: &wire::MoveWishes) -> Result<(), String> {
        let Some(NodeMoves { moves, .. }) = &self.moves else { return Err("the node moves no slots".to_owned()) };
        self.role.use_now();
        moves.control(id, wishes).await.map_err(|error| error.to_string())
    }

    /// Orders a fault for one of the next transactions of moves.
    pub fn order_move_fault(&self, fault: MoveFault) {
        if let Some(NodeMoves { faults, .. }) = &self.moves {
            faults.order(fault);
        }
    }

    /// Whether the ordered fault of moves has occurred.
    pub fn has_met_move_fault(&self) -> bool {
        self.moves.as_ref().is_none_or(|it| it.faults.is_quiet())
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
        if let Some(NodeMoves { faults, .. }) = &self.moves {
            faults.calm();
        }
        self.store.calm();
    }

    /// Makes the fold run soon, once the lane has caught up with other nodes.
    pub fn fold_soon(&self) {
        self.handle.look_again();
        self.tail.want_fold();
    }
}
