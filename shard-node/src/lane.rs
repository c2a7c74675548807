//! The lane: the single writer of a shard.
//!
//! Requests queue up; the lane takes whatever waits, decides all of it in order in memory (`ledger::batch`), writes one
//! PostgreSQL transaction, and answers after COMMIT. While one batch commits, the next gathers; nothing lingers on purpose.
//!
//! What makes it safe:
//! * every transaction begins with the compare-and-set on `shard_state` ([`shard_state::begin_fenced`]): a second writer, a
//!   slot that changed hands, or an earlier commit whose answer was lost all show up there, and the batch is decided again;
//! * ids are unique in the database: a batch is first taken to hold new ids only, and decided again with what is stored
//!   when the database objects;
//! * a lost COMMIT answer is resolved by running the same batch again, never by looking.
//!
//! The lane never answers "not executed" for an operation that was part of a COMMIT it has no answer to.

mod load;
mod queue;
mod work;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ledger::{
    AccountId,
    accounts::Accounts,
    batch::{Batch, Prior},
    outcome::{HoldAnswer, HoldOutcome, Outcome, TransferAnswer, TransferOutcome},
};
use tokio_util::sync::CancellationToken;
use wire::not_executed::Reason;

pub use queue::{LaneHandle, LaneState};
use queue::{Queue, Shared};
use work::{Clocks, Work};

use crate::{
    config::{DatabaseConfig, LaneConfig},
    metric_definitions as m,
    store::{
        StoreError, batch_write, error::Remedy, ownership, ownership::Ownership, session::Session, shard_state,
        shard_state::ShardState,
    },
};

/// How often operations are decided again before the lane takes the fault for a lasting one. A replay needs one more
/// decision; losing a race against a second writer is no fault, but must not go on for ever either.
const MAX_REDECISIONS: u32 = 16;
const MAX_LOST_RACES: u32 = 1000;

/// Pause between two tries to reach the database.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

const OUT_OF_REACH: &str = "the shard's database is out of reach";

pub struct Lane {
    shard_id: String,
    database: DatabaseConfig,
    queue: Queue,
    shared: Arc<Shared>,
    accounts: Accounts,
    link: Option<Link>,
    /// The state the accounts in memory belong to.
    believed: Option<ShardState>,
    /// The last batch met ids used before: look them up first instead of running into them.
    careful: bool,
    now_us: i64,
}

/// A live session and what was true of the shard when its state was last read or written.
struct Link {
    session: Session,
    state: ShardState,
    ownership: Arc<Ownership>,
}

