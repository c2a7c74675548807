//! A shard's database in memory, for tests of the lane and the fold, and for simulations.
//!
//! Several [`Memory`] share one [`Database`], as several nodes do. `account` has only what openings and the fold write;
//! `saga`, `waypoint` and `folded_position` have only what the last step of a fold writes. A commit passes the fence and
//! the unique key that migration 0001 defines. Tests order faults: a commit loses its answer, stalls or meets a crash, and
//! a fold stops between two steps.

#![allow(
    clippy::unwrap_used,
    reason = "only tests and simulations use this module: a broken invariant ends them with a panic"
)]

#[cfg(feature = "simulation")]
pub mod moves;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use identity::AssetScales;
use ledger::{
    Account, AccountId, AssetCode, Booking, BookingKind, Hold, HoldKey, Metadata, Position, TransferId, TransferKey,
    batch::{Effects, Stored},
    booking::{Erasure, Role},
    fold,
    history::Original,
    in_memory::{Folded as Projections, Journal},
    operation::CreateAccount,
};
use pg_session::{ServerMessage, Severity};
use shard_database::ShardState;
use shard_map::{SlotRange, slot_of};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::{
    Append, CommitFailure, FoldStep, Folded, FoldedAccount, Opened, Store, StoreError, Waypoint,
    bookings::OfId,
    ownership::Ownership,
    read::{Owned, Reached},
};
use crate::gate::Gate;

/// The timeline of the server.
pub const TIMELINE: i64 = 1;

/// The database that nodes share. Cheap to clone.
#[derive(Clone)]
pub struct Database(Arc<Mutex<Tables>>);

#[derive(Clone)]
struct Tables {
    ownership: Arc<Ownership>,
    journal: Journal,
    accounts: BTreeMap<AccountId, Account>,
    folded_position: Position,
    /// Positions of first bookings.
    sagas: BTreeSet<Position>,
    waypoints: BTreeMap<(AccountId, i64), Waypoint>,
    scales: AssetScales,
    #[cfg(feature = "simulation")]
    moves: BTreeMap<Uuid, super::moves::MoveRow>,
    /// The newest shard map that the shard was given, and its version.
    map: (String, i64),
    /// The lane's lock. A start of the server makes a new one: the sessions that hold or want the old one are broken.
    lane: Arc<tokio::sync::Mutex<()>>,
    ownership_version: i64,
    incarnation: i64,
    is_read_only: bool,
    is_down: bool,
    /// A crash is followed by a restart at once.
    restarts_at_once: bool,
    /// Starts of the server. A session from before a start is broken.
    starts: u64,
    /// The state of the random pauses of clients' reads.
    pauses: u64,
}

/// What happens to one of the next commits of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The batch is committed, and the answer is lost.
    LoseAnswer,
    /// The connection breaks before the batch arrives.
    Swallow,
    /// The disk is full: the server refuses the batch.
    Refuse,
    /// Another writer appends a booking first.
    Fence,
    /// The commit waits at the server until [`Memory::release`], and then meets the next fault.
    Stall,
    /// The server crashes before the COMMIT. It is down until [`Database::restart`].
    Crash,
    /// The batch is committed, and the server crashes before it answers.
    CrashAfter,
    /// The batch is committed with a warning.
    Warn,
    /// The batch is committed, and the server says that it is not: what no server does, for tests of audits.
    Deny,
    /// The batch is not committed, and the server says that it is: the same.
    Pretend,
}

/// What happens to one of the next steps of a node's folds. A step is one chunk of accounts, or the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldFault {
    /// So many steps are carried out before.
    pub after: usize,
    /// The step takes effect, and its answer is lost.
    pub is_carried_out: bool,
}

/// A node's sessions on the database.
pub struct Memory {
    database: Database,
    gate: Gate,
    sessions: Mutex<Sessions>,
    faults: Mutex<VecDeque<Fault>>,
    fold_fault: Mutex<Option<FoldFault>>,
    dead_versions_per_row: Mutex<f64>,
    releases: Semaphore,
    /// Commits that have met [`Fault::Stall`] so far.
    stalls: watch::Sender<usize>,
    /// Statements that have read rows of `account`, and those that have read holds, originals and ids.
    account_reads: watch::Sender<usize>,
    journal_reads: AtomicU64,
    /// A seed of random pauses before and after each statement; 0: none.
    pauses: AtomicU64,
    /// How long each read takes.
    read_time: Mutex<Duration>,
}

/// Each holds the start of the server that it belongs to.
#[derive(Default)]
struct Sessions {
    reader: Option<u64>,
    writer: Option<u64>,
}

/// A batch as it is sent.
pub struct Message {
    state: ShardState,
    effects: Effects,
    scales: Vec<(AssetCode, u32)>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// The state of random pauses after `state`; never 0.
fn next_pause(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407).max(1)
}

fn pause_of(state: u64) -> Duration {
    Duration::from_millis(((state >> 33) % 8).saturating_sub(4))
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke")
}

