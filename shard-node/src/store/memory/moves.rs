//! Moves of slots between shards in memory (`crate::store::moves`).
//!
//! Each method of a connection pauses as a statement does. A transaction changes a copy of the tables, which replaces them when it commits. The
//! lane's lock is a mutex of the database: commits of the lane wait for it, and a session that breaks gives it back. Rows that travel stay
//! in a table of the thread, and the page has their number.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use identity::AssetScales;
use ledger::{Account, AccountId, Booking, HoldKey, Position, batch::Effects, fold, in_memory::OpenHold};
use shard_database::{
    OwnedSlots, ShardState,
    books::{Books, Difference, HoldRow},
};
use shard_map::{Slot, SlotRange, slot_of};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::{Database, Message, Tables, broken, lock, next_pause, pause_of, refused};
use crate::{
    moves::{
        error::MoveError,
        incoming::{Changes, HoldChanges},
        phase::Phase,
        progress::{self, Progress, SourceProgress},
        scope::{Part, contains},
        sums::{BookingsDigest, JournalSums, Summed, Verified},
    },
    store::{
        StoreError, Waypoint,
        moves::{
            AccountsPage, Advance, Begin, BookingsPage, CleanUp, Compared, Estimates, HandOver, MoveConnection,
            MoveRow, MoveStore, PageWrite, SlotsChange, Standing, Undo,
        },
        ownership::{SlotOwnership, SlotState},
    },
};

/// What happens to one of the next transactions of a node's moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveFault {
    /// So many transactions are carried out before.
    pub after: usize,
    /// The transaction is committed, and its answer is lost.
    pub is_carried_out: bool,
}

/// A node's store of moves.
pub struct MemoryMoves {
    database: Database,
    shared: Arc<Shared>,
}

/// Shared by a node's connections.
#[derive(Default)]
struct Shared {
    fault: Mutex<Option<MoveFault>>,
    /// The state of the random pauses; 0: none.
    pauses: Mutex<u64>,
}

/// Orders faults for a node's moves. Clones share the orders.
#[derive(Clone)]
pub struct MoveFaults(Arc<Shared>);

impl MoveFaults {
    pub fn order(&self, fault: MoveFault) {
        *lock(&self.0.fault) = Some(fault);
    }

    /// Whether the ordered fault has occurred.
    pub fn is_quiet(&self) -> bool {
        lock(&self.0.fault).is_none()
    }

    /// Forgets the fault if it has not occurred.
    pub fn calm(&self) {
        *lock(&self.0.fault) = None;
    }
}

impl MemoryMoves {
    /// `pauses` is the seed of random pauses before and after each statement; 0: none.
    pub fn new(database: Database, pauses: u64) -> Self {
        Self { database, shared: Arc::new(Shared { fault: Mutex::default(), pauses: Mutex::new(pauses) }) }
    }

    pub fn faults(&self) -> MoveFaults {
        MoveFaults(Arc::clone(&self.shared))
    }

    fn session(&self) -> Result<Session, MoveError> {
        let start = {
            let tables = self.database.tables();
            if tables.is_down {
                return Err(lost());
            }
            tables.starts
        };
        Ok(Session { database: self.database.clone(), shared: Arc::clone(&self.shared), start })
    }
}

impl MoveStore for MemoryMoves {
    type Connection = Connection;
    type HandOver = Sessions;

    async fn connection(&self) -> Result<Connection, MoveError> {
        self.shared.pause().await;
        self.session().map(Connection)
    }

    async fn hand_over(&self) -> Result<Sessions, MoveError> {
        self.shared.pause().await;
        Ok(Sessions { session: self.session()?, lock: None })
    }

    fn rows_in(page: &Bytes) -> Option<u64> {
        match Page::read(page) {
            Page::Bookings(bookings) => Some(bookings.len() as u64),
            Page::Nothing => Some(0),
            Page::Accounts(_) | Page::Holds(_) => None,
        }
    }

    async fn close(&self) {}
}

impl Shared {
    async fn pause(&self) {
        match self.next_pause() {
            None => tokio::task::yield_now().await,
            Some(pause) => tokio::time::sleep(pause).await,
        }
    }

    fn next_pause(&self) -> Option<Duration> {
        let mut state = lock(&self.pauses);
        if *state == 0 {
            return None;
        }
        *state = next_pause(*state);
        Some(pause_of(*state))
    }

    /// The fault that the next transaction meets.
    fn next_fault(&self) -> Option<MoveFault> {
        let mut fault = lock(&self.fault);
        match &mut *fault {
            Some(MoveFault { after: 0, .. }) => fault.take(),
            Some(later) => {
                later.after -= 1;
                None
            }
            None => None,
        }
    }
}

fn lost() -> MoveError {
    sqlx::Error::Io(broken()).into()
}

// === pages ===

/// Rows that travel.
#[derive(Clone)]
enum Page {
    Nothing,
    Bookings(Vec<Booking>),
    Accounts(Vec<Account>),
    Holds(Vec<(HoldKey, OpenHold)>),
}

thread_local! {
    static PAGES: RefCell<Vec<Page>> = const { RefCell::new(Vec::new()) };
}

/// Forgets the rows that have travelled in this thread. No page of before can be read any more.
pub fn forget_pages() {
    PAGES.take();
}

