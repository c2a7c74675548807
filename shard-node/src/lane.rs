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
//! While one batch commits, the next one gathers. A next batch that is large is decided meanwhile. If the first one is not
//! written after all, both are taken back and decided again, one after the other.
//!
//! Three rules make this safe:
//! * Every transaction begins with the lock and the check of the fence (`docs/adr/0009`). The check fails after a write by a second
//!   writer, after a change of slot ownership, and after an earlier commit whose answer was lost. The lane then reads what
//!   was appended, and decides the batch again.
//! * Ids are unique in the journal. The lane looks up the ids that it remembers, and assumes that all others are new. When the database reports a
//!   duplicate, the lane looks the ids up and decides the batch again.
//! * After a lost COMMIT answer the lane runs the same batch again. It never infers the outcome from a read.
//!
//! [`believed`] holds what the lane believes of its shard, and how it catches up.
//!
//! The lane never answers "not executed" for an operation whose COMMIT was sent and not answered.

mod believed;
mod counters;
mod decide;
mod intake;
mod load;
mod recent_ids;
mod work;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use identity::{AssetScales, Mark, Marks};
use ledger::{
    accounts::Accounts,
    fold,
    outcome::{Outcome, Reason},
};
use shard_database::ShardState;
use telemetry::Tasks;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use counters::Counters;
use decide::Decided;
use intake::{LARGE_BATCH, Queue, Shared};
pub use intake::{LaneHandle, LaneState};
use recent_ids::RecentIds;
use work::Work;
pub use work::{Attempt, Queued, Replies};

use crate::{
    clock::NodeClock,
    config::LaneConfig,
    durable::{Edge, durable_steps, steps_of_batch},
    gate::Gate,
    metric_definitions as m,
    role::NodeRole,
    short_timer::ShortTimer,
    store::{CommitFailure, Store, StoreError, error::Remedy, ownership::Ownership},
    tail::Tail,
};

/// How often a batch is decided again after a wrong assumption before its fault counts as permanent. A replay needs one.
const MAX_REDECISIONS: u32 = 16;
/// How often a batch may lose a race against another writer before its fault counts as permanent.
const MAX_LOST_RACES: u32 = 1000;

/// Pause between two attempts to reach the database.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts to write to a database that answers and takes no writes.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two looks at the journal while this node follows.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// How long the lane waits for the fold before it refuses what waits.
const FOLD_PATIENCE: Duration = Duration::from_millis(500);

/// Longest rest between two commits of small batches.
const LONGEST_REST: Duration = Duration::from_micros(500);
/// In a batch of so many operations, the fixed cost of the commit hardly matters.
const NO_REST_FROM: usize = 16;

pub struct Lane<S: Store> {
    gate: Gate,
    clock: Arc<NodeClock>,
    store: Arc<S>,
    tail: Tail,
    role: NodeRole,
    tasks: Tasks,
    queue: Queue,
    shared: Arc<Shared>,
    accounts: Accounts,
    link: Option<Link>,
    /// The slots as last read. The accounts in memory and the sagas of the tail belong to them.
    ownership: Option<Arc<Ownership>>,
    /// The shard's state that the accounts in memory and the tail belong to, and the timeline of the server; `None` before
    /// the first load.
    believed: Option<(ShardState, i64)>,
    recent_ids: RecentIds,
    /// The reserves and the settlements of the batch that is sent but not committed. The tail does not know them yet.
    reserved_ahead: Vec<fold::Reserved>,
    settled_ahead: Vec<fold::Reserved>,
    /// All ids of a batch are looked up before the batch is decided. Set after a conflict of ids, a lost race, a lost session
    /// or a commit in doubt.
    careful: bool,
    /// What was found in the database is possibly not replicated yet: the next batch needs a booking of its own.
    needs_own_booking: bool,
    /// Nothing was committed since the lane opened a session on a server that it had not used, or that has restarted. If commits wait for
    /// a stand-by, bookings that were found there may be unconfirmed.
    is_unproven: bool,
    /// The last attempt to become able to write succeeded.
    is_able: bool,
    /// How long the lane rests before the next batch. The fixed cost of a commit does not depend on the size of the batch.
    /// Without a rest, many small commits take the processor from the other processes, and every batch stays small. The lane
    /// rests for as long as the last commit took. It does not rest after a commit of one operation, so that a lone client does
    /// not wait.
    rest: Duration,
    timer: ShortTimer,
    now_us: i64,
    /// The marks of other shards that this lane has stored.
    stored_marks: Marks,
    /// How often in a row the database has answered and taken no write.
    refused_in_a_row: u32,
    /// Why the database answers but takes no writes (read-only, disk full); `None` after a successful write.
    unwritable: Option<String>,
    counters: Counters,
}