/// A statement's ERROR.
fn refused(code: &str, message: &str) -> pg_session::Error {
    pg_session::Error::Statement(Box::new(ServerMessage {
        severity: Severity::Error,
        code: code.to_owned(),
        message: message.to_owned(),
        detail: None,
        hint: None,
        table: None,
        constraint: None,
    }))
}

fn disk_is_full() -> StoreError {
    refused("53100", "could not extend file: No space left on device").into()
}

fn duplicate(what: &str) -> pg_session::Error {
    refused("23505", &format!("duplicate key value violates unique constraint \"{what}\""))
}

impl Database {
    /// An empty shard of number 0.
    #[cfg(test)]
    pub fn new() -> Self {
        Self::of_shard(0, Ownership::of_everything())
    }

    /// An empty shard of this number, which owns these slots.
    pub fn of_shard(number: u16, ownership: Ownership) -> Self {
        let journal = Journal::of_shard(number);
        let folded_position = Position(journal.next_position().0 - 1);
        Self(Arc::new(Mutex::new(Tables {
            ownership: Arc::new(ownership),
            journal,
            accounts: BTreeMap::new(),
            folded_position,
            sagas: BTreeSet::new(),
            waypoints: BTreeMap::new(),
            scales: AssetScales::new(),
            #[cfg(feature = "simulation")]
            moves: BTreeMap::new(),
            map: (String::new(), 0),
            lane: Arc::default(),
            ownership_version: 1,
            incarnation: 1,
            is_read_only: false,
            is_down: false,
            restarts_at_once: false,
            starts: 1,
            pauses: 1,
        })))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.0)
    }

    /// A database of its own with the same content.
    #[cfg(feature = "simulation")]
    pub fn copy(&self) -> Self {
        let tables = Tables { lane: Arc::default(), ..self.tables().clone() };
        Self(Arc::new(Mutex::new(tables)))
    }

    /// The tables, as a connection for reads sees them.
    fn look<T>(&self, look: impl FnOnce(&Tables) -> T) -> Result<T, StoreError> {
        let tables = self.tables();
        if tables.is_down { Err(sqlx::Error::Io(broken()).into()) } else { Ok(look(&tables)) }
    }

    pub fn read_state(&self) -> Result<ShardState, StoreError> {
        self.look(Tables::state)
    }

    /// As [`super::read::shard_map`].
    pub fn read_map(&self) -> Result<(String, i64), StoreError> {
        self.look(|tables| tables.map.clone())
    }

    /// As [`super::read::offer_shard_map`]. A shard without a map takes none.
    pub fn offer_map(&self, text: &str, version: i64) -> Result<(), StoreError> {
        let (_, known) = self.read_map()?;
        if known == 0 {
            return Err(StoreError::NotOpen);
        }
        if version > known {
            self.remember_map(text, version);
        }
        Ok(())
    }

    pub fn remember_map(&self, text: &str, version: i64) {
        self.tables().map = (text.to_owned(), version);
    }

    pub fn read_ownership(&self) -> Result<Arc<Ownership>, StoreError> {
        self.look(|tables| Arc::clone(&tables.ownership))
    }

    /// As [`super::read::due_holds`].
    pub fn due_holds(&self, now_us: i64, limit: i64) -> Result<Vec<(uuid::Uuid, String)>, StoreError> {
        self.look(|tables| {
            let holds = tables.journal.open_holds().iter();
            let mut due: Vec<(i64, uuid::Uuid, String)> = holds
                .filter(|(key, (hold, _))| hold.in_flight.is_none() && tables.ownership.owns(&key.debit))
                .filter_map(|(key, (hold, _))| Some((hold.expires_at_us?, key.id.0, key.debit.to_string())))
                .filter(|(expires_at_us, _, _)| *expires_at_us <= now_us)
                .collect();
            due.sort();
            due.truncate(usize::try_from(limit).unwrap());
            due.into_iter().map(|(_, id, debit)| (id, debit)).collect()
        })
    }

    // === what clients read ===

    /// [`Database::look`], and before and after it the time that a statement takes.
    async fn look_for_client<T>(&self, look: impl FnOnce(&Tables) -> T) -> Result<T, StoreError> {
        self.pause_of_read().await;
        let found = self.look(look);
        self.pause_of_read().await;
        found
    }

    async fn pause_of_read(&self) {
        let pause = {
            let mut tables = self.tables();
            tables.pauses = next_pause(tables.pauses);
            pause_of(tables.pauses)
        };
        tokio::time::sleep(pause).await;
    }

    /// As [`super::read::account`].
    pub async fn read_account(&self, id: &AccountId) -> Result<Owned<(Option<Account>, Reached)>, StoreError> {
        let found = self.look_for_client(|tables| {
            if let Err(not_owner) = tables.ownership.check(slot_of(id.as_str())) {
                return Owned::NotHere(not_owner);
            }
            let highest = Position(tables.journal.next_position().0 - 1);
            let reached = Reached { highest, folded: tables.folded_position };
            Owned::Here((tables.accounts.get(id).cloned(), reached))
        });
        found.await
    }

    /// As [`super::bookings::by_id`].
    pub async fn read_bookings(&self, id: Uuid, payer: &str, roles: &[Role]) -> Result<OfId<Booking>, StoreError> {
        self.look_for_client(|tables| {
            let (here, elsewhere) = tables.of_id(id, payer, roles);
            let copies = |bookings: Vec<&Booking>| bookings.into_iter().cloned().collect();
            OfId { here: copies(here), elsewhere: copies(elsewhere) }
        })
        .await
    }

    /// As [`super::bookings::answers_at`].
    pub async fn read_at(&self, positions: &[Position]) -> Result<Vec<Booking>, StoreError> {
        let at = |tables: &Tables| positions.iter().filter_map(|at| tables.journal.at(*at)).cloned().collect();
        self.look_for_client(at).await
    }

    /// As [`super::bookings::reversals`].
    pub async fn read_reversals(&self, id: Uuid, payer: &str) -> Result<(i64, Vec<TransferId>), StoreError> {
        let key = TransferKey { id: TransferId(id), debit: AccountId::any(payer).unwrap() };
        self.look_for_client(|tables| {
            let reversals = || tables.journal.reversals(&key);
            (reversals().map(|booking| booking.amount).sum(), reversals().filter_map(|booking| booking.id).collect())
        })
        .await
    }

    /// As [`super::bookings::holds_of_id`].
    pub async fn read_holds(&self, id: Uuid, payer: &str) -> Result<OfId<(HoldKey, Hold)>, StoreError> {
        self.look_for_client(|tables| {
            let (here, elsewhere) = tables.of_id(id, payer, &[Role::Hold]);
            let keys =
                here.into_iter().filter_map(Booking::key).map(|TransferKey { id, debit }| HoldKey { id, debit });
            let here = keys.filter_map(|key| tables.journal.hold(&key).map(|hold| (key, hold))).collect();
            OfId { here, elsewhere: elsewhere.into_iter().cloned().collect() }
        })
        .await
    }

    pub fn state(&self) -> ShardState {
        self.tables().state()
    }

    pub fn bookings(&self) -> Vec<Booking> {
        self.tables().journal.bookings().to_vec()
    }

    /// Every projection of the journal, from its first booking.
    pub fn fold(&self) -> Projections {
        self.tables().journal.fold()
    }

    pub fn folded_position(&self) -> Position {
        self.tables().folded_position
    }

    /// Sagas of slots that the shard owns that have begun in the journal and not ended.
    #[cfg(feature = "simulation")]
    pub fn sagas_under_way(&self) -> usize {
        let tables = self.tables();
        let is_ours = |key: &TransferKey| tables.ownership.owns(&key.debit);
        let open = tables.journal.bookings().iter().fold(0_i64, |open, booking| match fold::saga_change(booking) {
            Some(fold::SagaChange::Begun(key)) if is_ours(&key) => open + 1,
            Some(fold::SagaChange::Ended(key)) if is_ours(&key) => open - 1,
            _ => open,
        });
        usize::try_from(open).unwrap_or(0)
    }

    /// The row of an account.
    pub fn row(&self, id: &AccountId) -> Option<Account> {
        self.tables().accounts.get(id).cloned()
    }

    /// The positions of the rows of `saga`.
    pub fn saga_rows(&self) -> BTreeSet<Position> {
        self.tables().sagas.clone()
    }

    /// The projections are what the journal says: sagas and waypoints reach exactly to `folded_position`, and each row of
    /// `account` is a state that the account had, there or later.
    pub fn check(&self) {
        let tables = self.tables();
        let bookings = tables.journal.bookings();
        let to = tables.folded_position;
        let folded = bookings.partition_point(|booking| booking.position <= to);
        let there = Projections::of(&bookings[..folded]);
        let sagas: BTreeSet<Position> = there.sagas.values().copied().collect();
        assert_eq!(tables.sagas, sagas, "sagas as of {to:?}");
        let legs = || bookings[..folded].iter().flat_map(|booking| booking.legs().map(move |leg| (booking, leg)));
        let waypoints: BTreeMap<(AccountId, i64), Waypoint> = legs()
            .filter(|(_, (_, _, leg))| fold::is_waypoint(leg.version))
            .map(|(booking, (_, id, leg))| {
                let (account, version) = (id.clone(), leg.version);
                let (position, at_us) = (booking.position, booking.at_us);
                ((id.clone(), version), Waypoint { account, version, position, at_us })
            })
            .collect();
        assert_eq!(tables.waypoints, waypoints, "waypoints as of {to:?}");
        let newest = tables.journal.fold();
        assert!(tables.accounts.keys().eq(newest.accounts.keys()), "a row for each account");
        let mut past = there.accounts;
        let mut is_seen: HashMap<&AccountId, bool> = HashMap::new();
        for (id, row) in &tables.accounts {
            is_seen.insert(id, past.get(id) == Some(row));
        }
        for booking in &bookings[folded..] {
            if booking.kind == BookingKind::Opened {
                past.insert(booking.payer.clone(), fold::open_account(booking).unwrap());
            }
            for (party, id, _) in booking.legs() {
                fold::apply_leg(past.get_mut(id).unwrap(), booking, party).unwrap();
            }
            let transit = AccountId::in_transit(booking.asset);
            if let Some(transit) = past.get_mut(&transit).filter(|_| booking.kind.in_transit() != 0) {
                fold::apply_in_transit(transit, booking).unwrap();
            }
            for id in booking.legs().map(|(_, id, _)| id).chain([&booking.payer, &transit]) {
                if let Some((id, row)) = tables.accounts.get_key_value(id) {
                    *is_seen.entry(id).or_default() |= past.get(id) == Some(row);
                }
            }
        }
        for (id, is_seen) in is_seen {
            assert!(is_seen, "{id} never was as its row says: {:?}", tables.accounts[id]);
        }
    }

    /// As [`Database::check`], and everything is folded.
    pub fn check_folded(&self) {
        self.check();
        let tables = self.tables();
        let newest = tables.journal.fold();
        assert_eq!(tables.accounts, newest.accounts, "the rows are the fold of the journal");
        let last = tables.journal.next_position().0 - 1;
        assert_eq!(tables.folded_position, Position(last), "everything is folded");
    }

    // === what happens to a database ===

    /// Refuses writes, as a demoted primary does.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.tables().is_read_only = is_read_only;
    }

    /// Breaks every session. No new one is opened until [`Database::restart`].
    pub fn crash(&self) {
        self.tables().crash();
    }

    pub fn restart(&self) {
        self.tables().is_down = false;
    }

    /// [`Database::restart`], and again after each later crash. A commit that is under way may still bring about a crash that was
    /// ordered for it before.
    #[cfg(feature = "simulation")]
    pub fn stay_up(&self) {
        let mut tables = self.tables();
        tables.is_down = false;
        tables.restarts_at_once = true;
    }

    /// Appends a booking that books nothing, as another writer may.
    pub fn append_marker(&self) {
        self.tables().append_marker();
    }

    /// Slots change hands, and come back.
    pub fn change_ownership(&self) {
        self.tables().ownership_version += 1;
    }

    /// Accepts the database anew, with a position of its own.
    pub fn accept(&self) {
        let mut tables = self.tables();
        tables.incarnation += 1;
        tables.append_marker();
    }

    /// Damages the row of an account.
    pub fn damage_row(&self, id: &AccountId, damage: impl FnOnce(&mut Account)) {
        damage(self.tables().accounts.get_mut(id).unwrap());
    }
}