impl Page {
    fn send(self) -> Bytes {
        PAGES.with_borrow_mut(|pages| {
            let number = pages.len() as u64;
            pages.push(self);
            Bytes::copy_from_slice(&number.to_be_bytes())
        })
    }

    fn read(page: &Bytes) -> Self {
        if page.is_empty() {
            return Self::Nothing;
        }
        let number = u64::from_be_bytes(page.as_ref().try_into().unwrap());
        PAGES.with_borrow(|pages| pages[usize::try_from(number).unwrap()].clone())
    }
}

// === sessions ===

/// A session on the database, which a crash of the server breaks.
struct Session {
    database: Database,
    shared: Arc<Shared>,
    start: u64,
}

impl Session {
    async fn read<T>(&self, look: impl FnOnce(&Tables) -> T) -> Result<T, MoveError> {
        self.shared.pause().await;
        let read = {
            let tables = self.database.tables();
            if tables.is_down || tables.starts != self.start {
                return Err(lost());
            }
            look(&tables)
        };
        self.shared.pause().await;
        Ok(read)
    }

    /// Carries out a transaction. Nothing has changed after an error of the step.
    async fn write<T>(&self, step: impl FnOnce(&mut Tables) -> Result<T, MoveError>) -> Result<T, MoveError> {
        self.shared.pause().await;
        let fault = self.shared.next_fault();
        let done = {
            let mut tables = self.database.tables();
            if tables.is_down || tables.starts != self.start || fault.is_some_and(|fault| !fault.is_carried_out) {
                return Err(lost());
            }
            if tables.is_read_only {
                let refusal = refused("25006", "cannot execute UPDATE in a read-only transaction");
                return Err(StoreError::from(refusal).into());
            }
            let mut changed = tables.clone();
            let done = step(&mut changed)?;
            *tables = changed;
            done
        };
        self.shared.pause().await;
        if fault.is_some() { Err(lost()) } else { Ok(done) }
    }

    /// Takes the lane's lock.
    async fn lock(&self) -> OwnedMutexGuard<()> {
        let lane = Arc::clone(&self.database.tables().lane);
        lane.lock_owned().await
    }
}

/// A connection for moves.
pub struct Connection(Session);

impl MoveConnection for Connection {
    async fn list(&mut self) -> Result<Vec<MoveRow>, MoveError> {
        self.0.read(Tables::moves).await
    }

    async fn get(&mut self, id: Uuid) -> Result<Option<MoveRow>, MoveError> {
        self.0.read(|tables| tables.moves.get(&id).cloned()).await
    }

    async fn claim(&mut self, id: Uuid, now_us: i64) -> Result<Option<MoveRow>, MoveError> {
        self.0
            .write(|tables| {
                let row = tables.moves.get_mut(&id);
                Ok(row.map(|row| {
                    (row.driver_epoch, row.updated_at_us) = (row.driver_epoch + 1, now_us);
                    row.clone()
                }))
            })
            .await
    }

    async fn touch(&mut self, id: Uuid, driver_epoch: i64, now_us: i64) -> Result<(), MoveError> {
        // A sign of life is no step of the move, so that no fault is due.
        self.0.read(|_| ()).await?;
        if let Some(row) = self.0.database.tables().moves.get_mut(&id)
            && row.driver_epoch == driver_epoch
        {
            row.updated_at_us = now_us;
        }
        Ok(())
    }

    async fn set_wishes(&mut self, id: Uuid, wishes: &str) -> Result<(), MoveError> {
        self.0
            .write(|tables| {
                if let Some(row) = tables.moves.get_mut(&id) {
                    wishes.clone_into(&mut row.wishes);
                }
                Ok(())
            })
            .await
    }

    async fn change_wishes(
        &mut self,
        id: Uuid,
        judge: impl FnOnce(Option<&MoveRow>) -> Result<String, MoveError> + Send,
    ) -> Result<(), MoveError> {
        self.0
            .write(|tables| {
                let wishes = judge(tables.moves.get(&id))?;
                if let Some(row) = tables.moves.get_mut(&id) {
                    row.wishes = wishes;
                }
                Ok(())
            })
            .await
    }

    async fn advance(&mut self, change: Advance<'_>) -> Result<(), MoveError> {
        self.0.write(|tables| tables.advance(change)).await
    }

    async fn start(
        &mut self,
        slots: &[SlotRange],
        judge: impl FnOnce(&Standing) -> Result<Begin, MoveError> + Send,
    ) -> Result<(), MoveError> {
        self.0.write(|tables| tables.begin(slots, judge)).await
    }

    async fn join(
        &mut self,
        slots: &[SlotRange],
        judge: impl FnOnce(&Standing) -> Result<Begin, MoveError> + Send,
    ) -> Result<Estimates, MoveError> {
        self.0
            .write(|tables| {
                tables.begin(slots, judge)?;
                let count = |count: usize| i64::try_from(count).unwrap();
                Ok(Estimates {
                    folded_position: tables.folded_position.0,
                    owned: count(tables.ownership.owned()),
                    accounts: count(tables.accounts.len()),
                    bookings: count(tables.journal.bookings().len()),
                })
            })
            .await
    }

    async fn announce(&mut self, change: Advance<'_>, epoch: i64) -> Result<(), MoveError> {
        let _lock = self.0.lock().await;
        self.0
            .write(|tables| {
                let incoming = SlotOwnership { state: SlotState::Incoming, epoch, peer: change.row.peer.clone() };
                tables.change_each_slot(&change.row.slots, |before| {
                    matches!(before.state, SlotState::Absent | SlotState::Released).then(|| incoming.clone())
                });
                tables.advance(change)
            })
            .await
    }