/// What the lane knows of the shard while it has a session; `believed` outlives the session.
struct Link {
    /// As committed.
    state: ShardState,
    /// As the batch leaves it that is decided and not committed.
    ahead: ShardState,
    timeline: i64,
    ownership: Arc<Ownership>,
    /// Scales of the assets that accounts of this shard use.
    scales: AssetScales,
}

/// A batch whose commit is under way.
struct PendingCommit {
    work: Work,
    decided: Decided,
    since: Instant,
    done: Pin<Box<dyn Future<Output = Result<(), CommitFailure>> + Send>>,
}

/// How often a batch has failed.
#[derive(Debug, Default)]
struct Tries {
    redecisions: u32,
    lost_races: u32,
}

impl<S: Store> Lane<S> {
    pub fn new(
        gate: Gate,
        clock: Arc<NodeClock>,
        store: Arc<S>,
        tail: Tail,
        role: NodeRole,
        tasks: Tasks,
        config: &LaneConfig,
    ) -> std::io::Result<(Self, LaneHandle)> {
        let (queue, handle) = intake::channel(config, gate.clone(), tail.clone());
        let lane = Self {
            gate,
            clock,
            store,
            tail,
            role,
            tasks,
            shared: handle.shared(),
            queue,
            accounts: Accounts::with_capacity(config.cache_bytes),
            link: None,
            ownership: None,
            believed: None,
            recent_ids: RecentIds::new(),
            reserved_ahead: Vec::new(),
            settled_ahead: Vec::new(),
            careful: false,
            needs_own_booking: false,
            is_unproven: false,
            is_able: false,
            rest: Duration::ZERO,
            timer: ShortTimer::new()?,
            now_us: 0,
            stored_marks: Marks::default(),
            refused_in_a_row: 0,
            unwritable: None,
            counters: Counters::new(),
        };
        Ok((lane, handle))
    }

