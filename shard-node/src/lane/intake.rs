//! Intake: a bounded queue of submissions, and the lane's state for other tasks to read.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use identity::AssetScales;
use ledger::{
    Position,
    outcome::{Reason, Reply},
};
use shard_database::ShardState;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

use super::work::{Queued, Replies, Submission, Work};
use crate::{
    config::LaneConfig,
    gate::Gate,
    metric_definitions as m,
    store::{StoreError, ownership::Ownership},
    tail::{Size, Tail},
};

/// Most submissions that may wait, regardless of size. The configuration bounds the number of operations.
const MAX_WAITING_SUBMISSIONS: usize = 8192;

/// Operations that wait while a batch commits and make it worth while to decide the next batch meanwhile. A smaller one is
/// decided in less time than a commit takes, and grows while it waits.
pub(super) const LARGE_BATCH: usize = 1000;

/// A commit of this node that a read has seen reaches the tail within this time, unless the machine is overloaded.
const OWN_COMMIT_ARRIVES: Duration = Duration::from_millis(20);
/// The lane reads what another node has appended within this time.
const OTHERS_COMMIT_ARRIVES: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LaneState {
    /// The database has not been reached yet.
    Starting = 0,
    Serving = 1,
    /// The connection to the database was lost.
    Recovering = 2,
    Draining = 3,
}

impl LaneState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Recovering => "recovering",
            Self::Draining => "draining",
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Serving,
            2 => Self::Recovering,
            3 => Self::Draining,
            _ => Self::Starting,
        }
    }
}

/// What the lane is doing. The counters are read one by one, not at one instant.
#[derive(Debug, Clone)]
pub struct LaneStatus {
    pub state: LaneState,
    pub waiting: usize,
    pub batches: u64,
    pub operations: u64,
    pub last_batch: u64,
    pub last_commit: Duration,
    /// All commits together.
    pub committing: Duration,
    pub cached_accounts: usize,
    pub next_position: Position,
    /// The position that the projections reach, and what is committed beyond.
    pub folded_position: Position,
    pub unfolded: Size,
    pub ownership_version: i64,
    pub slots_owned: usize,
    pub highest_epoch: i64,
    pub last_error: String,
}

/// Shared between the lane and its handles.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: AtomicU8,
    /// Operations that have no reply yet.
    waiting: AtomicUsize,
    /// Those of them that the lane has taken from the queue.
    taken: AtomicUsize,
    /// A large batch waits.
    large: Notify,
    /// A read has seen a booking that the lane does not know.
    outpaced: Notify,
    batches: AtomicU64,
    operations: AtomicU64,
    last_batch: AtomicU64,
    last_commit_us: AtomicU64,
    committing_us: AtomicU64,
    cached_accounts: AtomicUsize,
    next_position: AtomicI64,
    ownership_version: watch::Sender<i64>,
    slots_owned: AtomicUsize,
    highest_epoch: AtomicI64,
    last_error: Mutex<String>,
    /// Scales of the assets that accounts of this shard use, and a version that grows with each change.
    scales: Mutex<(u64, Arc<AssetScales>)>,
}

impl Shared {
    fn state(&self) -> LaneState {
        LaneState::from_code(self.state.load(Relaxed))
    }

    pub fn set_state(&self, state: LaneState) {
        self.state.store(state as u8, Relaxed);
    }

    pub fn set_scales(&self, scales: &AssetScales) {
        let mut shared = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        if *shared.1 != *scales {
            *shared = (shared.0 + 1, Arc::new(scales.clone()));
        }
    }

