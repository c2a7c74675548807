//! The lane and the fold over a store in memory.
//!
//! Time is paused: it goes on when every task waits, so that pauses cost nothing and no test depends on the machine.

use std::collections::{BTreeSet, HashMap};

use ledger::{
    Account, AccountId, AccountStatus, AssetCode, BookingKind, Limit, Metadata, Position, Refusal, Refused,
    TransferId, TransferKey,
    booking::Role,
    operation::{CreateAccount, Decide, Operation, PlaceHold, Purpose, Settle, Transfer, UpdateAccount, Verdict},
    outcome::{AccountOutcome, HoldOutcome, Reply, TransferAnswer, TransferOutcome, TransferState},
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::{
    fold,
    role::NodeRole,
    store::memory::{Database, Fault, FoldFault, Memory},
    tail::Size,
};

mod faults;
mod folds;
mod following;
mod random;
mod two_lanes;

// === nodes ===

/// One node of the shard: its lane, and its fold where a test runs one.
struct Node {
    handle: LaneHandle,
    store: Arc<Memory>,
    tail: Tail,
    role: NodeRole,
    tasks: Tasks,
    running: Vec<JoinHandle<()>>,
}

impl Node {
    fn start(database: &Database) -> Self {
        Self::start_with(database, &LaneConfig::default())
    }

    /// As [`crate::serve`] does, without a fold.
    fn start_with(database: &Database, config: &LaneConfig) -> Self {
        Self::start_as(NodeRole::active(), database, config)
    }

    /// A node that follows until it is used.
    fn start_following(database: &Database) -> Self {
        Self::start_as(NodeRole::new(), database, &LaneConfig::default())
    }

    fn start_as(role: NodeRole, database: &Database, config: &LaneConfig) -> Self {
        Self::start_behind(Gate::open_for_tests(database.state()), role, database, config)
    }

    fn start_behind(gate: Gate, role: NodeRole, database: &Database, config: &LaneConfig) -> Self {
        let clock = Arc::new(NodeClock::new(Duration::from_secs(1)));
        let store = Arc::new(Memory::new(database.clone(), gate.clone()));
        let tail = Tail::new(config.tail_bounds());
        let tasks = Tasks::new();
        let (lane, handle) =
            Lane::new(gate.clone(), clock, Arc::clone(&store), tail.clone(), role.clone(), tasks.clone(), config)
                .unwrap();
        // A handle refuses while writes do not work, as they do not before the lane's first look at the database.
        gate.set_writes(Ok(()));
        let running = vec![tasks.spawn("lane", lane.run(tasks.token().clone()))];
        Self { handle, store, tail, role, tasks, running }
    }

    /// Folds from now on, every `interval`.
    fn fold_every(&mut self, interval: Duration) {
        let fold = self.fold(interval);
        self.running.push(self.tasks.spawn("fold", fold));
    }

    fn fold(&self, interval: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (store, tail, role) = (Arc::clone(&self.store), self.tail.clone(), self.role.clone());
        fold::run(store, tail, role, interval, self.tasks.token().clone())
    }

    /// Runs one fold, however it ends.
    async fn fold_once(&self) {
        let interval = Duration::from_secs(1);
        let fold = self.fold(interval);
        // The first fold begins after a second, and another one no sooner than half a second later.
        let _ = tokio::time::timeout(Duration::from_millis(1_400), fold).await;
    }

    /// Folds until everything that is committed is folded.
    async fn fold_everything(&self) {
        for number in 1..=100_u128 {
            // An outdated tail is loaded again with the next batch.
            self.one(nothing(number)).await;
            self.fold_once().await;
            if self.tail.folded_position() == self.tail.committed() && !self.tail.is_outdated() {
                return;
            }
        }
        panic!("the fold does not get to the end: {:?}", self.handle.status());
    }

    /// Ends the node's tasks where they stand.
    async fn kill(self) {
        for task in self.running {
            task.abort();
            let _ = task.await;
        }
    }

    async fn run(&self, operations: Vec<Operation>) -> Vec<Reply> {
        self.handle.execute(operations.into_iter().map(|operation| queued(operation, 0)).collect()).await
    }

    async fn one(&self, operation: Operation) -> Reply {
        self.run(vec![operation]).await.remove(0)
    }

    /// Hands in operations and goes on without their answers.
    fn submit(&self, operations: Vec<Operation>) -> JoinHandle<Vec<Reply>> {
        self.submit_for(operations, 0)
    }

    fn submit_for(&self, operations: Vec<Operation>, timeout_ms: u64) -> JoinHandle<Vec<Reply>> {
        let handle = self.handle.clone();
        self.tasks.spawn("client", async move {
            handle.execute(operations.into_iter().map(|operation| queued(operation, timeout_ms)).collect()).await
        })
    }
}

/// A shard with these accounts; `bank` may go negative without limit. Every other account gets 100 from it.
async fn shard_with(names: &[&str]) -> Database {
    let database = Database::new();
    let node = Node::start(&database);
    node.run(names.iter().map(|name| open(name)).collect()).await;
    let funded = names.iter().filter(|name| **name != "bank").zip(9_000..);
    for reply in node.run(funded.map(|(name, number)| pay(number, "bank", name, 100)).collect()).await {
        assert!(posted(&reply), "{reply:?}");
    }
    node.kill().await;
    database
}

/// The same, and everything is folded: a node that starts has no account in memory.
async fn folded_shard_with(names: &[&str]) -> Database {
    let database = shard_with(names).await;
    let node = Node::start(&database);
    node.fold_everything().await;
    node.kill().await;
    database
}

/// `timeout_ms` 0: no deadline.
fn queued(operation: Operation, timeout_ms: u64) -> Queued {
    let scale = matches!(operation, Operation::CreateAccount(_)).then_some(2);
    let deadline = (timeout_ms > 0).then(|| tokio::time::Instant::now() + Duration::from_millis(timeout_ms));
    Queued { scale, deadline, ..Queued::new(operation) }
}

// === operations ===

fn usd() -> AssetCode {
    AssetCode::new("USD").unwrap()
}

fn id(name: &str) -> AccountId {
    AccountId::client(name).unwrap()
}

fn number(number: u128) -> TransferId {
    TransferId(Uuid::from_u128(number))
}

fn key(of: u128, debit: &str) -> TransferKey {
    TransferKey { id: number(of), debit: id(debit) }
}

fn open(name: &str) -> Operation {
    let overdraft = if name == "bank" { Limit::Unlimited } else { Limit::ZERO };
    let (id, metadata) = (id(name), Metadata::empty());
    Operation::CreateAccount(CreateAccount {
        ordered_by: None,
        id,
        asset: usd(),
        overdraft,
        max_balance: Limit::Unlimited,
        metadata,
    })
}

fn payment(of: u128, debit: &str, credit: &str, amount: i64) -> Transfer {
    Transfer {
        ordered_by: None,
        id: number(of),
        debit: id(debit),
        credit: id(credit),
        asset: usd(),
        amount,
        metadata: Metadata::empty(),
        purpose: Purpose::Payment,
        cross_shard: false,
        defer_insufficient: false,
        defer_limited: false,
    }
}

fn pay(of: u128, debit: &str, credit: &str, amount: i64) -> Operation {
    Operation::Transfer(payment(of, debit, credit, amount))
}

fn reserve(of: u128, debit: &str, amount: i64) -> Operation {
    Operation::Transfer(Transfer { cross_shard: true, ..payment(of, debit, "elsewhere", amount) })
}

fn settle(of: u128, debit: &str, amount: i64, verdict: Verdict) -> Operation {
    Operation::Settle(Settle {
        id: number(of),
        debit: id(debit),
        credit: id("elsewhere"),
        asset: usd(),
        amount,
        purpose: Purpose::Payment,
        reserved: true,
        verdict,
    })
}

fn credit(of: u128, credit: &str, amount: i64) -> Operation {
    Operation::Decide(Decide {
        ordered_by: None,
        id: number(of),
        debit: id("elsewhere"),
        credit: id(credit),
        asset: usd(),
        amount,
        purpose: Purpose::Payment,
        presumed: None,
        defer_limited: false,
        patient: false,
    })
}

fn hold(of: u128, debit: &str, amount: i64) -> Operation {
    let (debit, credit, metadata) = (id(debit), id("shop"), Metadata::empty());
    Operation::PlaceHold(PlaceHold {
        ordered_by: None,
        id: number(of),
        debit,
        credit,
        asset: usd(),
        amount,
        expires_in_s: None,
        metadata,
    })
}

fn capture(of: u128, held: u128, debit: &str, amount: i64) -> Operation {
    let purpose = Purpose::Capture { hold: number(held), whole: false, finalize: false };
    Operation::Transfer(Transfer { purpose, ..payment(of, debit, "shop", amount) })
}

fn update(name: &str, overdraft: Option<Limit>) -> Operation {
    Operation::UpdateAccount(UpdateAccount {
        ordered_by: None,
        id: id(name),
        status: None,
        overdraft,
        max_balance: None,
        metadata: None,
    })
}

/// An operation that is answered and writes nothing.
fn nothing(of: u128) -> Operation {
    update(&format!("nobody{of}"), None)
}

// === answers ===

fn answer(reply: &Reply) -> &TransferAnswer {
    match reply {
        Reply::Outcome(Outcome::Transfer(TransferOutcome::Done(answer))) => answer,
        other => panic!("no answer of a transfer: {other:?}"),
    }
}

fn posted(reply: &Reply) -> bool {
    let Reply::Outcome(Outcome::Transfer(TransferOutcome::Done(answer))) = reply else { return false };
    matches!(answer.state, TransferState::Posted { .. })
}

fn refusal(reply: &Reply) -> Option<Refusal> {
    answer(reply).state.refused().map(|refused| refused.refusal)
}

fn not_executed(reply: &Reply) -> Option<Reason> {
    match reply {
        Reply::NotExecuted { reason, .. } => Some(*reason),
        _ => None,
    }
}

fn account(database: &Database, name: &str) -> Account {
    database.fold().accounts.remove(&id(name)).unwrap()
}

fn balance(database: &Database, name: &str) -> i64 {
    account(database, name).posted
}

/// How many bookings are the first answer of this transfer.
fn bookings_of(database: &Database, of: u128) -> usize {
    let is_first = |kind: BookingKind| kind.role() == Role::Transfer;
    database.bookings().iter().filter(|booking| booking.id == Some(number(of)) && is_first(booking.kind)).count()
}

async fn pause_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
