//! The lane: the single writer of a shard.
//!
//! A batch goes through five stages, one module each:
//!
//! 1. [`intake`]: requests queue up; the lane takes all that wait.
//! 2. [`load`]: what the decisions depend on is in memory, or read.
//! 3. [`decide`]: operations become bookings and outcomes, in order, in memory.
//! 4. commit: the store writes the bookings in one transaction ([`Store::commit`]).
//! 5. [`work`]: every operation gets its reply, after COMMIT.
//!
//! While one batch commits, the next one gathers. A next batch that is large is decided meanwhile; if the first one is not
//! written after all, both are taken back and decided again, one after the other.
//!
//! Three rules make this safe:
//! * Every transaction begins with the lock and the check of the fence (`docs/adr/0009`). It fails after a write by a second
//!   writer, after a change of slot ownership, and after an earlier commit whose answer was lost. The lane then reads what
//!   was appended, and decides the batch again.
//! * Ids are unique in the journal. The lane first assumes that all ids of a batch are new. When the database reports a
//!   duplicate, the lane looks the ids up and decides the batch again.
//! * After a lost COMMIT answer the lane runs the same batch again. It never infers the outcome from a read.
//!
//! The lane never answers "not executed" for an operation whose COMMIT was sent and not answered.

mod decide;
mod intake;
mod load;
#[cfg(test)]
mod tests;
mod work;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use identity::{AssetScales, Mark, Marks};
use ledger::{
    Account, Position,
    accounts::{Accounts, Undo},
};
use shard_database::ShardState;
use tokio_util::sync::CancellationToken;
use wire::not_executed::Reason;

use decide::Decided;
pub use intake::{LaneHandle, LaneState};
use intake::{Queue, Shared};
use work::Work;

use crate::{
    clock::NodeClock,
    config::LaneConfig,
    gate::Gate,
    metric_definitions as m,
    store::{CommitFailure, Opened, Store, StoreError, error::Remedy, ownership::Ownership},
    tail::Tail,
};

/// How often a batch is decided again before its fault counts as permanent. A replay needs one more decision; losing a race
/// against a second writer also costs one, and must not repeat without end.
const MAX_REDECISIONS: u32 = 16;
const MAX_LOST_RACES: u32 = 1000;

/// Pause between two attempts to reach the database.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Operations that make it worth while to decide a batch before the last one is committed. A smaller batch is decided in
/// less time than a commit takes, and grows while it waits.
const AHEAD_OPERATIONS: usize = 1000;

/// Bookings read at once while the lane catches up.
const CATCH_UP_PAGE: i64 = 20_000;

pub struct Lane<S: Store> {
    gate: Gate,
    clock: Arc<NodeClock>,
    store: Arc<S>,
    tail: Tail,
    queue: Queue,
    shared: Arc<Shared>,
    accounts: Accounts,
    link: Option<Link>,
    /// The shard state that the accounts in memory belong to; `None` before the first load.
    believed: Option<ShardState>,
    /// The last batch contained ids that were used before: look ids up before deciding, instead of after a conflict.
    careful: bool,
    /// What was found in the database may not be replicated yet: the next batch needs a booking of its own.
    needs_own_booking: bool,
    now_us: i64,
    /// The marks of other shards that this lane has stored.
    stored_marks: Marks,
    /// Why the database answers but takes no writes (read-only, disk full); `None` after a successful write.
    unwritable: Option<String>,
    bounds: TailBounds,
}

/// The shard's state as last read, written or decided.
struct Link {
    /// As committed.
    state: ShardState,
    /// As the batches leave it that are decided and not committed.
    ahead: ShardState,
    timeline: i64,
    ownership: Arc<Ownership>,
    /// Scales of the assets that accounts of this shard use.
    scales: AssetScales,
}

/// How much may be committed and not folded before the lane waits for the fold.
#[derive(Debug, Clone, Copy)]
struct TailBounds {
    bookings: usize,
    accounts: usize,
}

/// A batch whose commit is under way.
struct Flight {
    work: Work,
    decided: Decided,
    done: Pin<Box<dyn Future<Output = Result<(), CommitFailure>> + Send>>,
}

impl<S: Store> Lane<S> {
    pub fn new(gate: Gate, clock: Arc<NodeClock>, store: Arc<S>, tail: Tail, config: &LaneConfig) -> (Self, LaneHandle) {
        let (queue, handle) = intake::channel(config, gate.clone(), tail.clone());
        let lane = Self {
            gate,
            clock,
            store,
            tail,
            shared: handle.shared(),
            queue,
            accounts: Accounts::with_capacity(config.cache_bytes),
            link: None,
            believed: None,
            careful: false,
            needs_own_booking: false,
            now_us: 0,
            stored_marks: Marks::default(),
            unwritable: None,
            bounds: TailBounds { bookings: config.unfolded_bookings, accounts: config.unfolded_accounts },
        };
        (lane, handle)
    }

    /// Serves until `shutdown`, then finishes what is queued.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.able_to_write().await {
                self.report_unreachable(&error);
                self.refuse_waiting(&error);
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(RECONNECT_PAUSE) => continue,
                }
            }
            self.shared.set_state(LaneState::Serving);
            self.gate.set_writes(Ok(()));
            let batch = tokio::select! {
                biased;
                batch = self.queue.next_batch() => batch,
                () = shutdown.cancelled() => None,
            };
            match batch {
                Some(work) => self.carry_out_in_turn(work).await,
                None => break,
            }
        }
        self.shared.set_state(LaneState::Draining);
        self.queue.close();
        while let Some(work) = self.queue.next_batch().await {
            self.carry_out(work).await;
        }
        self.store.close().await;
    }
}
