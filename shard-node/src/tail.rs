//! The tail: what is committed and not yet folded, and the sagas under way.
//!
//! The lane adds to the tail after each commit and before it answers. Reads lay the tail over the rows of the database.
//! The fold takes the tail, writes it to the projections, and drops it then: until the fold has finished, every account
//! whose row may be old is here.

mod sagas;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ledger::{
    Account, AccountId, Booking, BookingKind, Position, TransferKey,
    accounts::{BatchNumber, Changed},
    batch::UnderWay,
    fold::{self, SagaChange},
    history::StoredTransfer,
    operation::Operation,
};
use shard_map::SlotRange;
use tokio::{sync::Notify, time::Instant};

use self::sagas::OpenSagas;
pub use self::sagas::{DueSagas, OpenSaga, SagaTotals};
use crate::store::{FoldStep, Folded, FoldedAccount, StoreError, Waypoint};

/// Shared by the lane, the fold and the reads.
#[derive(Debug, Clone)]
pub struct Tail(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    bounds: Size,
    /// Wakes the fold before its time.
    fold_now: Notify,
    /// A move of slots waits for the fold.
    fold_is_wanted: AtomicBool,
    /// Wakes the tasks that wait for a commit or for the end of a fold.
    progress: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The highest position that this node knows to be committed.
    committed: Position,
    /// The projections reach exactly to here.
    folded: Position,
    incarnation: i64,
    /// The timeline of the server that the tail was loaded from.
    timeline: i64,
    /// Folds that have finished, and loads of the whole tail. A read that sees it unchanged has missed nothing.
    generation: u64,
    /// The last batch whose accounts are all folded.
    folded_batch: BatchNumber,
    /// When everything was folded that was committed by then; `None` before the first booking.
    folded_at: Option<Instant>,
    current: Part,
    /// What the fold is writing.
    folding: Option<Arc<Part>>,
    /// When the fold took it.
    folding_since: Option<Instant>,
    /// The last positions and numbers of the batches that another node committed, beyond the folded position.
    followed: VecDeque<(Position, BatchNumber)>,
    sagas: OpenSagas,
    /// The projections are not where this tail expects them, because another node has folded or another server is served. The
    /// lane must load the tail again.
    is_outdated: bool,
    /// Why the fold has stopped for good, if it has.
    damaged: Option<String>,
}

/// A stretch of the journal.
#[derive(Debug, Clone, Default)]
struct Part {
    accounts: HashMap<AccountId, FoldedAccount, foldhash::fast::RandomState>,
    waypoints: HashMap<AccountId, Vec<Waypoint>>,
    /// First bookings of the sagas that began.
    begun: Vec<Position>,
    /// First bookings of the sagas that ended, each with the booking that ended it.
    ended: Vec<(Position, Position)>,
    bookings: usize,
    /// The last position and the last batch of the stretch.
    to: Position,
    batch: BatchNumber,
}

/// The size of a tail, or a bound on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bookings that are not folded. A starting node reads them.
    pub bookings: usize,
    /// Accounts whose rows are older than the journal. They stay in memory.
    pub accounts: usize,
}

impl Size {
    fn reaches(self, bound: Self) -> bool {
        self.bookings >= bound.bookings || self.accounts >= bound.accounts
    }

    fn half(self) -> Self {
        Self { bookings: self.bookings / 2, accounts: self.accounts / 2 }
    }
}

/// What the fold has to write.
#[derive(Debug)]
pub struct Fold {
    part: Arc<Part>,
    pub step: FoldStep,
}

impl Fold {
    /// The accounts to write, in the order of their ids.
    pub fn ids_in_order(&self) -> Vec<AccountId> {
        let mut ids: Vec<AccountId> = self.part.accounts.keys().cloned().collect();
        ids.sort_unstable();
        ids
    }

    /// The newest committed states of these accounts.
    pub fn states<'f>(&'f self, ids: &'f [AccountId]) -> Vec<&'f FoldedAccount> {
        ids.iter().filter_map(|id| self.part.accounts.get(id)).collect()
    }
}

/// What the tail knows of one account.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    /// The newest committed state; `None` if the row is as new.
    pub account: Option<Account>,
    /// Waypoints that are not in the database yet, by version.
    pub waypoints: Vec<Waypoint>,
    pub generation: u64,
}