impl Tables {
    fn state(&self) -> ShardState {
        ShardState {
            next_position: self.journal.next_position().0,
            ownership_version: self.ownership_version,
            incarnation: self.incarnation,
            schema_version: shard_database::schema::VERSION,
        }
    }

    /// As [`super::bookings::by_id`].
    /// The bookings in slots that the shard owns, and the others.
    fn of_id(&self, id: Uuid, payer: &str, roles: &[Role]) -> (Vec<&Booking>, Vec<&Booking>) {
        let is_meant = |booking: &&Booking| {
            booking.id == Some(TransferId(id))
                && (payer.is_empty() || booking.payer.as_str() == payer)
                && roles.contains(&booking.kind.role())
        };
        let is_owned = |booking: &&Booking| booking.owner().is_some_and(|owner| self.ownership.owns(owner));
        self.journal.bookings().iter().filter(is_meant).partition(is_owned)
    }

    fn append_marker(&mut self) {
        let mut effects = Effects { next_position: self.journal.next_position(), ..Effects::default() };
        effects.add_marker(telemetry::clock::now_us());
        self.journal.append(effects);
    }

    fn crash(&mut self) {
        self.is_down = !self.restarts_at_once;
        self.starts += 1;
        self.lane = Arc::default();
    }

    /// Carries out a batch. Nothing has changed after an error.
    fn write(&mut self, message: Message) -> Result<(), StoreError> {
        let Message { state, effects, scales } = message;
        if self.is_read_only {
            return Err(refused("25006", "cannot execute COPY FROM in a read-only transaction").into());
        }
        if state != self.state() {
            return Err(StoreError::Fenced);
        }
        if self.journal.objects_to(&effects).is_some() {
            return Err(duplicate("journal_answer").into());
        }
        for booking in effects.bookings.iter().filter(|booking| booking.kind == BookingKind::Opened) {
            if self.accounts.contains_key(&booking.payer) {
                return Err(duplicate("account_pkey").into());
            }
        }
        for booking in effects.bookings.iter().filter(|booking| booking.kind == BookingKind::Opened) {
            self.accounts.insert(booking.payer.clone(), fold::open_account(booking)?);
        }
        self.scales.extend(scales.into_iter().map(|(asset, scale)| (asset.to_string(), scale)));
        self.erase_rows(&effects.bookings);
        self.journal.append(effects);
        Ok(())
    }