    pub fn set_last_error(&self, error: &StoreError) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
    }

    pub fn set_ownership(&self, state: &ShardState, ownership: &Ownership) {
        self.next_position.store(state.next_position, Relaxed);
        self.slots_owned.store(ownership.owned(), Relaxed);
        self.highest_epoch.store(ownership.highest_epoch(), Relaxed);
        let version = state.ownership_version;
        self.ownership_version.send_if_modified(|known| std::mem::replace(known, version) != version);
    }

    pub fn set_cached(&self, accounts: usize) {
        self.cached_accounts.store(accounts, Relaxed);
    }

    pub fn committed(&self, operations: usize, commit: Duration, next: Position) {
        self.batches.fetch_add(1, Relaxed);
        self.operations.fetch_add(operations as u64, Relaxed);
        self.last_batch.store(operations as u64, Relaxed);
        let commit_us = u64::try_from(commit.as_micros()).unwrap_or(u64::MAX);
        self.last_commit_us.store(commit_us, Relaxed);
        self.committing_us.fetch_add(commit_us, Relaxed);
        self.next_position.store(next.0, Relaxed);
    }

    /// Subtracts operations that the lane has answered.
    pub fn release(&self, operations: usize) {
        self.taken.fetch_sub(operations, Relaxed);
        self.leave(operations);
    }

    fn leave(&self, operations: usize) {
        self.waiting.fetch_sub(operations, Relaxed);
    }

    /// Resolves when a read has seen a booking that the lane does not know.
    pub async fn wait_until_outpaced(&self) {
        self.outpaced.notified().await;
    }

    fn has_large_batch(&self) -> bool {
        self.waiting.load(Relaxed).saturating_sub(self.taken.load(Relaxed)) >= LARGE_BATCH
    }
}

/// The lane's end of the queue.
pub(super) struct Queue {
    receiver: mpsc::Receiver<Submission>,
    shared: Arc<Shared>,
    max_batch_operations: usize,
}

pub(super) fn channel(config: &LaneConfig, gate: Gate, tail: Tail) -> (Queue, LaneHandle) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING_SUBMISSIONS);
    let shared = Arc::new(Shared::default());
    let queue = Queue { receiver, shared: shared.clone(), max_batch_operations: config.max_batch_operations };
    let handle = LaneHandle { gate, tail, sender, shared, max_waiting: config.queue_operations };
    (queue, handle)
}

impl Queue {
    /// Waits for a submission. `None`: the queue is closed and empty. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Submission> {
        self.receiver.recv().await
    }

    /// Waits for a large batch. May be dropped while it waits.
    pub async fn next_large_batch(&mut self) -> Work {
        loop {
            if self.shared.has_large_batch()
                && let Some(work) = self.try_next_batch()
            {
                return work;
            }
            self.shared.large.notified().await;
        }
    }

    pub fn try_next_batch(&mut self) -> Option<Work> {
        let first = self.receiver.try_recv().ok()?;
        Some(self.gather(first))
    }

    /// A batch of this submission and everything that waits behind it, up to the bound.
    pub fn gather(&mut self, first: Submission) -> Work {
        let mut work = Work::new(first);
        while work.weight() < self.max_batch_operations {
            match self.receiver.try_recv() {
                Ok(next) => work.add(next),
                Err(_) => break,
            }
        }
        self.shared.taken.fetch_add(work.weight(), Relaxed);
        work
    }

    pub fn close(&mut self) {
        self.receiver.close();
    }
}

/// Hands operations to the lane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LaneHandle {
    gate: Gate,
    tail: Tail,
    sender: mpsc::Sender<Submission>,
    shared: Arc<Shared>,
    max_waiting: usize,
}

impl LaneHandle {
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Executes the operations in order and returns one reply for each. Dropping the future does not cancel them.
    pub async fn execute(&self, operations: Vec<Queued>) -> Vec<Reply> {
        self.submit(operations, |submission| submission).await.replies
    }

    /// [`LaneHandle::execute`], with what became of the submission; if it is traced, also with the times at which the lane decided and
    /// committed the operations.
    pub async fn execute_as(&self, operations: Vec<Queued>, is_traced: bool) -> Replies {
        self.submit(operations, |submission| if is_traced { submission.traced() } else { submission }).await
    }

