//! The lane: the single writer of a shard.
//!
//! Requests queue up. The lane takes all waiting requests, decides them in order in memory (`ledger::batch`), writes
//! one PostgreSQL transaction, and answers after COMMIT. While one batch commits, the next one gathers; the lane
//! never waits to fill a batch.
//!
//! Three rules make this safe:
//! * Every transaction begins with the compare-and-set on `shard_state` ([`shard_state::begin_fenced`]). It fails
//!   after a write by a second writer, after a change of slot ownership, and after an earlier commit whose answer was
//!   lost. The lane then decides the batch again.
//! * Ids are unique in the database. The lane first assumes that all ids of a batch are new. When the database
//!   reports a duplicate, the lane loads what is stored and decides the batch again.
//! * After a lost COMMIT answer the lane runs the same batch again. It never infers the outcome from a read.
//!
//! The lane never answers "not executed" for an operation whose COMMIT was sent and not answered.

mod load;
mod queue;
mod work;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use identity::{AssetScales, Mark, Marks};
use ledger::{
    AccountId, Position,
    accounts::Accounts,
    batch::{Batch, Prior},
    outcome::{HoldAnswer, HoldOutcome, Outcome, TransferAnswer, TransferOutcome},
};
use shard_database::{ShardState, record};
use tokio_util::sync::CancellationToken;
use wire::not_executed::Reason;

pub use queue::{LaneHandle, LaneState};
use queue::{Queue, Shared};
use work::{Clocks, Work};

use crate::{
    clock::NodeClock,
    config::{DatabaseConfig, LaneConfig},
    gate::Gate,
    metric_definitions as m,
    store::{
        StoreError, batch_write, error::Remedy, evidence, ownership, ownership::Ownership, session::Session,
        shard_state,
    },
};

/// How often a batch is decided again before its fault counts as permanent. A replay needs one more decision; losing
/// a race against a second writer also costs one, and must not repeat without end.
const MAX_REDECISIONS: u32 = 16;
const MAX_LOST_RACES: u32 = 1000;

/// Pause between two attempts to reach the database.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

pub struct Lane {
    gate: Gate,
    clock: Arc<NodeClock>,
    database: DatabaseConfig,
    queue: Queue,
    shared: Arc<Shared>,
    accounts: Accounts,
    link: Option<Link>,
    /// The shard state that the accounts in memory belong to.
    believed: Option<ShardState>,
    /// The last batch contained ids that were used before: look ids up before deciding, instead of after a conflict.
    careful: bool,
    now_us: i64,
    /// The marks of other shards that this lane has stored.
    stored_marks: Marks,
    /// Why the database answers but takes no writes (read-only, disk full); `None` after a successful write.
    unwritable: Option<String>,
}

/// A live session and the shard's state as last read or written.
struct Link {
    session: Session,
    state: ShardState,
    ownership: Arc<Ownership>,
    /// Scales of the assets that accounts of this shard use.
    scales: AssetScales,
}

/// A failed attempt. `commit_sent`: a COMMIT was sent and its answer never came.
struct Failure {
    error: StoreError,
    commit_sent: bool,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, commit_sent: false }
    }
}

impl Lane {
    pub fn new(
        gate: Gate,
        clock: Arc<NodeClock>,
        database: DatabaseConfig,
        config: &LaneConfig,
    ) -> (Self, LaneHandle) {
        let (queue, handle) = queue::channel(config, gate.clone());
        let lane = Self {
            gate,
            clock,
            database,
            shared: handle.shared(),
            queue,
            accounts: Accounts::with_capacity(config.cached_accounts),
            link: None,
            believed: None,
            careful: false,
            now_us: 0,
            stored_marks: Marks::default(),
            unwritable: None,
        };
        (lane, handle)
    }