    /// Erases rows of `account` as `apply_erasures` does. `Journal::append` erases bookings.
    fn erase_rows(&mut self, bookings: &[Booking]) {
        for erasure in bookings.iter().filter_map(Booking::erasure) {
            if let Erasure::Account { id, before_version } = erasure
                && let Some(row) = self.accounts.get_mut(id)
                && row.version < before_version
                && row.metadata.has_text()
            {
                row.metadata = Metadata::erased();
            }
        }
    }

    /// As the statements `FOLD` and `FOLD_BALANCES`.
    fn fold_accounts(&mut self, incarnation: i64, accounts: &[&FoldedAccount]) -> Result<(), StoreError> {
        if self.incarnation != incarnation {
            return Err(StoreError::Fenced);
        }
        let with_attributes = accounts.iter().any(|account| account.attributes_changed);
        for FoldedAccount { account: newer, base_version, base_head, .. } in accounts {
            let Some(row) = self.accounts.get_mut(&newer.id) else { continue };
            let leads_there = row.version > *base_version || (row.version == *base_version && row.head == *base_head);
            if row.version >= newer.version || !leads_there {
                continue;
            }
            let Account { posted, held, version, head, updated_at_us, .. } = *newer;
            *row = Account { posted, held, version, head, updated_at_us, ..row.clone() };
            if with_attributes {
                let Account { status, overdraft, max_balance, .. } = *newer;
                *row = Account { status, overdraft, max_balance, metadata: newer.metadata.clone(), ..row.clone() };
            }
        }
        let behind = accounts.iter().map(|folded| &folded.account).find(|newer| match self.accounts.get(&newer.id) {
            Some(row) => row.version < newer.version,
            // The row of an account whose slot has moved away may be gone.
            None => newer.id.is_system() || self.ownership.owns(&newer.id),
        });
        match behind {
            None => Ok(()),
            Some(newer) => Err(StoreError::Corrupt(format!(
                "INV-9: the row of account {} does not lead to the account's newest bookings",
                newer.id
            ))),
        }
    }