    // === reads at the source ===

    async fn folded_position(&mut self) -> Result<i64, MoveError> {
        self.0.read(|tables| tables.folded_position.0).await
    }

    async fn read_bookings(
        &mut self,
        slots: &[SlotRange],
        part: Part,
        limit: i64,
    ) -> Result<BookingsPage, MoveError> {
        let (to, at_end) = self
            .0
            .read(|tables| match tables.page_end(part, limit) {
                Some(end) => (end, false),
                None => (tables.highest(part).unwrap_or(part.after), true),
            })
            .await?;
        if to == part.after {
            return Ok(BookingsPage { rows: Bytes::new(), to, at_end });
        }
        let bookings = self.0.read(|tables| tables.relevant(slots, part.after, to)).await?;
        Ok(BookingsPage { rows: Page::Bookings(bookings).send(), to, at_end })
    }

    async fn highest(&mut self, part: Part) -> Result<Option<i64>, MoveError> {
        self.0.read(|tables| tables.highest(part)).await
    }

    async fn read_accounts(
        &mut self,
        slots: &[SlotRange],
        after: &str,
        limit: u32,
    ) -> Result<AccountsPage, MoveError> {
        let rows = self.0.read(|tables| {
            let rows = tables.accounts_of(slots).filter(|account| account.id.as_str() > after);
            rows.take(limit as usize).cloned().collect::<Vec<_>>()
        });
        let rows = rows.await?;
        let last = rows.last().map(|account| account.id.to_string()).unwrap_or_default();
        Ok(AccountsPage { count: rows.len() as u64, last, rows: Page::Accounts(rows).send() })
    }

    async fn read_small_tables(
        &mut self,
        slots: &[SlotRange],
        own: Part,
    ) -> Result<wire::ReadMoveSmallTablesResponse, MoveError> {
        self.0
            .read(|tables| wire::ReadMoveSmallTablesResponse {
                holds: Page::Holds(tables.holds_of(slots)).send(),
                holds_at: tables.highest(own).unwrap_or(own.after),
                sagas: tables.sagas_of(slots).iter().map(|position| position.0).collect(),
                folded_position: tables.folded_position.0,
                scales: tables.wire_scales(),
            })
            .await
    }

    async fn sum_up(
        &mut self,
        slots: &[SlotRange],
        number: u16,
        before: Option<Verified>,
        slot: Option<u32>,
    ) -> Result<Summed, MoveError> {
        self.0.read(|tables| tables.sum_up(slots, number, before, slot)).await
    }

    async fn scales(&mut self) -> Result<Vec<wire::AssetScale>, MoveError> {
        self.0.read(Tables::wire_scales).await
    }

    async fn load(&mut self) -> Result<wire::LoadResponse, MoveError> {
        Err(StoreError::NotOpen.into())
    }

    // === writes and reads at the target ===

    async fn write_page(&mut self, page: PageWrite<'_>) -> Result<(Progress, String), MoveError> {
        let PageWrite { row, rows, after, to, mut progress, mut incoming, is_last: _ } = page;
        self.0
            .write(|tables| {
                if let Some(rows) = rows {
                    progress.bytes += rows.len() as u64;
                    let Page::Bookings(bookings) = Page::read(&rows) else { panic!("a page of other rows") };
                    progress.bookings += bookings.len() as u64;
                    tables.erase_rows(&bookings);
                    for booking in bookings {
                        tables.copy_in(booking)?;
                    }
                    tables.insert_waypoints(&row.slots, after, to);
                    if let Some(incoming) = &mut incoming {
                        let bookings = tables.relevant(&row.slots, after, to);
                        let accounts = incoming.accounts_of(&bookings);
                        let accounts = accounts.iter().filter_map(|id| tables.accounts.get(id)).cloned().collect();
                        let holds = incoming.holds_of(&progress, &bookings).into_iter();
                        let open = tables.journal.open_holds();
                        let holds = holds.filter_map(|key| open.get(&key).map(|(hold, _)| (key, hold.clone())));
                        let holds = holds.collect();
                        let changes = incoming.apply(&progress, &bookings, accounts, holds)?;
                        tables.change(changes)?;
                    }
                }
                if let Some(incoming) = incoming {
                    incoming.reach(to, &mut progress);
                }
                let text = progress::write(&progress);
                tables.advance(Advance { row, to: row.phase, progress: &text })?;
                Ok((progress, text))
            })
            .await
    }

    async fn write_accounts(
        &mut self,
        row: &MoveRow,
        rows: Bytes,
        written: impl FnOnce(u64) -> String + Send,
    ) -> Result<String, MoveError> {
        self.0
            .write(|tables| {
                let Page::Accounts(accounts) = Page::read(&rows) else { panic!("a page of other rows") };
                let text = written(accounts.len() as u64);
                tables.insert_accounts(accounts)?;
                tables.advance(Advance { row, to: row.phase, progress: &text })?;
                Ok(text)
            })
            .await
    }

