//! Slots move between the shards while clients order and faults occur.
//!
//! Each [`Mover`] has one move: it starts it at a random moment, may give it up, and afterwards may finish it or bring the slots back. What it orders may be
//! refused, and its node may die meanwhile: the driver of a node goes on with what is in the database. At the end every slot must have one
//! owner, and no move may be under way.

use std::time::Duration;

use ledger::AccountId;
use shard_map::{SLOTS, Slot, SlotRange, merge_slots, slot_of};
use shard_node::simulation::{MoveFault, MoveState, Node, ShardDatabase};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::{
    cluster::{Accounts, Cluster, NODES},
    network::{Address, Caller, LinkFault, Way},
    random::Random,
    trace,
};

/// How often a mover looks what has become of its move.
const LOOK: Duration = Duration::from_millis(150);
/// How long after everything has healed a source may take to accept a move.
const PATIENCE: Duration = Duration::from_secs(10);

/// Orders one move, and what follows it.
pub struct Mover {
    cluster: Cluster,
    random: Random,
    /// From some time after this moment, it gives up what no source has accepted.
    heals_at: Instant,
    /// It starts nothing more from then on.
    until: Instant,
}

/// What has become of a mover's orders.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    pub started: usize,
    /// The slots changed hands.
    pub taken: usize,
    pub given_up: usize,
    pub reversed: usize,
    pub finished: usize,
}

impl Moved {
    pub fn add(&mut self, Self { started, taken, given_up, reversed, finished }: Self) {
        self.started += started;
        self.taken += taken;
        self.given_up += given_up;
        self.reversed += reversed;
        self.finished += finished;
    }
}

/// A move from one shard to another.
#[derive(Debug, Clone)]
struct Order {
    id: Uuid,
    source: usize,
    target: usize,
    slots: Vec<SlotRange>,
    reverses: Option<Uuid>,
}

impl Mover {
    pub fn new(cluster: Cluster, random: Random, heals_at: Instant, until: Instant) -> Self {
        Self { cluster, random, heals_at, until }
    }

    /// Begins within this time.
    pub async fn run(mut self, within: Duration) -> Moved {
        let mut moved = Moved::default();
        sleep(self.up_to(within)).await;
        let Some(order) = self.draw() else { return moved };
        if !self.start(&order).await {
            return moved;
        }
        moved.started += 1;
        if self.random.percent(20) {
            sleep(self.up_to(Duration::from_millis(400))).await;
            self.control(&order, wire::MoveWishes { abort: Some(true), ..Default::default() }).await;
        }
        if !self.is_taken(&order).await {
            moved.given_up += 1;
            return moved;
        }
        moved.taken += 1;
        match self.random.below(10) {
            0..=3 => {
                let finish = wire::MoveWishes { finish: Some(true), ..Default::default() };
                moved.finished += usize::from(self.control(&order, finish).await);
            }
            4..=6 => {
                let id = self.id();
                let (source, target, reverses) = (order.target, order.source, Some(order.id));
                let back = Order { id, source, target, reverses, ..order };
                if self.start(&back).await {
                    moved.started += 1;
                    let is_back = self.is_taken(&back).await;
                    moved.reversed += usize::from(is_back);
                    moved.given_up += usize::from(!is_back);
                }
            }
            // The move can still be reversed or finished when the run ends.
            _ => {}
        }
        moved
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        Duration::from_millis(self.random.below(u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1)))
    }

    fn id(&mut self) -> Uuid {
        Uuid::from_u128((u128::from(self.random.number()) << 64) | u128::from(self.random.number()))
    }

    /// Some of the accounts of a shard, with or without slots beside theirs.
    fn draw(&mut self) -> Option<Order> {
        let shards = self.cluster.shard_count();
        let source = self.random.index(shards);
        let target = (source + 1 + self.random.index(shards - 1)) % shards;
        let database = self.cluster.database(source).clone();
        let mut here: Vec<AccountId> =
            self.cluster.accounts.iter().flat_map(Accounts::all).filter(|id| database.owns(id)).collect();
        let mut slots: Vec<Slot> = Vec::new();
        for _ in 0..=self.random.index(3) {
            if here.is_empty() {
                break;
            }
            let account = here.swap_remove(self.random.index(here.len()));
            let slot = slot_of(account.as_str());
            let neighbour = Slot::new(slot.index() + 1).filter(|slot| database.owns_slot(*slot));
            slots.push(slot);
            slots.extend(neighbour.filter(|_| self.random.percent(50)));
        }
        slots.sort_unstable();
        slots.dedup();
        let id = self.id();
        (!slots.is_empty()).then(|| Order { id, source, target, slots: merge_slots(slots), reverses: None })
    }

    /// The node that an operator asks: one that runs.
    fn node(&mut self, shard: usize) -> Option<std::sync::Arc<Node>> {
        let first = if self.random.percent(70) { 0 } else { self.random.index(NODES) };
        let nodes = [first, NODES - 1 - first].map(|node| self.cluster.network.node(Address { shard, node }));
        nodes.into_iter().flatten().next()
    }

    /// Whether the move is recorded at its target.
    async fn start(&mut self, order: &Order) -> bool {
        let Some(node) = self.node(order.target) else { return false };
        let Order { id, source, target, slots, reverses } = order.clone();
        let source = self.cluster.name(source).to_owned();
        trace::note("move", || format!("{id} of {slots:?} from {source} to s{target}, reverses {reverses:?}"));
        let asked = std::sync::Arc::clone(&node);
        // The call dies with its node.
        let call = node
            .tasks()
            .spawn("start of a move", async move { asked.start_move(id, &source, slots, reverses).await });
        let answer = call.await;
        trace::note("move", || format!("{id}: {answer:?}"));
        self.state(order).is_some()
    }

    async fn control(&mut self, order: &Order, wishes: wire::MoveWishes) -> bool {
        let Some(node) = self.node(order.target) else { return false };
        let id = order.id;
        trace::note("move", || format!("{id}: {wishes:?}"));
        let asked = std::sync::Arc::clone(&node);
        let call = node.tasks().spawn("control of a move", async move { asked.control_move(id, &wishes).await });
        let answer = call.await;
        trace::note("move", || format!("{id}: {answer:?}"));
        matches!(answer, Ok(Ok(())))
    }

    fn state(&self, order: &Order) -> Option<MoveState> {
        self.cluster.database(order.target).moves().into_iter().find(|state| state.id == order.id)
    }

    /// Waits until the slots have changed hands, or the move was given up. A move that its source refuses stays in the database if the node of
    /// the target cannot give it up at once; an operator does so.
    async fn is_taken(&mut self, order: &Order) -> bool {
        while Instant::now() < self.until {
            match self.state(order) {
                Some(state) if state.is_before_cut_over && state.is_open => {
                    if !state.is_accepted && Instant::now() > self.heals_at + PATIENCE {
                        self.control(order, wire::MoveWishes { abort: Some(true), ..Default::default() }).await;
                    }
                    sleep(LOOK).await;
                }
                Some(state) => return matches!(state.phase, "taken" | "finished" | "reversed"),
                None => return false,
            }
        }
        false
    }
}