    fn finish_fold(&mut self, step: &FoldStep) -> Result<bool, StoreError> {
        let FoldStep { incarnation, timeline: _, from, to, waypoints, begun, ended } = step;
        if self.folded_position != *from || self.incarnation != *incarnation {
            return Ok(false);
        }
        let key = |waypoint: &Waypoint| (waypoint.account.clone(), waypoint.version);
        if waypoints.iter().any(|waypoint| self.waypoints.contains_key(&key(waypoint))) {
            return Err(duplicate("waypoint_pkey").into());
        }
        let mut sagas = self.sagas.clone();
        sagas.retain(|position| !ended.contains(position));
        for position in begun {
            if !sagas.insert(*position) {
                return Err(duplicate("saga_pkey").into());
            }
        }
        self.sagas = sagas;
        self.waypoints.extend(waypoints.iter().map(|waypoint| (key(waypoint), waypoint.clone())));
        self.folded_position = *to;
        Ok(true)
    }
}

impl Memory {
    /// A node of the database's shard. `gate` is the node's.
    pub fn new(database: Database, gate: Gate) -> Self {
        Self {
            database,
            gate,
            sessions: Mutex::default(),
            faults: Mutex::default(),
            fold_fault: Mutex::default(),
            dead_versions_per_row: Mutex::default(),
            releases: Semaphore::new(0),
            stalls: watch::Sender::new(0),
            account_reads: watch::Sender::new(0),
            journal_reads: AtomicU64::new(0),
            pauses: AtomicU64::new(0),
            read_time: Mutex::default(),
        }
    }

    // === faults ===