    async fn write_small_tables(
        &mut self,
        wire::ReadMoveSmallTablesResponse { holds, sagas, scales, .. }: wire::ReadMoveSmallTablesResponse,
        change: Advance<'_>,
    ) -> Result<(), MoveError> {
        self.0
            .write(|tables| {
                let Page::Holds(holds) = Page::read(&holds) else { panic!("a page of other rows") };
                for (key, hold) in holds {
                    tables.insert_hold(key, hold)?;
                }
                tables.sagas.extend(sagas.into_iter().map(Position));
                tables.insert_scales(&scales)?;
                tables.advance(change)
            })
            .await
    }

    async fn insert_scales(&mut self, scales: &[wire::AssetScale]) -> Result<(), MoveError> {
        self.0.write(|tables| tables.insert_scales(scales)).await
    }

    async fn newest_account_us(&mut self, slots: &[SlotRange]) -> Result<i64, MoveError> {
        let newest =
            |tables: &Tables| tables.accounts_of(slots).map(|account| account.updated_at_us).max().unwrap_or(0);
        self.0.read(newest).await
    }

    async fn compare_sums(
        &mut self,
        slots: &[SlotRange],
        own: Part,
        (after, to): (i64, i64),
    ) -> Result<Compared, MoveError> {
        let sums = self.0.read(|tables| tables.slot_sums(slots, own)).await?;
        let (bookings, _) = self.0.read(|tables| tables.digest(slots, after, to)).await?;
        let holds = self.0.read(|tables| tables.holds_sum(slots)).await?;
        Ok(Compared { slots: sums, bookings, holds })
    }

    async fn end_abort(&mut self, change: Advance<'_>, undo: Undo) -> Result<(), MoveError> {
        let _lock = self.0.lock().await;
        self.0
            .write(|tables| {
                let slots = &change.row.slots;
                match undo {
                    Undo::Nothing => tables.ownership_version += 1,
                    Undo::Forget => {
                        let absent = SlotOwnership { state: SlotState::Absent, epoch: 0, peer: String::new() };
                        tables.change_each_slot(slots, |before| {
                            (before.state == SlotState::Incoming).then(|| absent.clone())
                        });
                    }
                    Undo::GiveBack { reverses, reached } => {
                        tables.change_each_slot(slots, |before| {
                            (before.state == SlotState::Incoming).then(|| SlotOwnership {
                                state: SlotState::Released,
                                epoch: before.epoch - 1,
                                peer: change.row.peer.clone(),
                            })
                        });
                        let row = tables.moves.get(&reverses).cloned().ok_or(MoveError::Superseded)?;
                        let kept = SourceProgress::reached_by_reversal(&row.progress, reached)?;
                        tables.advance(Advance { row: &row, to: row.phase, progress: &kept })?;
                    }
                }
                tables.advance(change)
            })
            .await
    }

    // === clean-up, at either shard ===

    async fn page_end(&mut self, after: i64, rows: i64) -> Result<Option<i64>, MoveError> {
        self.0.read(|tables| tables.page_end(Part { after, last: i64::MAX }, rows)).await
    }

    async fn delete_projections(&mut self, clean_up: CleanUp<'_>) -> Result<(), MoveError> {
        let slots = &clean_up.row.slots;
        self.0
            .write(|tables| {
                tables.may_clean_up(clean_up)?;
                let sagas = tables.sagas_of(slots);
                tables.sagas.retain(|position| !sagas.contains(position));
                tables.journal.holds_mut().retain(|key, _| !contains(slots, &key.debit));
                Ok(())
            })
            .await?;
        self.0
            .write(|tables| {
                tables.may_clean_up(clean_up)?;
                let gone: BTreeSet<AccountId> = tables.accounts_of(slots).map(|account| account.id.clone()).collect();
                tables.accounts.retain(|id, _| !gone.contains(id));
                tables.waypoints.retain(|(id, _), _| !gone.contains(id));
                Ok(())
            })
            .await
    }

    async fn delete_lone_rows(&mut self, clean_up: CleanUp<'_>) -> Result<(), MoveError> {
        self.0
            .write(|tables| {
                tables.may_clean_up(clean_up)?;
                let accounts = &tables.accounts;
                tables.waypoints.retain(|(id, _), _| accounts.contains_key(id));
                let journal = &tables.journal;
                tables.sagas.retain(|position| journal.at(*position).is_some());
                Ok(())
            })
            .await
    }

    async fn delete_bookings(
        &mut self,
        clean_up: CleanUp<'_>,
        (after, to): (i64, i64),
        deleted: impl FnOnce(u64) -> (Phase, String) + Send,
    ) -> Result<(Phase, String), MoveError> {
        self.0
            .write(|tables| {
                tables.may_clean_up(clean_up)?;
                let kept = tables.kept_slots(clean_up.row);
                let is_gone = |booking: &Booking| {
                    booking.position.0 > after
                        && booking.position.0 <= to
                        && is_relevant(&clean_up.row.slots, booking)
                        && !is_relevant(&kept, booking)
                };
                let gone = tables.journal.remove(is_gone);
                let (phase, text) = deleted(gone as u64);
                tables.advance(Advance { row: clean_up.row, to: phase, progress: &text })?;
                Ok((phase, text))
            })
            .await
    }
}

/// The sessions of a hand-over.
pub struct Sessions {
    session: Session,
    lock: Option<OwnedMutexGuard<()>>,
}

impl HandOver for Sessions {
    async fn get(&mut self, id: Uuid) -> Result<Option<MoveRow>, MoveError> {
        self.session.read(|tables| tables.moves.get(&id).cloned()).await
    }