impl Tail {
    /// An empty tail. The fold runs early when half of `bounds` is reached; the lane waits for the fold when `bounds` are.
    pub fn new(bounds: Size) -> Self {
        let (state, fold_now, fold_is_wanted, progress) = Default::default();
        Self(Arc::new(Shared { state, bounds, fold_now, fold_is_wanted, progress }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === the lane ===

    /// Begins anew from what the projections hold.
    ///
    /// # Errors
    /// When a saga's first booking is damaged.
    pub fn reset(
        &self,
        folded: Folded,
        incarnation: i64,
        timeline: i64,
        batch: BatchNumber,
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        let generation = state.generation + 1;
        let mut sagas = OpenSagas::default();
        for first in folded.sagas {
            sagas.insert(key_of(&first)?, OpenSaga::new(first));
        }
        *state = State {
            committed: folded.position,
            folded: folded.position,
            incarnation,
            timeline,
            generation,
            folded_batch: batch.saturating_sub(1),
            current: Part { to: folded.position, batch: batch.saturating_sub(1), ..Part::default() },
            sagas,
            ..State::default()
        };
        drop(state);
        // A read may wait for a position that the projections include.
        self.0.progress.notify_waiters();
        Ok(())
    }

    /// Takes in a batch that is committed: its bookings, and the accounts that it changed.
    pub fn commit(&self, bookings: &[Booking], changed: Vec<Changed>, batch: BatchNumber) {
        let mut state = self.state();
        if state.size().bookings == 0 {
            state.folded_at = Some(Instant::now());
        }
        let State { current, sagas, .. } = &mut *state;
        for Changed { after: account, base_version, base_head } in changed {
            if let Some(dirty) = current.accounts.get_mut(&account.id) {
                dirty.account = account;
                continue;
            }
            let id = account.id.clone();
            let dirty = FoldedAccount { account, base_version, base_head, attributes_changed: false };
            current.accounts.insert(id, dirty);
        }
        for booking in bookings {
            current.take(booking);
            match fold::saga_change(booking) {
                Some(SagaChange::Begun(key)) => {
                    current.begun.push(booking.position);
                    sagas.insert(key, OpenSaga::new(booking.clone()));
                }
                Some(SagaChange::Ended(key)) => {
                    if let Some(saga) = sagas.remove(&key) {
                        current.ended.push((saga.first.position, booking.position));
                    }
                }
                None => {}
            }
            if let Some(erasure) = booking.erasure() {
                sagas.erase(&erasure);
            }
        }
        current.bookings += bookings.len();
        current.batch = batch;
        if let Some(last) = bookings.last() {
            current.to = current.to.max(last.position);
            state.committed = state.committed.max(last.position);
        }
        let size = state.size();
        drop(state);
        if size.reaches(self.0.bounds.half()) {
            self.0.fold_now.notify_one();
        }
        self.0.progress.notify_waiters();
    }

    /// Takes in what another node has committed: as [`Tail::commit`] does, and remembers where the batch ends, for [`Tail::advance`].
    pub fn follow(&self, bookings: &[Booking], changed: Vec<Changed>, batch: BatchNumber) {
        if let Some(last) = bookings.last() {
            self.state().followed.push_back((last.position, batch));
        }
        self.commit(bookings, changed, batch);
    }

    /// Another node has folded up to a position that this tail has reached: what is folded leaves the tail. While this node folds,
    /// nothing changes; its fold will find that it was overtaken.
    pub fn advance(&self, folded: Position) {
        let mut state = self.state();
        if state.folding.is_some() || state.is_outdated || folded <= state.folded || folded > state.committed {
            return;
        }
        state.current.drop_up_to(folded);
        state.folded = folded;
        // The other node took what it has folded some time ago. How long ago, this node does not know.
        state.folded_at = Some(Instant::now());
        state.generation += 1;
        while let Some((position, batch)) = state.followed.front().copied()
            && position <= folded
        {
            state.folded_batch = state.folded_batch.max(batch);
            state.followed.pop_front();
        }
        drop(state);
        self.0.progress.notify_waiters();
    }

    /// Takes in sagas that came with slots, by their first bookings.
    ///
    /// # Errors
    /// When a saga's first booking is damaged.
    pub fn add_sagas(&self, firsts: Vec<Booking>) -> Result<(), StoreError> {
        let mut state = self.state();
        for first in firsts {
            let key = key_of(&first)?;
            if state.sagas.get(&key).is_none() {
                state.sagas.insert(key, OpenSaga::new(first));
            }
        }
        Ok(())
    }

    /// Drops the sagas whose payers are in slots that this shard does not own. They go on elsewhere.
    pub fn retain_sagas(&self, owns: impl Fn(&AccountId) -> bool) {
        self.state().sagas.retain(owns);
    }

    /// Rows of accounts were read that may be newer than the tail. A read that took an older row before must take it again.
    pub fn rows_were_read(&self) {
        self.state().generation += 1;
    }

    /// The sagas under way among `keys`.
    ///
    /// # Errors
    /// When a saga's first booking is damaged.
    pub fn sagas<'k>(
        &self,
        keys: impl Iterator<Item = &'k TransferKey>,
    ) -> Result<HashMap<TransferKey, StoredTransfer>, StoreError> {
        let state = self.state();
        let mut found = HashMap::new();
        for key in keys {
            if let Some(saga) = state.sagas.get(key) {
                found.insert(key.clone(), StoredTransfer::of(&saga.first, None, None)?);
            }
        }
        Ok(found)
    }

    /// Which of these accounts have a transfer in flight to another shard.
    pub fn accounts_in_flight(&self, accounts: &[AccountId]) -> Vec<AccountId> {
        let state = self.state();
        accounts.iter().filter(|account| state.sagas.are_of(account)).cloned().collect()
    }

    /// The reserved money that may come back to the accounts of these operations.
    pub fn under_way<'o>(&self, operations: impl Iterator<Item = &'o Operation>) -> HashMap<AccountId, UnderWay> {
        let (state, mut found) = (self.state(), HashMap::new());
        if state.sagas.len() == 0 {
            return found;
        }
        for operation in operations {
            operation.for_each_account(|account| {
                if !found.contains_key(account)
                    && let Some(under_way) = state.sagas.under_way(account)
                {
                    found.insert(account.clone(), under_way);
                }
            });
        }
        found
    }

    /// The last batch whose accounts are all folded.
    pub fn folded_batch(&self) -> BatchNumber {
        self.state().folded_batch
    }

    /// Whether the lane must load the tail again, because the projections are not where the tail expects them.
    pub fn is_outdated(&self) -> bool {
        self.state().is_outdated
    }

    /// Why the fold has stopped for good, if it has.
    pub fn damaged(&self) -> Option<String> {
        self.state().damaged.clone()
    }

    /// Whether the fold has found that the lane must load the tail again, or must stop.
    pub fn stops_lane(&self) -> bool {
        let state = self.state();
        state.is_outdated || state.damaged.is_some()
    }

    /// Resolves when the lane must load the tail again, or must stop.
    pub async fn wait_until_lane_must_look(&self) {
        loop {
            let progress = self.progress();
            if self.stops_lane() {
                return;
            }
            progress.await;
        }
    }

    pub fn size(&self) -> Size {
        self.state().size()
    }

    /// For how long something has been committed and not folded; zero while everything is folded.
    pub fn fold_lag(&self) -> Duration {
        let state = self.state();
        if state.size().bookings == 0 {
            return Duration::ZERO;
        }
        state.folded_at.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Whether the lane has to wait for the fold.
    pub fn is_full(&self) -> bool {
        self.size().reaches(self.0.bounds)
    }

    /// Resolves after the next commit or fold. Ask before looking at the state.
    pub fn progress(&self) -> impl Future<Output = ()> + '_ {
        self.0.progress.notified()
    }

    /// Waits until everything up to a position is known.
    pub async fn reach(&self, position: Position) {
        loop {
            let progress = self.progress();
            if self.committed() >= position {
                return;
            }
            progress.await;
        }
    }

    // === the fold ===

    /// Resolves when the fold has to run before its time, because much is not folded or a move of slots waits for the fold.
    pub async fn wait_until_fold_is_wanted(&self) {
        self.0.fold_now.notified().await;
    }

    /// Makes the fold run soon.
    pub fn want_fold(&self) {
        self.0.fold_is_wanted.store(true, Relaxed);
        self.0.fold_now.notify_one();
    }

    /// Whether a fold has to run now: the tail is half full, or a fold was wanted since the last call.
    pub fn has_to_fold(&self) -> bool {
        self.0.fold_is_wanted.swap(false, Relaxed) || self.is_half_full()
    }

    /// Takes everything that is committed and not folded. `None`: there is nothing, or a fold is under way.
    pub fn begin_fold(&self) -> Option<Fold> {
        let mut state = self.state();
        if state.folding.is_some() || state.current.to <= state.folded || state.is_outdated || state.damaged.is_some()
        {
            return None;
        }
        let empty = Part { to: state.current.to, batch: state.current.batch, ..Part::default() };
        let part = std::mem::replace(&mut state.current, empty);
        // A saga that began and ended in the stretch never gets a row.
        let mut begun = part.begun.clone();
        let mut ended: Vec<Position> = part.ended.iter().map(|(first, _)| *first).collect();
        begun.sort_unstable();
        ended.sort_unstable();
        let both: Vec<Position> =
            ended.iter().copied().filter(|position| begun.binary_search(position).is_ok()).collect();
        begun.retain(|position| both.binary_search(position).is_err());
        ended.retain(|position| both.binary_search(position).is_err());
        let step = FoldStep {
            incarnation: state.incarnation,
            timeline: state.timeline,
            from: state.folded,
            to: part.to,
            waypoints: part.waypoints.values().flatten().cloned().collect(),
            begun,
            ended,
        };
        let part = Arc::new(part);
        state.folding = Some(Arc::clone(&part));
        state.folding_since = Some(Instant::now());
        Some(Fold { part, step })
    }

    /// Whether the fold has to hurry.
    pub fn is_half_full(&self) -> bool {
        self.size().reaches(self.0.bounds.half())
    }

    /// The fold is in the database. Returns what it wrote. A large fold takes long to free.
    pub fn complete_fold(&self) -> Option<impl Send + use<>> {
        let mut state = self.state();
        let part = state.folding.take();
        if let Some(part) = &part {
            state.folded = part.to;
            state.folded_batch = part.batch;
            state.folded_at = state.folding_since.take();
            state.generation += 1;
            while state.followed.front().is_some_and(|(position, _)| *position <= part.to) {
                state.followed.pop_front();
            }
        }
        drop(state);
        self.0.progress.notify_waiters();
        part
    }

    /// The fold failed: what it took is not folded.
    pub fn fold_failed(&self) {
        let mut state = self.state();
        let Some(part) = state.folding.take() else { return };
        let mut part = Arc::unwrap_or_clone(part);
        let newer = std::mem::take(&mut state.current);
        part.extend(newer);
        state.current = part;
    }

    /// The projections are not where the tail expects them: another node has folded, or another server is served.
    pub fn set_outdated(&self) {
        self.fold_failed();
        self.state().is_outdated = true;
        self.0.progress.notify_waiters();
    }

    pub fn set_damaged(&self, why: &str) {
        self.fold_failed();
        self.state().damaged = Some(why.to_owned());
        self.0.progress.notify_waiters();
    }

    // === reads ===

    /// What the tail knows of an account.
    pub fn overlay(&self, id: &AccountId) -> Overlay {
        let state = self.state();
        let of_account = state.parts().filter_map(|part| part.waypoints.get(id));
        let mut waypoints: Vec<Waypoint> = of_account.flatten().cloned().collect();
        waypoints.sort_unstable_by_key(|waypoint| waypoint.version);
        Overlay { account: state.newest(id).cloned(), waypoints, generation: state.generation }
    }

    /// The newest committed states of those of these accounts that are not folded, with the generation.
    pub fn overlays<'i>(&self, ids: impl Iterator<Item = &'i AccountId>) -> (HashMap<AccountId, Account>, u64) {
        let state = self.state();
        let newest = ids.filter_map(|id| Some((id.clone(), state.newest(id)?.clone())));
        (newest.collect(), state.generation)
    }