    /// Orders a fault for each of the next commits.
    pub fn order(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.faults).extend(faults);
    }

    pub fn order_fold_fault(&self, fault: FoldFault) {
        *lock(&self.fold_fault) = Some(fault);
    }

    /// What [`Store::dead_versions_per_row`] answers from now on.
    pub fn set_dead_versions(&self, dead: f64) {
        *lock(&self.dead_versions_per_row) = dead;
    }

    /// Whether every ordered fault has occurred.
    pub fn is_quiet(&self) -> bool {
        lock(&self.faults).is_empty() && lock(&self.fold_fault).is_none()
    }

    /// Forgets the faults that have not occurred.
    pub fn calm(&self) {
        lock(&self.faults).clear();
        *lock(&self.fold_fault) = None;
    }

    /// Waits until so many commits have stalled since the beginning.
    pub async fn stalled(&self, count: usize) {
        self.stalls.subscribe().wait_for(|stalls| *stalls >= count).await.unwrap();
    }

    /// Lets one stalled commit go on.
    pub fn release(&self) {
        self.releases.add_permits(1);
    }

    /// Statements so far that read rows of `account`.
    pub fn account_reads(&self) -> usize {
        *self.account_reads.borrow()
    }

    /// Waits until so many statements have read rows of `account` since the beginning.
    pub async fn reads_accounts(&self, count: usize) {
        self.account_reads.subscribe().wait_for(|reads| *reads >= count).await.unwrap();
    }

    /// Statements so far that read holds, originals or ids.
    pub fn journal_reads(&self) -> u64 {
        self.journal_reads.load(Relaxed)
    }

    /// Pauses at random before and after each statement, by a seed that is not 0.
    pub fn pause_by(&self, seed: u64) {
        self.pauses.store(seed, Relaxed);
    }

    /// Each read takes this long from now on.
    pub fn slow_down_reads(&self, read_time: Duration) {
        *lock(&self.read_time) = read_time;
    }

    async fn pause(&self) {
        tokio::task::yield_now().await;
        let seed = self.pauses.load(Relaxed);
        if seed == 0 {
            return;
        }
        let next = next_pause(seed);
        self.pauses.store(next, Relaxed);
        let pause = pause_of(next);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    // === sessions ===

    /// The tables, as the reading session sees them.
    async fn read<T>(&self, look: impl FnOnce(&Tables) -> T) -> Result<T, StoreError> {
        self.pause().await;
        let read_time = *lock(&self.read_time);
        if !read_time.is_zero() {
            tokio::time::sleep(read_time).await;
        }
        let read = {
            let tables = self.database.tables();
            let mut sessions = lock(&self.sessions);
            match sessions.reader {
                None => return Err(StoreError::NotOpen),
                Some(start) if start == tables.starts && !tables.is_down => Ok(look(&tables)),
                Some(_) => {
                    sessions.reader = None;
                    Err(sqlx::Error::Io(broken()).into())
                }
            }
        };
        self.pause().await;
        read
    }

    /// Carries out a step of a fold on the folding session, which is opened anew for each step.
    async fn fold_step<T>(&self, step: impl FnOnce(&mut Tables) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.pause().await;
        let fault = {
            let mut fault = lock(&self.fold_fault);
            match &mut *fault {
                Some(FoldFault { after: 0, .. }) => fault.take(),
                Some(later) => {
                    later.after -= 1;
                    None
                }
                None => None,
            }
        };
        let done = {
            let mut tables = self.database.tables();
            if tables.is_down || fault.is_some_and(|fault| !fault.is_carried_out) {
                return Err(sqlx::Error::Io(broken()).into());
            }
            if tables.is_read_only {
                return Err(refused("25006", "cannot execute UPDATE in a read-only transaction").into());
            }
            step(&mut tables)
        };
        self.pause().await;
        if fault.is_some() { Err(sqlx::Error::Io(broken()).into()) } else { done }
    }

    /// The failure of a session that breaks after a batch was sent.
    fn break_off(&self) -> Result<(), CommitFailure> {
        lock(&self.sessions).writer = None;
        let error = pg_session::Error::from(broken());
        Err(CommitFailure { error: error.into(), in_doubt: true })
    }
}

impl Store for Memory {
    type Message = Message;

    async fn open(&self) -> Result<Opened, StoreError> {
        self.pause().await;
        let acknowledged = self.gate.acknowledged();
        let is_new = {
            let tables = self.database.tables();
            let mut sessions = lock(&self.sessions);
            let is_new = sessions.reader.is_none();
            if is_new {
                if tables.is_down {
                    return Err(sqlx::Error::Io(broken()).into());
                }
                sessions.reader = Some(tables.starts);
            }
            is_new
        };
        let (state, scales) = self.read(|tables| (tables.state(), tables.scales.clone())).await?;
        self.gate.judge_state(&state, TIMELINE, &acknowledged)?;
        let ownership = Arc::clone(&self.database.tables().ownership);
        let folded = self.database.folded_position();
        Ok(Opened { state, timeline: TIMELINE, folded, ownership, scales, is_new })
    }

    async fn open_writer(&self) -> Result<bool, StoreError> {
        self.pause().await;
        let tables = self.database.tables();
        let mut sessions = lock(&self.sessions);
        if sessions.writer.is_some() {
            return Ok(false);
        }
        match sessions.reader {
            _ if tables.is_down => Err(pg_session::Error::Io(broken()).into()),
            Some(start) if start == tables.starts => {
                sessions.writer = Some(start);
                Ok(true)
            }
            // The reading session leads to another start of the server.
            _ => Err(StoreError::Superseded),
        }
    }

    async fn close_writer(&self) {
        lock(&self.sessions).writer = None;
    }

    async fn close(&self) {
        *lock(&self.sessions) = Sessions::default();
        self.pause().await;
    }

    fn is_current(&self) -> bool {
        lock(&self.sessions).reader.is_some()
    }

    async fn folded(&self) -> Result<Folded, StoreError> {
        self.read(|tables| Folded {
            position: tables.folded_position,
            // The first booking of a saga whose slots come in may not have come yet.
            sagas: tables.sagas.iter().filter_map(|position| tables.journal.at(*position).cloned()).collect(),
        })
        .await
    }

    async fn sagas_of(&self, slots: &[SlotRange]) -> Result<Vec<Booking>, StoreError> {
        let is_meant = |booking: &Booking| {
            let slot = shard_map::slot_of(booking.payer.as_str());
            slots.iter().any(|range| range.contains(slot))
        };
        self.read(|tables| {
            let firsts = tables.sagas.iter().map(|position| tables.journal.at(*position).unwrap().clone());
            firsts.filter(is_meant).collect()
        })
        .await
    }