    async fn appended(
        &mut self,
        slots: &[SlotRange],
        part: Part,
        at_once: i64,
    ) -> Result<(Vec<Booking>, i64), MoveError> {
        self.session
            .read(|tables| {
                let end = tables.page_end(part, at_once).or_else(|| tables.highest(part));
                let to = end.unwrap_or(part.after);
                (tables.relevant(slots, part.after, to), to)
            })
            .await
    }

    async fn bookings(&mut self, slots: &[SlotRange], after: i64, to: i64) -> Result<Vec<Booking>, MoveError> {
        self.session.read(|tables| tables.relevant(slots, after, to)).await
    }

    async fn rows(&mut self, slots: &[SlotRange], after: i64, to: i64) -> Result<Bytes, MoveError> {
        Ok(Page::Bookings(self.bookings(slots, after, to).await?).send())
    }

    async fn posted(&mut self, ids: &[AccountId]) -> Result<HashMap<String, i64>, MoveError> {
        let rows = |tables: &Tables| {
            let rows = ids.iter().filter_map(|id| tables.accounts.get(id));
            rows.map(|account| (account.id.to_string(), account.posted)).collect()
        };
        self.session.read(rows).await
    }

    async fn scales(&mut self) -> Result<Vec<wire::AssetScale>, MoveError> {
        self.session.read(Tables::wire_scales).await
    }

    async fn confirm(&mut self, row: &MoveRow) -> Result<(), MoveError> {
        let same = Advance { row, to: row.phase, progress: &row.progress };
        self.session.write(|tables| tables.advance(same)).await
    }

    async fn lock(&mut self) -> Result<ShardState, MoveError> {
        self.lock = Some(self.session.lock().await);
        self.session.read(Tables::state).await
    }

    async fn commit(&mut self, change: &SlotsChange<'_>) -> Result<(), MoveError> {
        let committed = self.session.write(|tables| tables.change_slots(change)).await;
        self.lock = None;
        committed
    }

    async fn commit_and_read(
        &mut self,
        change: &SlotsChange<'_>,
        bookings: Option<(i64, i64)>,
    ) -> Result<(Option<Bytes>, Vec<wire::AssetScale>), MoveError> {
        let rows = match bookings {
            Some((after, to)) => self.rows(change.slots, after, to).await.ok(),
            None => None,
        };
        let scales = self.scales().await;
        self.commit(change).await?;
        Ok((rows, scales?))
    }
}

/// Whether a slot of the set owns the booking, or has a leg in it.
fn is_relevant(slots: &[SlotRange], booking: &Booking) -> bool {
    booking.owner().is_some_and(|owner| contains(slots, owner))
        || booking.legs().any(|(_, id, _)| contains(slots, id))
}

fn is_within(booking: &Booking, after: i64, to: i64) -> bool {
    booking.position.0 > after && booking.position.0 <= to
}

impl Database {
    pub fn move_rows(&self) -> Vec<MoveRow> {
        self.tables().moves()
    }

    pub fn owns(&self, account: &AccountId) -> bool {
        self.tables().ownership.owns(account)
    }

    pub fn owns_slot(&self, slot: Slot) -> bool {
        self.tables().ownership.of(slot).state == SlotState::Owned
    }

    pub fn slots_owned(&self) -> usize {
        self.tables().ownership.owned()
    }

    /// The rows of the accounts of owned slots, and of the shard's own accounts.
    pub fn rows(&self) -> Vec<Account> {
        let tables = self.tables();
        let rows = tables.accounts.values();
        rows.filter(|account| account.id.is_system() || tables.ownership.owns(&account.id)).cloned().collect()
    }

    /// Folds the bookings of owned slots, those of several shards merged by time, and compares every row.
    pub fn compare_books(&self) -> Result<(), String> {
        let tables = self.tables();
        let own = tables.journal.next_position().shard_number();
        let mut differences: Vec<Difference> = Vec::new();
        let mut report = |difference: Difference| differences.push(difference);
        let mut books = Books::new(own);
        let owned = Slot::all().filter(|slot| tables.ownership.of(*slot).state == SlotState::Owned);
        books.expect_owned(OwnedSlots::new(tables.ownership_version, owned.map(Slot::index)));
        books.expect_folded_before(tables.folded_position);
        tables.accounts.values().for_each(|row| books.expect_account(row));
        let highest = Position(tables.journal.next_position().0 - 1);
        let holds = tables.journal.open_holds().iter().map(|(key, (hold, position))| {
            let row = HoldRow {
                position: *position,
                amount: hold.amount,
                captured: hold.captured,
                in_flight: hold.in_flight.map(|capture| (capture.capture, capture.amount)),
                expires_at_us: hold.expires_at_us,
            };
            (key.clone(), row)
        });
        books.expect_holds(highest, holds.collect());
        // Rows of slots that are not owned are leftovers of a move.
        let is_owned = |position: &&Position| {
            tables.journal.at(**position).is_none_or(|first| tables.ownership.owns(&first.payer))
        };
        books.expect_sagas(tables.folded_position, tables.sagas.iter().filter(is_owned).copied().collect());
        for Waypoint { account, version, position, at_us } in tables.waypoints.values() {
            books.expect_waypoint(account.as_str(), *version, *position, *at_us);
        }
        let mut ranges: BTreeMap<u16, Vec<&Booking>> = BTreeMap::new();
        for booking in tables.journal.bookings() {
            ranges.entry(booking.position.shard_number()).or_default().push(booking);
        }
        // The earliest position last, to be taken first.
        ranges.values_mut().for_each(|range| range.sort_by_key(|booking| std::cmp::Reverse(booking.position)));
        if ranges.keys().any(|shard| *shard != own) {
            books.expect_merged();
        }
        // At equal times, what came from elsewhere comes first.
        let next = |(shard, range): (&u16, &mut Vec<&Booking>)| {
            range.last().map(|booking| (booking.at_us, *shard == own, *shard))
        };
        while let Some((_, _, shard)) = ranges.iter_mut().filter_map(next).min() {
            if let Some(booking) = ranges.get_mut(&shard).and_then(Vec::pop) {
                books.apply(booking, &mut report);
            }
        }
        let left = books.finish(&mut report);
        if let Some(difference) = differences.first() {
            return Err(format!("{:?} of {}: {}", difference.rule, difference.subject, difference.detail));
        }
        if let Some(account) = left.mismatched.first() {
            let row = tables.accounts.get(&account.id);
            return Err(format!("the row of {} is {row:?}, and the journal has {account:?}", account.id));
        }
        if let Some(account) = left.without_row.iter().find(|id| !tables.accounts.contains_key(*id)) {
            return Err(format!("{account} has bookings and no row"));
        }
        if !left.unreached.is_empty() || !left.waypoints.is_empty() {
            let (rows, waypoints) = (left.unreached.len(), left.waypoints.len());
            return Err(format!("{rows} rows and {waypoints} waypoints are not in the journal"));
        }
        Ok(())
    }
}