    async fn submit(&self, operations: Vec<Queued>, prepare: impl FnOnce(Submission) -> Submission) -> Replies {
        let count = operations.len();
        let all = |reply: Reply| Replies { replies: vec![reply; count], attempts: Vec::new(), after_doubt: false };
        let refuse = |reason, detail: &str| all(Reply::NotExecuted { reason, detail: detail.to_owned() });
        if self.shared.state() == LaneState::Draining {
            return refuse(Reason::ShuttingDown, "the shard-node is shutting down");
        }
        if let Err(cause) = self.gate.writes() {
            return refuse(Reason::Unavailable, &cause);
        }
        let (reply, answer) = oneshot::channel();
        let submission = prepare(Submission::new(operations, reply));
        let weight = submission.weight();
        let before = self.shared.waiting.fetch_add(weight, Relaxed);
        // A submission larger than the bound is admitted when the queue is empty; otherwise it could never run.
        if before > 0 && before + weight > self.max_waiting {
            self.shared.leave(weight);
            metrics::counter!(m::LANE_QUEUE_FULL).increment(1);
            return refuse(Reason::Overloaded, "the shard's queue is full");
        }
        match self.sender.try_send(submission) {
            Ok(()) if self.shared.has_large_batch() => self.shared.large.notify_one(),
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.shared.leave(weight);
                metrics::counter!(m::LANE_QUEUE_FULL).increment(1);
                return refuse(Reason::Overloaded, "the shard's queue is full");
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.shared.leave(weight);
                return refuse(Reason::ShuttingDown, "the shard-node is shutting down");
            }
        }
        answer.await.unwrap_or_else(|_| all(Reply::Unknown))
    }

    /// Waits until the tail reaches a position that a read has seen in the database.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the position belongs to another node of the shard and the lane cannot catch up with it.
    pub async fn reach(&self, position: Position) -> Result<(), StoreError> {
        if self.tail.committed() >= position {
            return Ok(());
        }
        if timeout(OWN_COMMIT_ARRIVES, self.tail.reach(position)).await.is_ok() {
            return Ok(());
        }
        self.look_again();
        match timeout(OTHERS_COMMIT_ARRIVES, self.tail.reach(position)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(StoreError::Fenced),
        }
    }

    /// Makes the lane read the shard's state again, because slots changed hands or another node has written.
    pub fn look_again(&self) {
        self.shared.outpaced.notify_one();
    }

    /// Makes the fold run soon.
    pub fn want_fold(&self) {
        self.tail.want_fold();
    }

    /// Waits until the lane works with an ownership version above this one. Returns the version of now.
    pub async fn ownership_newer_than(&self, version: i64, patience: Duration) -> i64 {
        let mut versions = self.shared.ownership_version.subscribe();
        // A lane that ends keeps its last version.
        let _ = timeout(patience, versions.wait_for(|now| *now > version)).await;
        *versions.borrow()
    }

    /// The scales in use and their version.
    pub fn scales(&self) -> (u64, Arc<AssetScales>) {
        self.shared.scales.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn status(&self) -> LaneStatus {
        let shared = &self.shared;
        LaneStatus {
            state: shared.state(),
            waiting: shared.waiting.load(Relaxed),
            batches: shared.batches.load(Relaxed),
            operations: shared.operations.load(Relaxed),
            last_batch: shared.last_batch.load(Relaxed),
            last_commit: Duration::from_micros(shared.last_commit_us.load(Relaxed)),
            committing: Duration::from_micros(shared.committing_us.load(Relaxed)),
            cached_accounts: shared.cached_accounts.load(Relaxed),
            next_position: Position(shared.next_position.load(Relaxed)),
            folded_position: self.tail.folded_position(),
            unfolded: self.tail.size(),
            ownership_version: *shared.ownership_version.borrow(),
            slots_owned: shared.slots_owned.load(Relaxed),
            highest_epoch: shared.highest_epoch.load(Relaxed),
            last_error: shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