    async fn bookings_after(&self, position: Position, limit: i64) -> Result<Vec<Booking>, StoreError> {
        let limit = usize::try_from(limit).unwrap();
        self.read(|tables| tables.journal.after(position).take(limit).cloned().collect()).await
    }

    async fn accounts(&self, ids: &[AccountId]) -> Result<Vec<Account>, StoreError> {
        self.account_reads.send_modify(|reads| *reads += 1);
        self.read(|tables| ids.iter().filter_map(|id| tables.accounts.get(id)).cloned().collect()).await
    }

    async fn openings(&self, accounts: &[&Account]) -> Result<Vec<CreateAccount>, StoreError> {
        self.read(|tables| accounts.iter().filter_map(|account| tables.journal.opening(account)).collect()).await
    }

    async fn holds(&self, keys: &[HoldKey]) -> Result<Vec<(HoldKey, Hold)>, StoreError> {
        self.journal_reads.fetch_add(1, Relaxed);
        let hold = |tables: &Tables, key: &HoldKey| Some((key.clone(), tables.journal.hold(key)?));
        self.read(|tables| keys.iter().filter_map(|key| hold(tables, key)).collect()).await
    }

    async fn originals(&self, keys: &[TransferKey]) -> Result<Vec<(TransferKey, Original)>, StoreError> {
        self.journal_reads.fetch_add(1, Relaxed);
        let original = |tables: &Tables, key: &TransferKey| Some((key.clone(), tables.journal.original(key)?));
        self.read(|tables| keys.iter().filter_map(|key| original(tables, key)).collect()).await
    }

    async fn stored(&self, transfers: &[TransferKey], registers: &[TransferKey]) -> Result<Stored, StoreError> {
        self.journal_reads.fetch_add(1, Relaxed);
        self.read(|tables| {
            let journal = &tables.journal;
            let transfer = |key: &TransferKey| Some((key.clone(), journal.transfer(key)?));
            let register = |key: &TransferKey| Some((key.clone(), journal.register(key)?));
            Stored {
                transfers: transfers.iter().filter_map(transfer).collect(),
                registers: registers.iter().filter_map(register).collect(),
            }
        })
        .await
    }

    fn encode(&self, append: &Append<'_>) -> Message {
        let Append { state, effects, scales, .. } = append;
        let Effects { bookings, holds, next_position } = effects;
        let effects = Effects { bookings: bookings.clone(), holds: holds.clone(), next_position: *next_position };
        Message { state: *state, effects, scales: scales.to_vec() }
    }

    async fn commit(&self, message: Message) -> Result<(), CommitFailure> {
        let Some(start) = lock(&self.sessions).writer else {
            return Err(StoreError::NotOpen.into());
        };
        self.pause().await;
        let mut fault = lock(&self.faults).pop_front();
        while fault == Some(Fault::Stall) {
            self.stalls.send_modify(|stalls| *stalls += 1);
            self.releases.acquire().await.unwrap().forget();
            fault = lock(&self.faults).pop_front();
        }
        match fault {
            Some(Fault::Fence) => self.database.append_marker(),
            Some(Fault::Crash) => self.database.crash(),
            _ => {}
        }
        // A move of slots may hold it.
        let lane = Arc::clone(&self.database.tables().lane);
        let held = lane.lock().await;
        let written = {
            let mut tables = self.database.tables();
            if fault == Some(Fault::Swallow) || tables.is_down || start != tables.starts {
                return self.break_off();
            }
            match fault {
                Some(Fault::Refuse) => Err(disk_is_full()),
                Some(Fault::Deny) => tables.write(message).and_then(|()| Err(disk_is_full())),
                Some(Fault::Pretend) => Ok(()),
                _ => tables.write(message),
            }
        };
        drop(held);
        self.pause().await;
        match fault {
            Some(Fault::LoseAnswer) => self.break_off(),
            Some(Fault::CrashAfter) => {
                self.database.crash();
                self.break_off()
            }
            Some(Fault::Warn) if written.is_ok() => {
                lock(&self.sessions).writer = None;
                let error = StoreError::Unconfirmed("canceling wait for synchronous replication".to_owned());
                Err(CommitFailure { error, in_doubt: true })
            }
            // The script failed before its COMMIT.
            _ => Ok(written?),
        }
    }

    async fn begin_fold(&self, timeline: i64) -> Result<(), StoreError> {
        if timeline == TIMELINE { Ok(()) } else { Err(StoreError::Fenced) }
    }

    async fn dead_versions_per_row(&self) -> Result<f64, StoreError> {
        Ok(*lock(&self.dead_versions_per_row))
    }

    async fn fold_accounts(&self, incarnation: i64, accounts: &[&FoldedAccount]) -> Result<(), StoreError> {
        self.fold_step(|tables| tables.fold_accounts(incarnation, accounts)).await
    }

    async fn finish_fold(&self, step: &FoldStep) -> Result<bool, StoreError> {
        self.fold_step(|tables| tables.finish_fold(step)).await
    }
}