    /// Of these accounts, the positions of the oldest waypoints after a time that are not in the database yet, with the generation.
    pub fn waypoints_after<'i>(
        &self,
        ids: impl Iterator<Item = &'i AccountId>,
        at_us: i64,
    ) -> (HashMap<AccountId, Position>, u64) {
        let state = self.state();
        let oldest = |id| {
            let of_account = state.parts().filter_map(|part| part.waypoints.get(id)).flatten();
            of_account.filter(|waypoint| waypoint.at_us > at_us).min_by_key(|waypoint| waypoint.version)
        };
        let found = ids.filter_map(|id| Some((id.clone(), oldest(id)?.position))).collect();
        (found, state.generation)
    }

    /// The generation, and the position that the projections reach. A read looks at both before it reads rows.
    pub fn generation(&self) -> (u64, Position) {
        let state = self.state();
        (state.generation, state.folded)
    }

    /// The highest position that this node knows to be committed.
    pub fn committed(&self) -> Position {
        self.state().committed
    }

    /// The position that the projections reach.
    pub fn folded_position(&self) -> Position {
        self.state().folded
    }

    // === sagas ===

    /// Sagas whose next attempt is due, oldest first, at most `limit`. Their next attempts are pushed out, so that two
    /// coordinators seldom pick the same one. Attempts are counted in memory only: they decide nothing.
    ///
    /// Sagas that pay an account in one of the slots `left_out` are counted instead, and stay due: an attempt could not succeed.
    pub fn claim_due(&self, now_us: i64, limit: usize, left_out: &[SlotRange]) -> DueSagas {
        self.state().sagas.claim_due(now_us, limit, left_out)
    }

    /// Whether the next attempt of a saga is due at or before `at_us`.
    pub fn has_due_saga(&self, at_us: i64) -> bool {
        self.state().sagas.iter().any(|saga| saga.is_due(at_us))
    }

    /// Sagas that began at or before `before_us`, oldest first.
    pub fn list_sagas(&self, before_us: i64, limit: usize) -> Vec<OpenSaga> {
        let state = self.state();
        let mut sagas: Vec<&OpenSaga> = state.sagas.iter().filter(|saga| saga.first.at_us <= before_us).collect();
        sagas.sort_unstable_by_key(|saga| saga.first.position);
        sagas.into_iter().take(limit).cloned().collect()
    }

    /// Makes the sagas of one id due at once.
    pub fn retry_now(&self, id: ledger::TransferId, now_us: i64) {
        self.state().sagas.retry_now(id, now_us);
    }

    /// Attempts and next attempt of a saga under way.
    pub fn attempts(&self, key: &TransferKey) -> Option<(u32, i64)> {
        self.state().sagas.get(key).map(|saga| (saga.attempts, saga.next_attempt_us))
    }

    /// The sagas under way, summed up.
    pub fn saga_totals(&self) -> SagaTotals {
        self.state().sagas.totals()
    }

    pub fn count_sagas(&self) -> usize {
        self.state().sagas.len()
    }
}