impl Tables {
    // === the rows of moves ===

    fn moves(&self) -> Vec<MoveRow> {
        let mut rows: Vec<MoveRow> = self.moves.values().cloned().collect();
        rows.sort_by_key(|row| (row.started_at_us, row.id));
        rows
    }

    /// As the function `advance_move`.
    fn advance(&mut self, Advance { row: believed, to, progress }: Advance<'_>) -> Result<(), MoveError> {
        let now_us = telemetry::clock::now_us();
        let row = self.moves.get_mut(&believed.id).filter(|row| {
            row.phase == believed.phase
                && row.driver_epoch == believed.driver_epoch
                && row.progress == believed.progress
        });
        let row = row.ok_or(MoveError::Superseded)?;
        row.phase = to;
        progress.clone_into(&mut row.progress);
        row.updated_at_us = now_us;
        Ok(())
    }

    fn begin(
        &mut self,
        slots: &[SlotRange],
        judge: impl FnOnce(&Standing) -> Result<Begin, MoveError>,
    ) -> Result<(), MoveError> {
        let slots = slots.iter().copied().flat_map(SlotRange::slots).map(|slot| self.ownership.of(slot));
        let owned: Vec<&SlotOwnership> = slots.filter(|slot| slot.state == SlotState::Owned).collect();
        let standing = Standing {
            rows: self.moves(),
            owned: i64::try_from(owned.len()).unwrap(),
            epoch: owned.iter().map(|slot| slot.epoch).max().unwrap_or(0),
        };
        match judge(&standing)? {
            Begin::Insert(row) => assert!(self.moves.insert(row.id, row).is_none(), "a move begins twice"),
            Begin::Drive(id, driver_epoch) => {
                let row = self.moves.get_mut(&id).unwrap();
                row.driver_epoch = row.driver_epoch.max(driver_epoch);
            }
            Begin::Nothing => {}
        }
        Ok(())
    }

    // === slots ===

    fn change_each_slot(
        &mut self,
        slots: &[SlotRange],
        change: impl Fn(&SlotOwnership) -> Option<SlotOwnership>,
    ) -> usize {
        let (ownership, changed) = self.ownership.changed(slots, change);
        self.ownership = Arc::new(ownership);
        self.ownership_version += 1;
        changed
    }

    /// A hand-over, in a transaction that holds the lane's lock.
    fn change_slots(&mut self, change: &SlotsChange<'_>) -> Result<(), MoveError> {
        let SlotsChange { slots, from, to, epoch, peer, state, effects, advances, .. } = change;
        let Effects { bookings, holds, next_position } = effects;
        let effects = Effects { bookings: bookings.clone(), holds: holds.clone(), next_position: *next_position };
        self.write(Message { state: *state, effects, scales: Vec::new() })?;
        let count: usize = slots.iter().map(|range| usize::from(range.len())).sum();
        let changed = self.change_each_slot(slots, |before| {
            let after = SlotOwnership { state: *to, epoch: *epoch, peer: (*peer).to_owned() };
            (before.state == *from).then_some(after)
        });
        if changed != count {
            return Err(MoveError::Superseded);
        }
        advances.iter().try_for_each(|advance| self.advance(*advance))
    }

    /// As `CleanUp::begin` of the store that serves.
    fn may_clean_up(&self, CleanUp { row, state, epoch }: CleanUp<'_>) -> Result<(), MoveError> {
        let is_driven =
            self.moves.get(&row.id).is_some_and(|now| now.phase == row.phase && now.driver_epoch == row.driver_epoch);
        let mut slots = row.slots.iter().copied().flat_map(SlotRange::slots).map(|slot| self.ownership.of(slot));
        if is_driven && slots.all(|slot| slot.state == state && slot.epoch == epoch) {
            Ok(())
        } else {
            Err(StoreError::Fenced.into())
        }
    }