#[cfg(test)]
mod tests {
    use identity::Marks;

    use super::*;
    use crate::store::error::Remedy;

    async fn node(database: &Database) -> Memory {
        let memory = Memory::new(database.clone(), Gate::open_for_tests(database.state()));
        memory.open().await.unwrap();
        assert!(memory.open_writer().await.unwrap());
        memory
    }

    fn message(memory: &Memory, state: ShardState, bookings: Vec<Booking>) -> Message {
        let next_position = Position(state.next_position + i64::try_from(bookings.len()).unwrap());
        let effects = Effects { bookings, next_position, ..Effects::default() };
        memory.encode(&Append { state, effects: &effects, marks: &Marks::default(), scales: &[] })
    }

    fn marker(state: ShardState) -> Vec<Booking> {
        vec![Booking::marker(Position(state.next_position), 1)]
    }

    #[tokio::test]
    async fn the_fence_compares_position_ownership_incarnation_and_schema_version() {
        let database = Database::new();
        let memory = node(&database).await;
        database.append_marker();
        let state = database.state();
        let others = [
            ShardState { next_position: state.next_position - 1, ..state },
            ShardState { next_position: state.next_position + 1, ..state },
            ShardState { ownership_version: state.ownership_version + 1, ..state },
            ShardState { incarnation: state.incarnation + 1, ..state },
            ShardState { schema_version: state.schema_version + 1, ..state },
        ];
        for other in others {
            let failure = memory.commit(message(&memory, other, marker(other))).await.unwrap_err();
            assert!(matches!(failure.error, StoreError::Fenced) && !failure.in_doubt, "{other:?}: {failure:?}");
        }
        memory.commit(message(&memory, state, marker(state))).await.unwrap();
        assert_eq!(database.state().next_position, state.next_position + 1);
    }

    #[tokio::test]
    async fn an_id_that_was_used_is_refused_for_certain_and_decided_again() {
        let database = Database::new();
        let memory = node(&database).await;
        for is_first in [true, false] {
            let state = database.state();
            let booking = Booking {
                id: Some(ledger::TransferId(uuid::Uuid::from_u128(1))),
                kind: BookingKind::Rejected,
                payee: Some(AccountId::client("shop").unwrap()),
                ..marker(state).remove(0)
            };
            match memory.commit(message(&memory, state, vec![booking])).await {
                Ok(()) => assert!(is_first),
                Err(CommitFailure { error, in_doubt }) => {
                    assert!(!is_first && !in_doubt && error.remedy() == Remedy::Redecide, "{error}");
                }
            }
        }
        assert_eq!(database.bookings().len(), 1);
    }

    #[tokio::test]
    async fn each_fault_leaves_the_batch_and_its_answer_as_it_says() {
        for (fault, is_written, in_doubt, remedy) in [
            (Fault::LoseAnswer, true, true, Remedy::Reconnect),
            (Fault::Swallow, false, true, Remedy::Reconnect),
            (Fault::Refuse, false, false, Remedy::Reconnect),
            (Fault::Fence, false, false, Remedy::CatchUp),
            (Fault::Crash, false, true, Remedy::Reconnect),
            (Fault::CrashAfter, true, true, Remedy::Reconnect),
            (Fault::Warn, true, true, Remedy::Reconnect),
        ] {
            let database = Database::new();
            let memory = node(&database).await;
            memory.order([fault]);
            let state = database.state();
            let mut booking = marker(state);
            booking[0].at_us = 7;
            let failure = memory.commit(message(&memory, state, booking)).await.unwrap_err();
            assert_eq!(database.bookings().iter().any(|booking| booking.at_us == 7), is_written, "{fault:?}");
            assert_eq!((failure.in_doubt, failure.error.remedy()), (in_doubt, remedy), "{fault:?}: {failure:?}");
            assert_eq!(failure.error.is_refused_write(), fault == Fault::Refuse);
        }
    }

    #[tokio::test]
    async fn sessions_from_before_a_crash_are_broken() {
        let database = Database::new();
        let memory = node(&database).await;
        database.crash();
        assert_eq!(memory.folded().await.unwrap_err().remedy(), Remedy::Reconnect);
        assert_eq!(memory.open().await.unwrap_err().remedy(), Remedy::Reconnect);
        database.restart();
        assert!(memory.open().await.unwrap().is_new);
        let state = database.state();
        let failure = memory.commit(message(&memory, state, marker(state))).await.unwrap_err();
        assert!(failure.in_doubt && database.bookings().is_empty(), "the writer's session is from before");
        assert!(memory.open_writer().await.unwrap());
        memory.commit(message(&memory, state, marker(state))).await.unwrap();
    }

    #[cfg(feature = "simulation")]
    #[tokio::test]
    async fn a_server_that_stays_up_breaks_sessions_and_opens_new_ones() {
        let database = Database::new();
        let memory = node(&database).await;
        database.stay_up();
        database.crash();
        assert_eq!(memory.folded().await.unwrap_err().remedy(), Remedy::Reconnect);
        assert!(memory.open().await.unwrap().is_new);
    }
}