/// Why a cluster is not at rest: a slot without an owner, or a move under way. A move that has changed its slots' shard may stay open.
pub fn unrest(cluster: &Cluster) -> Option<String> {
    let owned: usize = cluster.databases().map(ShardDatabase::slots_owned).sum();
    if owned != usize::from(SLOTS) {
        return Some(format!("{owned} of {SLOTS} slots have an owner"));
    }
    for (shard, database) in cluster.databases().enumerate() {
        for state in database.moves() {
            let is_told = !state.is_target || state.is_published || state.phase != "taken";
            if (state.is_open && state.is_before_cut_over) || state.is_finishing || !is_told {
                return Some(format!("move {} of shard s{shard} is {}", state.id, state.phase));
            }
        }
    }
    None
}

/// Which of the accounts has not one shard.
pub fn homeless<'a>(cluster: &Cluster, mut accounts: impl Iterator<Item = &'a AccountId>) -> Option<String> {
    accounts.find_map(|account| {
        let owners = cluster.databases().filter(|database| database.owns(account)).count();
        (owners != 1).then(|| format!("INV-2: {owners} shards own account {account}"))
    })
}

// === faults ===

/// What goes wrong with moves alone, beside what goes wrong with everything.
pub async fn disturb(cluster: Cluster, mut random: Random, begun: Instant, within: Duration) {
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    for _ in 0..random.index(4) {
        let at = Duration::from_millis(random.below(within_ms));
        sleep_until((begun + at).max(Instant::now())).await;
        let to = Address { shard: random.index(cluster.shard_count()), node: random.index(NODES) };
        match random.below(3) {
            0 => {
                let late = Duration::from_millis(random.between(100, 6_000));
                let faults =
                    [LinkFault::LoseRequest, LinkFault::LoseAnswer, LinkFault::Duplicate, LinkFault::Late(late)];
                let fault = *random.pick(&faults);
                trace::note("fault", || format!("of a move: {fault:?}"));
                cluster.network.order_of_moves([fault]);
            }
            1 => {
                let fault = MoveFault { after: random.index(12), is_carried_out: random.percent(50) };
                trace::note("fault", || format!("of a move at {to:?}: {fault:?}"));
                if let Some(node) = cluster.network.node(to) {
                    node.order_move_fault(fault);
                }
            }
            _ => {
                let way = Way { from: Caller::Node, to };
                trace::note("fault", || format!("{way} is cut"));
                cluster.network.cut(way);
                sleep(Duration::from_millis(random.between(20, 3_000))).await;
                cluster.network.mend(way);
            }
        }
    }
}