    /// The slots whose rows a clean-up must keep: all that the shard owns, receives, or can still take back.
    fn kept_slots(&self, row: &MoveRow) -> Vec<SlotRange> {
        let open = || self.moves.values().filter(|other| other.phase.is_open() && other.id != row.id);
        let is_kept = |slot: &Slot| {
            matches!(self.ownership.of(*slot).state, SlotState::Owned | SlotState::Incoming)
                || open().any(|other| other.slots.iter().any(|range| range.contains(*slot)))
        };
        let is_own = |slot: &Slot| row.slots.iter().any(|range| range.contains(*slot));
        shard_map::merge_slots(Slot::all().filter(|slot| is_kept(slot) && !is_own(slot)))
    }

    // === what moves ===

    /// The relevant bookings between two positions, in the order of positions.
    fn relevant(&self, slots: &[SlotRange], after: i64, to: i64) -> Vec<Booking> {
        let bookings = self.journal.bookings().iter();
        let mut bookings: Vec<Booking> =
            bookings.filter(|it| is_within(it, after, to) && is_relevant(slots, it)).cloned().collect();
        bookings.sort_by_key(|booking| booking.position);
        bookings
    }

    fn positions(&self, part: Part) -> Vec<i64> {
        let bookings = self.journal.bookings().iter().filter(|it| is_within(it, part.after, part.last));
        let mut positions: Vec<i64> = bookings.map(|booking| booking.position.0).collect();
        positions.sort_unstable();
        positions
    }

    fn page_end(&self, part: Part, rows: i64) -> Option<i64> {
        self.positions(part).get(usize::try_from(rows - 1).unwrap()).copied()
    }

    fn highest(&self, part: Part) -> Option<i64> {
        self.positions(part).last().copied()
    }

    fn accounts_of(&self, slots: &[SlotRange]) -> impl Iterator<Item = &Account> {
        self.accounts.values().filter(|account| contains(slots, &account.id))
    }

    fn holds_of(&self, slots: &[SlotRange]) -> Vec<(HoldKey, OpenHold)> {
        let holds = self.journal.open_holds().iter().filter(|(key, _)| contains(slots, &key.debit));
        let mut holds: Vec<_> = holds.map(|(key, hold)| (key.clone(), hold.clone())).collect();
        holds.sort_by_key(|(_, (_, position))| *position);
        holds
    }

    fn sagas_of(&self, slots: &[SlotRange]) -> BTreeSet<Position> {
        let is_of_slots =
            |position: &&Position| self.journal.at(**position).is_some_and(|first| contains(slots, &first.payer));
        self.sagas.iter().filter(is_of_slots).copied().collect()
    }

    fn wire_scales(&self) -> Vec<wire::AssetScale> {
        let scales = self.scales.iter();
        scales.map(|(asset, scale)| wire::AssetScale { asset: asset.clone(), scale: *scale }).collect()
    }

    fn copy_in(&mut self, booking: Booking) -> Result<(), MoveError> {
        let position = booking.position;
        if self.journal.copy_in(booking) {
            return Ok(());
        }
        let what = format!("booking {} is here with another content than at the source of the move", position.0);
        Err(StoreError::Corrupt(what).into())
    }

    fn insert_waypoints(&mut self, slots: &[SlotRange], after: i64, to: i64) {
        for booking in self.relevant(slots, after, to) {
            for (_, id, leg) in booking.legs() {
                if contains(slots, id) && fold::is_waypoint(leg.version) {
                    let (account, version) = (id.clone(), leg.version);
                    let (position, at_us) = (booking.position, booking.at_us);
                    let waypoint = Waypoint { account, version, position, at_us };
                    self.waypoints.entry((id.clone(), version)).or_insert(waypoint);
                }
            }
        }
    }

    fn insert_accounts(&mut self, accounts: Vec<Account>) -> Result<(), StoreError> {
        for account in accounts {
            if self.accounts.contains_key(&account.id) {
                return Err(super::duplicate("account_pkey").into());
            }
            self.accounts.insert(account.id.clone(), account);
        }
        Ok(())
    }

    fn insert_hold(&mut self, key: HoldKey, hold: OpenHold) -> Result<(), StoreError> {
        match self.journal.holds_mut().insert(key, hold) {
            None => Ok(()),
            Some(_) => Err(super::duplicate("hold_pkey").into()),
        }
    }

    fn insert_scales(&mut self, scales: &[wire::AssetScale]) -> Result<(), MoveError> {
        for wire::AssetScale { asset, scale } in scales {
            let there: &mut AssetScales = &mut self.scales;
            let there = *there.entry(asset.clone()).or_insert(*scale);
            if there != *scale {
                let what = format!("asset {asset} has {there} decimals here and {scale} at the source");
                return Err(MoveError::Differs(what));
            }
        }
        Ok(())
    }