    /// Serves until `shutdown`, then finishes what is queued.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let able = self.able_to_write().await;
            let batch = if let Err(error) = able {
                self.report_unreachable(&error);
                self.refuse_waiting(&error);
                tokio::select! {
                    () = shutdown.cancelled() => None,
                    () = tokio::time::sleep(RECONNECT_PAUSE) => continue,
                }
            } else {
                self.shared.set_state(LaneState::Serving);
                self.gate.set_writes(Ok(()));
                tokio::select! {
                    biased;
                    batch = self.queue.next_batch() => batch,
                    () = shutdown.cancelled() => None,
                }
            };
            match batch {
                Some(work) => self.carry_out(work).await,
                None => break,
            }
        }
        self.shared.set_state(LaneState::Draining);
        self.queue.close();
        while let Some(work) = self.queue.next_batch().await {
            self.carry_out(work).await;
        }
        if let Some(link) = self.link.take() {
            link.session.close().await;
        }
    }

    /// Processes one batch until each of its operations has an answer.
    async fn carry_out(&mut self, mut work: Work) {
        let (mut redecisions, mut lost_races) = (0, 0);
        while let Some(group) = work.next_group() {
            if let Err(error) = self.able_to_write().await {
                self.report_unreachable(&error);
                self.refuse_waiting(&error);
                if !work.refuse_certain(Reason::Unavailable, &error.to_string()) {
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
                continue;
            }
            match self.attempt(&work, &group).await {
                Ok(outcomes) => {
                    work.answer(&group, outcomes);
                    (redecisions, lost_races) = (0, 0);
                }
                Err(Failure { error, commit_sent }) => {
                    self.accounts.rolled_back();
                    if commit_sent {
                        work.doubt(&group);
                    }
                    let mut remedy = error.remedy();
                    metrics::counter!(m::LANE_ROLLBACKS, "remedy" => remedy_label(remedy)).increment(1);
                    match remedy {
                        Remedy::Redecide => redecisions += 1,
                        Remedy::Reload => lost_races += 1,
                        Remedy::Reconnect | Remedy::Report => {}
                    }
                    if redecisions > MAX_REDECISIONS || lost_races > MAX_LOST_RACES {
                        remedy = Remedy::Report;
                        (redecisions, lost_races) = (0, 0);
                    }
                    match remedy {
                        Remedy::Reconnect => {
                            tracing::warn!(%error, commit_sent, "lost the database session; the batch will be run again");
                            self.careful = true;
                            self.link = None;
                            if error.is_refused_write() {
                                // The database answers and refuses writes; it would refuse this batch on every retry.
                                let cause = error.to_string();
                                self.gate.set_writes(Err(cause.clone()));
                                work.refuse_certain(Reason::Unavailable, &cause);
                                self.unwritable = Some(cause);
                            }
                        }
                        Remedy::Redecide => {
                            self.careful = true;
                            self.roll_back().await;
                        }
                        Remedy::Reload => {
                            self.careful = true;
                            self.roll_back().await;
                            self.reload().await;
                        }
                        Remedy::Report => {
                            self.roll_back().await;
                            if !work.isolate(&group) {
                                tracing::error!(%error, "an operation cannot be carried out");
                                self.shared.set_last_error(&error);
                                work.give_up(&group, &error.to_string());
                            }
                        }
                    }
                }
            }
        }
        self.shared.release(work.weight());
        work.send();
    }

    /// Decides the operations of a group and writes their effects in one transaction.
    async fn attempt(&mut self, work: &Work, group: &[usize]) -> Result<Vec<Outcome>, Failure> {
        let begun = Instant::now();
        let Some(Link { session, state, ownership, scales }) = &mut self.link else {
            return Err(StoreError::Fenced.into());
        };
        let operations = || group.iter().map(|index| work.operation(*index));
        if !self.gate.serves(session.server()) {
            return Err(StoreError::Superseded.into());
        }
        load::accounts(session, &mut self.accounts, operations()).await?;
        let mut named = load::named(session, operations()).await?;
        named.openings = load::openings(session, &self.accounts, operations()).await?;
        let prior = if self.careful { load::prior(session, operations()).await? } else { Prior::Unknown };

        self.now_us = self.now_us.max(self.clock.now_us());
        let deciding = Instant::now();
        let clocks = Clocks { now: deciding.into(), now_us: self.now_us };
        let fence = |id: &AccountId| ownership.check(shard_map::slot_of(id.as_str()));
        let mut batch =
            Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, Position(state.next_position));
        let outcomes: Vec<Outcome> =
            group.iter().map(|index| batch.apply(work.request(*index, clocks), work.operation(*index))).collect();
        if !batch.is_sure() {
            return Err(StoreError::ReplayInDoubt.into());
        }
        let effects = batch.finish();
        effects.check_balanced().map_err(|unbalanced| StoreError::Corrupt(unbalanced.to_string()))?;
        metrics::histogram!(m::LANE_DECIDE_SECONDS).record(deciding.elapsed());

        if effects.is_empty() {
            shard_state::check_unchanged(session, state).await?;
        } else {
            // Every committed batch advances next_position, so that another writer with the old position fails at the
            // fence.
            let next = effects.next_position.max(Position(state.next_position).next());
            shard_state::begin_fenced(session, state, next).await?;
            batch_write::write(session, &effects, &self.accounts).await?;
            let marks = work.marks_beyond(group, &self.stored_marks);
            let new_scales = work.new_scales(group, &outcomes, scales)?;
            let mut evidence = evidence::insert_marks(&marks);
            evidence.extend(new_scales.iter().map(|(asset, scale)| evidence::insert_scale(*asset, *scale)));
            let committing = Instant::now();
            session.commit(evidence).await.map_err(|error| Failure { error, commit_sent: true })?;
            metrics::histogram!(m::LANE_COMMIT_SECONDS).record(committing.elapsed());
            // This commit went to a database that is no longer the accepted one. The same ids are executed on the
            // accepted database.
            if !self.gate.serves(session.server()) {
                return Err(Failure { error: StoreError::Superseded, commit_sent: true });
            }
            self.shared.committed(group.len(), committing.elapsed(), next);
            state.next_position = next.0;
            self.believed = Some(*state);
            self.gate.committed(mark_of(state, session.timeline()));
            for (number, mark) in marks.iter() {
                self.stored_marks.observe(number, mark);
                self.gate.observe_peer(number, mark);
            }
            if !new_scales.is_empty() {
                scales.extend(new_scales.into_iter().map(|(asset, scale)| (asset.to_string(), scale)));
                self.shared.set_scales(scales);
            }
        }
        self.accounts.committed();
        self.shared.set_cached(self.accounts.len());
        metrics::histogram!(m::LANE_BATCH_OPERATIONS).record(count_as_f64(group.len()));
        metrics::histogram!(m::LANE_BATCH_SECONDS).record(begun.elapsed());

        let replays = outcomes.iter().filter(|outcome| is_replay(outcome)).count();
        metrics::counter!(m::LANE_REPLAYS).increment(replays as u64);
        // Replays arrive in groups: stay careful while they do.
        self.careful = self.careful && replays > 0;
        Ok(outcomes)
    }

    /// Checks that a batch can be attempted: there is a session, and the database takes writes.
    async fn able_to_write(&mut self) -> Result<(), StoreError> {
        self.connect_if_needed().await?;
        if self.unwritable.is_some()
            && let Some(Link { session, state, .. }) = &mut self.link
        {
            if let Err(error) = shard_state::probe(session, state).await {
                self.link = None;
                return Err(error);
            }
            self.unwritable = None;
        }
        Ok(())
    }

    async fn connect_if_needed(&mut self) -> Result<(), StoreError> {
        if self.link.is_some() {
            return Ok(());
        }
        let mut session = Session::connect(&self.database, &self.gate).await?;
        let state = load_state(&mut session, &self.gate).await?;
        self.adopt(session, state).await
    }

    /// Continues with a session on a shard in this state.
    async fn adopt(&mut self, mut session: Session, state: ShardState) -> Result<(), StoreError> {
        let ownership = Arc::new(ownership::load(&mut session).await?);
        let scales = session.run(async |c| record::asset_scales(c).await).await?;
        // Accounts in memory belong to the believed state; every later commit has changed next_position.
        if self.believed.as_ref() != Some(&state) {
            self.accounts.forget_all();
        }
        self.believed = Some(state);
        self.shared.set_ownership(&state, &ownership);
        self.shared.set_scales(&scales);
        self.gate.committed(mark_of(&state, session.timeline()));
        self.link = Some(Link { session, state, ownership, scales });
        Ok(())
    }

    async fn roll_back(&mut self) {
        if let Some(link) = &mut self.link
            && link.session.rollback().await.is_err()
        {
            self.link = None;
        }
    }

    /// Reads the shard's state again on the same session.
    async fn reload(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        if let Ok(state) = load_state(&mut link.session, &self.gate).await {
            // A failure leaves the lane without a link; the next step reconnects.
            let _ = self.adopt(link.session, state).await;
        }
    }

    fn report_unreachable(&self, error: &StoreError) {
        self.shared.set_state(LaneState::Recovering);
        self.shared.set_last_error(error);
        self.gate.set_writes(Err(error.to_string()));
    }

    /// Refuses every waiting operation; none of them was part of a transaction.
    fn refuse_waiting(&mut self, error: &StoreError) {
        while let Some(mut work) = self.queue.try_next_batch() {
            work.refuse_certain(Reason::Unavailable, &error.to_string());
            self.shared.release(work.weight());
            work.send();
        }
    }
}

/// Loads the shard's state, if the gate accepts it.
async fn load_state(session: &mut Session, gate: &Gate) -> Result<ShardState, StoreError> {
    let acknowledged = gate.acknowledged();
    let state = shard_state::load(session).await?;
    gate.judge_state(&state, session.timeline(), &acknowledged)?;
    Ok(state)
}

fn mark_of(state: &ShardState, timeline: i64) -> Mark {
    Mark { incarnation: state.incarnation, timeline, position: state.next_position }
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
        Outcome::Account(_) | Outcome::NotOwner(_) | Outcome::Deferred | Outcome::Illegal(_) => false,
    }
}

fn remedy_label(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::Reconnect => "reconnect",
        Remedy::Redecide => "redecide",
        Remedy::Reload => "reload",
        Remedy::Report => "report",
    }
}

#[allow(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 operations")]
fn count_as_f64(count: usize) -> f64 {
    count as f64
}