/// An attempt failed, and whether a COMMIT is out whose answer never came.
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
    pub fn new(shard_id: &str, database: DatabaseConfig, config: &LaneConfig) -> (Self, LaneHandle) {
        let (queue, handle) = queue::channel(config);
        let lane = Self {
            shard_id: shard_id.to_owned(),
            database,
            shared: handle.shared(),
            queue,
            accounts: Accounts::with_capacity(config.cached_accounts),
            link: None,
            believed: None,
            careful: false,
            now_us: 0,
        };
        (lane, handle)
    }

    /// Serves until `shutdown`, then finishes what is queued.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let connected = self.connect_if_needed().await;
            let batch = if let Err(error) = connected {
                self.report_unreachable(&error);
                self.refuse_waiting();
                tokio::select! {
                    () = shutdown.cancelled() => None,
                    () = tokio::time::sleep(RECONNECT_PAUSE) => continue,
                }
            } else {
                self.shared.set_state(LaneState::Serving);
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

    /// Brings one batch to an answer for each of its operations.
    async fn carry_out(&mut self, mut work: Work) {
        let (mut redecisions, mut lost_races) = (0, 0);
        while let Some(group) = work.next_group() {
            if let Err(error) = self.connect_if_needed().await {
                self.report_unreachable(&error);
                self.refuse_waiting();
                if !work.refuse_certain(Reason::Unavailable, OUT_OF_REACH) {
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

    /// Decides the operations of a group and writes what follows from them in one transaction.
    async fn attempt(&mut self, work: &Work, group: &[usize]) -> Result<Vec<Outcome>, Failure> {
        let begun = Instant::now();
        let Some(Link { session, state, ownership }) = &mut self.link else {
            return Err(StoreError::Fenced.into());
        };
        let operations = || group.iter().map(|index| work.operation(*index));
        load::accounts(session, &mut self.accounts, operations()).await?;
        let mut named = load::named(session, operations()).await?;
        named.openings = load::openings(session, &self.accounts, operations()).await?;
        let prior = if self.careful { load::prior(session, operations()).await? } else { Prior::Unknown };

        self.now_us = self.now_us.max(telemetry::clock::now_us());
        let deciding = Instant::now();
        let clocks = Clocks { now: deciding.into(), now_us: self.now_us };
        let fence = |id: &AccountId| ownership.check(shard_map::slot_of(id.as_str()));
        let mut batch = Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, state.next_position);
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
            // Every committed batch moves next_position, so that each is noticed by whoever else believes in the old one.
            let next = effects.next_position.max(state.next_position.next());
            shard_state::begin_fenced(session, state, next).await?;
            batch_write::write(session, &effects, &self.accounts).await?;
            let committing = Instant::now();
            session.commit().await.map_err(|error| Failure { error, commit_sent: true })?;
            metrics::histogram!(m::LANE_COMMIT_SECONDS).record(committing.elapsed());
            self.shared.committed(group.len(), committing.elapsed(), next);
            state.next_position = next;
            self.believed = Some(state.clone());
        }
        self.accounts.committed();
        self.shared.set_cached(self.accounts.len());
        metrics::histogram!(m::LANE_BATCH_OPERATIONS).record(count_as_f64(group.len()));
        metrics::histogram!(m::LANE_BATCH_SECONDS).record(begun.elapsed());

        let replays = outcomes.iter().filter(|outcome| is_replay(outcome)).count();
        metrics::counter!(m::LANE_REPLAYS).increment(replays as u64);
        // Replays come in herds: stay careful while they do.
        self.careful = self.careful && replays > 0;
        Ok(outcomes)
    }

    async fn connect_if_needed(&mut self) -> Result<(), StoreError> {
        if self.link.is_some() {
            return Ok(());
        }
        let options = self.database.connect_options();
        let mut session =
            Session::connect(&options, self.database.connect_timeout(), self.database.statement_timeout()).await?;
        let state = shard_state::load(&mut session).await?.ok_or_else(|| {
            StoreError::Corrupt("the database has no shard_state row; it was never initialised".to_owned())
        })?;
        if state.shard_id != self.shard_id {
            let found = &state.shard_id;
            return Err(StoreError::Corrupt(format!("the database belongs to shard {found}, not {}", self.shard_id)));
        }
        self.adopt(session, state).await
    }

    async fn adopt(&mut self, mut session: Session, state: ShardState) -> Result<(), StoreError> {
        let ownership = Arc::new(ownership::load(&mut session).await?);
        // Accounts in memory are those of the believed state; any commit since, by whomever, has moved next_position.
        if self.believed.as_ref() != Some(&state) {
            self.accounts.forget_all();
        }
        self.believed = Some(state.clone());
        self.shared.set_ownership(&state, &ownership);
        self.link = Some(Link { session, state, ownership });
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
        if let Ok(Some(state)) = shard_state::load(&mut link.session).await {
            // A failure leaves the lane without a link: the next step connects anew.
            let _ = self.adopt(link.session, state).await;
        }
    }

    fn report_unreachable(&self, error: &StoreError) {
        if self.shared.set_state(LaneState::Recovering) != LaneState::Recovering {
            tracing::error!(%error, "the shard's database is out of reach; refusing work until it is back");
        }
        self.shared.set_last_error(error);
    }

    /// Answers everything that waits: none of it was ever part of a transaction.
    fn refuse_waiting(&mut self) {
        while let Some(mut work) = self.queue.try_next_batch() {
            work.refuse_certain(Reason::Unavailable, OUT_OF_REACH);
            self.shared.release(work.weight());
            work.send();
        }
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