    /// Serves until `shutdown`, then finishes what is queued.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let is_following = !self.role.is_active();
            let able = if is_following { self.able_to_follow().await } else { self.able_to_write().await };
            if let Err(error) = able {
                self.report_unreachable(&error);
                self.refuse_waiting(Reason::Unavailable, &error.to_string());
                let pause = self.pause_after(&error);
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(pause) => continue,
                }
            }
            self.refused_in_a_row = 0;
            self.shared.set_state(LaneState::Serving);
            self.gate.set_writes(Ok(()));
            // A follower waits for another node's fold and accepts nothing meanwhile.
            if !is_following && !self.has_room().await {
                metrics::counter!(m::LANE_QUEUE_FULL).increment(1);
                self.refuse_waiting(Reason::Overloaded, "the fold has to catch up with what is committed");
                if shutdown.is_cancelled() {
                    break;
                }
                continue;
            }
            let (shared, tail, role) = (Arc::clone(&self.shared), self.tail.clone(), self.role.clone());
            let next = tokio::select! {
                biased;
                () = tail.wait_until_lane_must_look() => continue,
                next = self.queue.next() => next,
                () = shared.wait_until_outpaced() => {
                    if let Err(error) = self.refresh().await {
                        tracing::warn!(%error, "cannot catch up with another node of the shard");
                        self.disconnect().await;
                    }
                    continue;
                }
                () = role.wait_until_not(!is_following) => continue,
                () = tokio::time::sleep(FOLLOW_EVERY), if is_following => continue,
                () = shutdown.cancelled() => None,
            };
            let Some(first) = next else { break };
            if is_following {
                // Only traffic brings work. The node catches up and opens the session that writes before it carries the work out.
                self.role.use_now();
                // The fold of a follower rests, also while its tail is full. Without it, no commit could follow.
                self.tail.want_fold();
                let work = self.queue.gather(first);
                self.carry_out(work).await;
                continue;
            }
            // Calls that have arrived together with this one are read first, and their operations go into the same commit.
            tokio::task::yield_now().await;
            let work = self.queue.gather(first);
            self.carry_out_ahead(work).await;
            let rest = std::mem::take(&mut self.rest);
            if !rest.is_zero() {
                self.timer.sleep(rest).await;
            }
        }
        self.shared.set_state(LaneState::Draining);
        self.queue.close();
        while let Some(first) = self.queue.next().await {
            let work = self.queue.gather(first);
            self.carry_out(work).await;
        }
        self.store.close().await;
    }

    // === batches ===

    /// Carries out a batch, and further ones for as long as large ones wait: the next is decided while the last commits.
    async fn carry_out_ahead(&mut self, work: Work) {
        let Some(mut pending) = self.decide_and_send(work).await else { return };
        loop {
            let mut next = tokio::select! {
                biased;
                done = &mut pending.done => return self.conclude(pending, done).await,
                next = self.queue.next_large_batch(), if !self.tail.is_full() && !self.tail.stops_lane() => next,
            };
            // The commit task of the batch on its way sends its message first.
            tokio::task::yield_now().await;
            let mut ahead = self.decide_ahead(&mut next).await;
            let done = (&mut pending.done).await;
            if done.is_err()
                && let Some(decided) = ahead.take()
            {
                self.accounts.revert(decided.undo);
            }
            self.conclude(pending, done).await;
            let following = match ahead {
                Some(decided) => Some(self.send_decided(next, decided)),
                None => self.decide_and_send(next).await,
            };
            match following {
                Some(following) => pending = following,
                None => return,
            }
        }
    }

    /// Decides a batch and sends it. `None`: the batch has its answers already.
    async fn decide_and_send(&mut self, mut work: Work) -> Option<PendingCommit> {
        let Some(group) = work.next_group() else {
            self.finish(work);
            return None;
        };
        match self.decide(&work, group.clone()).await {
            Ok(decided) => Some(self.send_decided(work, decided)),
            Err(error) => {
                self.recover(&mut work, &group, error.into(), &mut Tries::default()).await;
                self.carry_out(work).await;
                None
            }
        }
    }

    /// Decides a batch on a batch that is not committed yet. `None`: the decision has to wait for the commit.
    async fn decide_ahead(&mut self, work: &mut Work) -> Option<Decided> {
        let group = work.next_group()?;
        if self.careful || load::reads_journal(group.iter().map(|index| work.operation(*index))) {
            return None;
        }
        // An error occurs again after the commit, and is dealt with then.
        self.decide(work, group).await.ok()
    }

    /// Sends a decided batch.
    fn send_decided(&mut self, work: Work, decided: Decided) -> PendingCommit {
        let done = self.send_commit(&decided);
        PendingCommit { work, decided, since: Instant::now(), done }
    }

    fn send_commit(&mut self, decided: &Decided) -> Pin<Box<dyn Future<Output = Result<(), CommitFailure>> + Send>> {
        let message = self.store.encode(&decided.append());
        if let Some(link) = &mut self.link {
            link.ahead.next_position = decided.effects.next_position.0;
        }
        self.reserved_ahead = decided.effects.bookings.iter().filter_map(fold::reserved).collect();
        self.settled_ahead = decided.effects.bookings.iter().filter_map(fold::settled).collect();
        let store = Arc::clone(&self.store);
        let steps = steps_of_batch(&decided.effects.bookings);
        let commit = async move { durable_steps(&steps, interrupted, store.commit(message)).await };
        if decided.group.len() < LARGE_BATCH {
            return Box::pin(commit);
        }
        // A task of its own, so that the message leaves while the next batch is decided.
        let commit = self.tasks.spawn("commit", commit);
        Box::pin(async move {
            commit.await.unwrap_or_else(|_| {
                let error = StoreError::Corrupt("the commit of a batch failed".to_owned());
                Err(CommitFailure { error, in_doubt: true })
            })
        })
    }

    /// Answers a batch that is committed, or carries it out again.
    async fn conclude(&mut self, pending: PendingCommit, done: Result<(), CommitFailure>) {
        let PendingCommit { mut work, decided, since, .. } = pending;
        work.note(&decided.group, || decided.attempt(since, &done));
        match done {
            Ok(()) => {
                let group = decided.group.clone();
                let outcomes = self.committed(decided, since.elapsed());
                work.answer(&group, outcomes);
                // What was left out of the batch, because its deadline had passed, has no answer yet.
                self.carry_out(work).await;
            }
            Err(failure) => {
                self.accounts.revert(decided.undo);
                if failure.in_doubt {
                    work.doubt(&decided.group);
                }
                // `next_group` answers the operations whose deadline has passed. Without this call, a split of the batch would lose them.
                let _ = work.next_group();
                self.recover(&mut work, &decided.group, failure, &mut Tries::default()).await;
                self.carry_out(work).await;
            }
        }
    }

    /// Carries out a batch until each of its operations has an answer, one transaction after the other.
    async fn carry_out(&mut self, mut work: Work) {
        let mut tries = Tries::default();
        while let Some(group) = work.next_group() {
            if let Err(error) = self.able_to_write().await {
                self.report_unreachable(&error);
                self.refuse_waiting(Reason::Unavailable, &error.to_string());
                if work.refuse_certain(Reason::Unavailable, &error.to_string()) {
                    continue;
                }
                // If no retry can succeed, because the shard is damaged, what is in doubt is answered as such.
                if error.remedy() == Remedy::Report {
                    work.give_up(&group, &error.to_string());
                } else {
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
                continue;
            }
            match self.attempt(&mut work, &group).await {
                Ok((decided, outcomes)) => {
                    work.answer(&decided, outcomes);
                    tries = Tries::default();
                }
                Err(failure) => self.recover(&mut work, &group, failure, &mut tries).await,
            }
        }
        self.finish(work);
    }

    /// Decides a group and writes it in one transaction. Returns the operations that were decided, because those whose deadline has passed
    /// are left out, and what became of each.
    async fn attempt(
        &mut self,
        work: &mut Work,
        group: &[usize],
    ) -> Result<(Vec<usize>, Vec<Outcome>), CommitFailure> {
        let decided = self.decide(work, group.to_vec()).await?;
        let group = decided.group.clone();
        let outcomes =
            self.write(decided, |decided, since, done| work.note(&decided.group, || decided.attempt(since, done)));
        Ok((group, outcomes.await?))
    }

    /// Writes a decided batch, and waits until it is committed.
    async fn write(
        &mut self,
        decided: Decided,
        note: impl FnOnce(&Decided, Instant, &Result<(), CommitFailure>),
    ) -> Result<Vec<Outcome>, CommitFailure> {
        let since = Instant::now();
        let done = self.send_commit(&decided).await;
        note(&decided, since, &done);
        match done {
            Ok(()) => Ok(self.committed(decided, since.elapsed())),
            Err(failure) => {
                self.accounts.revert(decided.undo);
                Err(failure)
            }
        }
    }

    /// Takes in what is committed. Returns the outcomes, which may be answered now.
    fn committed(&mut self, decided: Decided, commit: Duration) -> Vec<Outcome> {
        let replays = decided.replays();
        let Decided { group, outcomes, from, effects, suspects, changed, number, marks, scales, begun, .. } = decided;
        for booking in &effects.bookings {
            self.recent_ids.remember(booking);
        }
        let state = ShardState { next_position: effects.next_position.0, ..from };
        self.tail.commit(&effects.bookings, changed, number);
        self.counters.count(&effects.bookings);
        self.reserved_ahead.clear();
        self.settled_ahead.clear();
        self.shared.committed(group.len(), commit, effects.next_position);
        if let Some(link) = &mut self.link {
            link.state = state;
            self.believed = Some((state, link.timeline));
            self.gate.committed(mark_of(&state, link.timeline));
            if !scales.is_empty() {
                link.scales.extend(scales.into_iter().map(|(asset, scale)| (asset.to_string(), scale)));
                self.shared.set_scales(&link.scales);
            }
        }
        for (number, mark) in marks.iter() {
            self.stored_marks.observe(number, mark);
            self.gate.observe_peer(number, mark);
        }
        self.needs_own_booking &= effects.is_empty();
        self.is_unproven &= effects.is_empty();
        self.rest = match group.len() {
            2..NO_REST_FROM => commit.min(LONGEST_REST),
            _ => Duration::ZERO,
        };
        // Replays arrive in groups: stay careful while they do.
        self.careful &= replays > suspects;
        metrics::counter!(m::LANE_REPLAYS).increment(replays as u64);
        metrics::histogram!(m::LANE_COMMIT_SECONDS).record(commit);
        metrics::histogram!(m::LANE_BATCH_OPERATIONS).record(count_as_f64(group.len()));
        metrics::histogram!(m::LANE_BATCH_SECONDS).record(begun.elapsed());
        outcomes
    }

    /// Sends the answers of a batch.
    fn finish(&mut self, work: Work) {
        self.accounts.evict(self.tail.folded_batch());
        self.shared.set_cached(self.accounts.len());
        self.shared.release(work.weight());
        work.send_replies();
    }

    /// Prepares for another attempt at a group that failed, or gives the group up.
    async fn recover(&mut self, work: &mut Work, group: &[usize], failure: CommitFailure, tries: &mut Tries) {
        let CommitFailure { error, in_doubt } = failure;
        if let Some(link) = &mut self.link {
            link.ahead = link.state;
        }
        self.reserved_ahead.clear();
        self.settled_ahead.clear();
        if in_doubt {
            work.doubt(group);
        }
        let mut remedy = error.remedy();
        metrics::counter!(m::LANE_ROLLBACKS, "remedy" => remedy.as_str()).increment(1);
        match remedy {
            Remedy::Redecide => tries.redecisions += 1,
            Remedy::CatchUp => {
                tries.lost_races += 1;
                metrics::counter!(m::LANE_FENCE_LOSSES).increment(1);
            }
            Remedy::Reconnect | Remedy::Report => {}
        }
        if tries.redecisions > MAX_REDECISIONS || tries.lost_races > MAX_LOST_RACES {
            remedy = Remedy::Report;
            *tries = Tries::default();
        }
        match remedy {
            Remedy::Reconnect => {
                tracing::warn!(%error, in_doubt, "lost the database session; the batch will be run again");
                self.careful = true;
                self.disconnect().await;
                if error.is_refused_write() {
                    // The database answers and refuses writes; it would refuse this batch on every retry.
                    let cause = error.to_string();
                    self.gate.set_writes(Err(cause.clone()));
                    work.refuse_certain(Reason::Unavailable, &cause);
                    self.unwritable = Some(cause);
                }
            }
            Remedy::Redecide => self.careful = true,
            Remedy::CatchUp => {
                self.careful = true;
                // The next `able_to_write` reports why the refresh failed.
                if self.refresh().await.is_err() {
                    self.disconnect().await;
                }
            }
            Remedy::Report => {
                if in_doubt {
                    // The session is gone, and its transaction may have been carried out.
                    self.careful = true;
                    self.disconnect().await;
                }
                if !work.isolate(group) {
                    tracing::error!(%error, "an operation cannot be carried out");
                    self.shared.set_last_error(&error);
                    work.give_up(group, &error.to_string());
                }
            }
        }
    }

    /// Whether the tail has room. Waits for the fold if it has none.
    async fn has_room(&self) -> bool {
        let room = async {
            loop {
                let progress = self.tail.progress();
                if !self.tail.is_full() {
                    return;
                }
                progress.await;
            }
        };
        tokio::time::timeout(FOLD_PATIENCE, room).await.is_ok()
    }

    /// The pause before the next attempt to become able to write. An unreachable database is tried again every 100 ms, because another
    /// server may take over within a second. A database that answers but refuses writes is tried at growing intervals, up to one second.
    fn pause_after(&mut self, error: &StoreError) -> Duration {
        if !error.is_refused_write() && !matches!(error, StoreError::Refused(_)) {
            self.refused_in_a_row = 0;
            return RECONNECT_PAUSE;
        }
        let pause = RECONNECT_PAUSE * 2_u32.saturating_pow(self.refused_in_a_row);
        self.refused_in_a_row = (self.refused_in_a_row + 1).min(16);
        pause.min(REFUSED_PAUSE)
    }

    fn report_unreachable(&self, error: &StoreError) {
        self.shared.set_state(LaneState::Recovering);
        self.shared.set_last_error(error);
        self.gate.set_writes(Err(error.to_string()));
    }

    /// Refuses every waiting operation; none of them was part of a transaction.
    fn refuse_waiting(&mut self, reason: Reason, why: &str) {
        while let Some(mut work) = self.queue.try_next_batch() {
            work.refuse_certain(reason, why);
            self.shared.release(work.weight());
            work.send_replies();
        }
    }
}

fn mark_of(state: &ShardState, timeline: i64) -> Mark {
    Mark { incarnation: state.incarnation, timeline, position: state.next_position, ..Mark::default() }
}

/// What the lane is told of a commit that a test interrupts.
fn interrupted(edge: Edge) -> CommitFailure {
    CommitFailure { error: StoreError::NotOpen, in_doubt: edge == Edge::After }
}

#[allow(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 operations")]
fn count_as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