impl State {
    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.current).chain(self.folding.as_deref())
    }

    fn size(&self) -> Size {
        Size {
            bookings: self.parts().map(|part| part.bookings).sum(),
            accounts: self.parts().map(|part| part.accounts.len()).sum(),
        }
    }

    /// The newest committed state of an account that is not folded.
    fn newest(&self, id: &AccountId) -> Option<&Account> {
        self.parts().find_map(|part| part.accounts.get(id)).map(|dirty| &dirty.account)
    }
}

impl Part {
    /// Takes in what a booking adds, without the states of accounts.
    fn take(&mut self, booking: &Booking) {
        for (_, id, leg) in booking.legs() {
            if fold::is_waypoint(leg.version) {
                let (version, position, at_us) = (leg.version, booking.position, booking.at_us);
                let waypoint = Waypoint { account: id.clone(), version, position, at_us };
                self.waypoints.entry(id.clone()).or_default().push(waypoint);
            }
        }
        if booking.kind == BookingKind::Updated
            && let Some(dirty) = self.accounts.get_mut(&booking.payer)
        {
            dirty.attributes_changed = true;
        }
    }

    /// Drops what the projections contain once they reach `folded`. A state that stays keeps its base: its row may now be later than
    /// the base, which the fold allows for. Accounts in transit always stay. They are few, and their rows are compared by version alone.
    fn drop_up_to(&mut self, folded: Position) {
        self.accounts.retain(|id, dirty| id.is_system() || dirty.account.head > folded);
        self.waypoints.retain(|_, of_account| {
            of_account.retain(|waypoint| waypoint.position > folded);
            !of_account.is_empty()
        });
        self.begun.retain(|first| *first > folded);
        self.ended.retain(|(_, end)| *end > folded);
        let left = usize::try_from(self.to.0.saturating_sub(folded.0)).unwrap_or(0);
        self.bookings = self.bookings.min(left);
    }

    /// Appends a later stretch.
    fn extend(&mut self, newer: Self) {
        for (id, dirty) in newer.accounts {
            match self.accounts.get_mut(&id) {
                Some(older) => {
                    older.account = dirty.account;
                    older.attributes_changed |= dirty.attributes_changed;
                }
                None => drop(self.accounts.insert(id, dirty)),
            }
        }
        for (id, waypoints) in newer.waypoints {
            self.waypoints.entry(id).or_default().extend(waypoints);
        }
        self.begun.extend(newer.begun);
        self.ended.extend(newer.ended);
        self.bookings += newer.bookings;
        self.to = newer.to;
        self.batch = newer.batch;
    }
}

fn key_of(first: &Booking) -> Result<TransferKey, StoreError> {
    first.key().ok_or_else(|| StoreError::Corrupt(format!("booking {} of a saga has no id", first.position.0)))
}
