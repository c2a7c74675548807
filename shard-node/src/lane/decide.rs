//! Decide: the operations of a batch become bookings and outcomes, in order, in memory.

use std::sync::Arc;

use identity::Marks;
use ledger::{
    AccountId, AssetCode, Position,
    accounts::{BatchNumber, Changed, Undo},
    batch::{Batch, Effects, Prior},
    operation::Operation,
    outcome::{HoldAnswer, HoldOutcome, Outcome, TransferAnswer, TransferOutcome},
};
use shard_database::ShardState;
use tokio::time::Instant;

use super::{
    Lane, load,
    work::{Attempt, Clocks, Work},
};
use crate::{
    metric_definitions as m,
    store::{Append, CommitFailure, Store, StoreError},
};

/// A batch that is decided and not committed.
pub struct Decided {
    /// The operations, by their indices in the [`Work`], and what becomes of each.
    pub group: Vec<usize>,
    pub outcomes: Vec<Outcome>,
    /// The state that the batch was decided on.
    pub from: ShardState,
    pub effects: Effects,
    /// How many operations were suspected to be replays.
    pub suspects: usize,
    /// The accounts that the batch changed, and how to take the changes back.
    pub changed: Vec<Changed>,
    pub undo: Undo,
    pub number: BatchNumber,
    /// Marks of other shards, and scales of assets, that are new on this shard.
    pub marks: Marks,
    pub scales: Vec<(AssetCode, u32)>,
    /// When the decision began, and when it was made.
    pub begun: Instant,
    pub decided: Instant,
}

impl Decided {
    /// What the store writes.
    pub fn append(&self) -> Append<'_> {
        Append { state: self.from, effects: &self.effects, marks: &self.marks, scales: &self.scales }
    }

    /// When it was decided, sent at `sent`, and ended just now as `done` says.
    pub fn attempt(&self, sent: Instant, done: &Result<(), CommitFailure>) -> Attempt {
        let failed = done.as_ref().err().map(|failure| {
            if failure.in_doubt { "the outcome of the commit is unknown" } else { failure.error.remedy().as_str() }
        });
        let ended = Instant::now();
        let operations = self.group.len();
        Attempt { begun: self.begun, decided: self.decided, sent, ended, operations, failed }
    }

    /// The operations that were answered from what was stored before.
    pub fn replays(&self) -> usize {
        self.outcomes.iter().filter(|outcome| is_replay(outcome)).count()
    }
}

impl<S: Store> Lane<S> {
    /// Decides the operations of a group. Nothing is written; an error leaves the accounts as they were.
    /// Operations whose deadline passes while rows are read are left out: they are still open afterwards.
    pub(super) async fn decide(&mut self, work: &Work, mut group: Vec<usize>) -> Result<Decided, StoreError> {
        let begun = Instant::now();
        // Another database may have been accepted while the lane waited for work.
        let Some(link) = self.link.as_ref().filter(|_| self.store.is_current()) else {
            return Err(StoreError::Superseded);
        };
        let operations = || group.iter().map(|index| work.operation(*index));
        load::accounts(&*self.store, &mut self.accounts, operations()).await?;
        let ownership = Arc::clone(&link.ownership);
        let owns = |id: &AccountId| ownership.owns(id);
        let mut named = load::named(&*self.store, &self.tail, &self.accounts, &owns, operations()).await?;
        for reserved in &self.reserved_ahead {
            named.under_way.entry(reserved.debit.clone()).or_default().add(reserved);
        }
        for settled in &self.settled_ahead {
            if let Some(under_way) = named.under_way.get_mut(&settled.debit) {
                under_way.subtract(settled);
            }
        }
        // A dry run leaves no booking that an id could collide with: what is stored under its id is looked up at once.
        let leaves_none = |operation: &Operation| matches!(operation, Operation::DryRun(_) | Operation::OrNothing(_));
        let must_look = |operation: &&Operation| leaves_none(operation) || self.recent_ids.suspect(operation);
        let suspects: Vec<&Operation> = operations().filter(must_look).collect();
        let prior = if self.careful {
            Prior::Loaded(load::stored(&*self.store, &owns, operations()).await?)
        } else if suspects.is_empty() {
            Prior::Unknown
        } else {
            Prior::Suspected(load::stored(&*self.store, &owns, suspects.iter().copied()).await?)
        };
        let suspects = suspects.len();
        work.retain_timely(&mut group);

        self.now_us = self.now_us.max(self.clock.now_us());
        let deciding = Instant::now();
        let clocks = Clocks { now: deciding, now_us: self.now_us };
        let from = link.ahead;
        let fence = |id: &AccountId| ownership.check(shard_map::slot_of(id.as_str()));
        let mut batch =
            Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, Position(from.next_position));
        let outcomes: Vec<Outcome> =
            group.iter().map(|index| batch.apply(work.request(*index, clocks), work.operation(*index))).collect();
        let is_sure = batch.is_sure();
        let mut effects = batch.finish();
        let scales = match work.new_scales(&group, &outcomes, &link.scales) {
            Ok(scales) if is_sure => scales,
            refused => {
                self.accounts.abandon_batch();
                return Err(refused.err().unwrap_or(StoreError::ReplayInDoubt));
            }
        };
        if effects.is_empty() && self.needs_own_booking {
            effects.add_marker(self.now_us);
        }
        let number = self.accounts.batch();
        let (changed, undo) = self.accounts.finish_batch();
        let marks = work.marks_beyond(&group, &self.stored_marks);
        let decided = Instant::now();
        metrics::histogram!(m::LANE_DECIDE_SECONDS).record(decided.duration_since(deciding));
        Ok(Decided { group, outcomes, from, effects, suspects, changed, undo, number, marks, scales, begun, decided })
    }
}

fn is_replay(outcome: &Outcome) -> bool {
    let answered_before = |outcome: &TransferOutcome| {
        matches!(
            outcome,
            TransferOutcome::Done(TransferAnswer { replayed: true, .. }) | TransferOutcome::Mismatch { .. }
        )
    };
    match outcome {
        Outcome::Transfer(outcome) => answered_before(outcome),
        Outcome::Atomic(group) => group.items.iter().any(answered_before),
        Outcome::Decided(decided) => decided.replayed,
        Outcome::Settled(settled) => settled.replayed,
        Outcome::Hold(outcome) => matches!(
            outcome,
            HoldOutcome::Placed(HoldAnswer { replayed: true, .. })
                | HoldOutcome::Released { replayed: true, .. }
                | HoldOutcome::Mismatch { .. }
        ),
        Outcome::Account(_)
        | Outcome::MetadataErased(_)
        | Outcome::NotOwner(_)
        | Outcome::Deferred
        | Outcome::Undetermined(_)
        | Outcome::Illegal(_) => false,
    }
}