    /// Writes what a page does to the rows of the slots.
    fn change(&mut self, changes: Changes) -> Result<(), MoveError> {
        let Changes { opened, updated, begun, ended, holds: HoldChanges { placed, changed, ended: closed } } =
            changes;
        self.insert_accounts(opened)?;
        for account in updated {
            let row = self.accounts.get_mut(&account.id).filter(|row| row.version < account.version);
            let Some(row) = row else {
                return Err(StoreError::Corrupt(format!("the row of {} was not updated", account.id)).into());
            };
            *row = account;
        }
        self.sagas.extend(begun.into_iter().map(Position));
        for key in ended {
            if let Some(first) = self.journal.answer(&key, ledger::booking::Role::Transfer) {
                let position = first.position;
                self.sagas.remove(&position);
            }
        }
        for (key, position, hold) in placed {
            self.insert_hold(key, (hold, position))?;
        }
        for (key, hold) in changed {
            self.journal.holds_mut().get_mut(&key).unwrap().0 = hold;
        }
        for key in closed {
            assert!(self.journal.holds_mut().remove(&key).is_some(), "a hold ends that is not open");
        }
        Ok(())
    }

    // === sums ===

    fn sum_up(&self, slots: &[SlotRange], number: u16, before: Option<Verified>, slot: Option<u32>) -> Summed {
        let own = Part::own(number);
        let position = self.highest(own).unwrap_or(own.after);
        let (mut sums, ranges) = JournalSums::to_complete(before, number, position);
        for (after, to) in ranges {
            let (bookings, shares) = self.digest(slots, after, to);
            sums.add(&bookings, shares);
        }
        let accounts = slot.and_then(|slot| Slot::try_from(slot).ok()).map(|slot| {
            let states = self.states(&[SlotRange::new(slot, slot).unwrap()], own).into_iter();
            let state = |account: Account| wire::AccountState {
                id: account.id.to_string(),
                asset: account.asset.to_string(),
                version: account.version,
                posted: account.posted,
                held: account.held,
                head: account.head.0,
            };
            states.map(state).collect()
        });
        let of_slots = self.slot_sums(slots, own);
        Summed::of(position, sums, of_slots, accounts.unwrap_or_default(), self.holds_sum(slots))
    }

    /// The accounts of slots as they are at the end of the journal: the newest leg beyond the folded position replaces a row.
    fn states(&self, slots: &[SlotRange], own: Part) -> Vec<Account> {
        let mut states: BTreeMap<&AccountId, Account> =
            self.accounts_of(slots).map(|account| (&account.id, account.clone())).collect();
        for booking in self.journal.bookings().iter().filter(|it| is_within(it, self.folded_position.0, own.last)) {
            for (_, id, leg) in booking.legs() {
                if let Some(state) = states.get_mut(id).filter(|state| state.version < leg.version) {
                    (state.version, state.head) = (leg.version, booking.position);
                    (state.posted, state.held) = (leg.posted, leg.held);
                }
            }
        }
        states.into_values().collect()
    }

    fn slot_sums(&self, slots: &[SlotRange], own: Part) -> Vec<wire::SlotSum> {
        let mut sums: BTreeMap<(u16, String), (i64, i128, i128, i128)> = BTreeMap::new();
        for account in self.states(slots, own) {
            let slot = slot_of(account.id.as_str()).index();
            let (accounts, posted, held, digest) = sums.entry((slot, account.asset.to_string())).or_default();
            *accounts += 1;
            *posted += i128::from(account.posted);
            *held += i128::from(account.held);
            let Account { id, version, head, opened, .. } = &account;
            *digest += hash_of(&(id.as_str(), version, account.posted, account.held, head.0, opened.0));
        }
        let sum = |((slot, asset), (accounts, posted, held, digest)): ((u16, String), (i64, i128, i128, i128))| {
            let (posted, held, digest) = (posted.to_string(), held.to_string(), digest.to_string());
            wire::SlotSum { slot: slot.into(), asset, accounts, posted, held, digest }
        };
        sums.into_iter().map(sum).collect()
    }

    fn holds_sum(&self, slots: &[SlotRange]) -> wire::HoldsSum {
        let holds = self.holds_of(slots);
        let sum = |of: fn(&ledger::Hold) -> i64| {
            holds.iter().map(|(_, (hold, _))| i128::from(of(hold))).sum::<i128>().to_string()
        };
        wire::HoldsSum {
            count: i64::try_from(holds.len()).unwrap(),
            amount: sum(|hold| hold.amount),
            captured: sum(|hold| hold.captured),
            in_flight: sum(|hold| hold.in_flight.map_or(0, |capture| capture.amount)),
            expiry: sum(|hold| hold.expires_at_us.unwrap_or(0)),
        }
    }

    fn digest(&self, slots: &[SlotRange], after: i64, to: i64) -> (BookingsDigest, BTreeMap<String, i128>) {
        let (mut digest, mut shares) = (BookingsDigest::default(), BTreeMap::new());
        for booking in self.relevant(slots, after, to) {
            let posted = |leg: Option<ledger::booking::Leg>| i128::from(leg.map_or(0, |leg| leg.posted));
            digest.add(&BookingsDigest {
                count: 1,
                positions: booking.position.0.into(),
                amounts: booking.amount.into(),
                times: booking.at_us.into(),
                balances: i128::from(booking.kind.code()) + posted(booking.payer_leg) + posted(booking.payee_leg),
                names: hash_of(&format!("{booking:?}")),
            });
            let share = i128::from(booking.in_transit_change());
            if share != 0 && booking.owner().is_some_and(|owner| contains(slots, owner)) {
                *shares.entry(booking.asset.to_string()).or_default() += share;
            }
        }
        (digest, shares)
    }
}

fn hash_of(value: &impl Hash) -> i128 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().into()
}
