//! The database of a shard as moves of slots use it.
//!
//! [`MoveStore`] is the boundary: `crate::moves` decides what a move does next, a store reads and writes. Each method of a [`MoveConnection`] is one read
//! or one transaction, and the durable steps of a move (`crate::durable`) are such transactions. A [`HandOver`] has the two transactions in
//! which slots change hands. [`postgres`] is the store that serves. Rows travel between shards in a form that only the stores know: no caller
//! decodes them.

mod arrivals;
pub mod hand_over;
pub mod load;
pub mod postgres;
pub mod tables;

use std::{collections::HashMap, future::Future};

use bytes::Bytes;
use ledger::{AccountId, Booking, batch::Effects};
use shard_database::ShardState;
use shard_map::SlotRange;
use uuid::Uuid;

use super::ownership::SlotState;
use crate::{
    durable::DurableStep,
    moves::{
        error::MoveError,
        incoming::Incoming,
        phase::Phase,
        progress::Progress,
        scope::Part,
        sums::{BookingsDigest, Summed, Verified},
    },
};

/// A move as one of its shards stores it.
#[derive(Debug, Clone)]
pub struct MoveRow {
    pub id: Uuid,
    /// The shard at the other end.
    pub peer: String,
    pub slots: Vec<SlotRange>,
    pub phase: Phase,
    pub driver_epoch: i64,
    /// JSON.
    pub progress: String,
    /// JSON.
    pub wishes: String,
    pub started_at_us: i64,
    pub updated_at_us: i64,
}

/// Where a shard keeps its moves and what moves.
pub trait MoveStore: Send + Sync + 'static {
    type Connection: MoveConnection;
    type HandOver: HandOver;

    /// # Errors
    /// When the database is out of reach, or refused by the gate.
    fn connection(&self) -> impl Future<Output = Result<Self::Connection, MoveError>> + Send;

    /// Opens the sessions of a hand-over. Connecting takes longer than the hand-over itself.
    ///
    /// # Errors
    /// When the database is out of reach, or refused by the gate.
    fn hand_over(&self) -> impl Future<Output = Result<Self::HandOver, MoveError>> + Send;

    /// The number of rows in a page of bookings; `None` if the page ends early.
    fn rows_in(page: &Bytes) -> Option<u64>;

    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// A connection to the shard's database. Each method is one read or one transaction. Every method fails if the database does not answer, and a transaction
/// has had no effect then, or all of it.
pub trait MoveConnection: Send {
    // === the rows of moves ===

    /// The moves in which this shard takes part or took part, oldest first.
    fn list(&mut self) -> impl Future<Output = Result<Vec<MoveRow>, MoveError>> + Send;

    fn get(&mut self, id: Uuid) -> impl Future<Output = Result<Option<MoveRow>, MoveError>> + Send;

    /// Raises the driver epoch: every driver before this one fails at its next step.
    fn claim(&mut self, id: Uuid, now_us: i64) -> impl Future<Output = Result<Option<MoveRow>, MoveError>> + Send;

    /// Notes that the driver is alive.
    fn touch(
        &mut self,
        id: Uuid,
        driver_epoch: i64,
        now_us: i64,
    ) -> impl Future<Output = Result<(), MoveError>> + Send;

    fn set_wishes(&mut self, id: Uuid, wishes: &str) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Replaces what an operator wants of a move, as `judge` says.
    fn change_wishes(
        &mut self,
        id: Uuid,
        judge: impl FnOnce(Option<&MoveRow>) -> Result<String, MoveError> + Send,
    ) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Changes phase and progress of a row.
    ///
    /// # Errors
    /// [`MoveError::Superseded`] if the row has not the phase, the driver epoch and the progress that the caller believes.
    fn advance(&mut self, change: Advance<'_>) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Begins a move to this shard, as `judge` says: no other move begins meanwhile. [`DurableStep::Start`].
    fn start(
        &mut self,
        slots: &[SlotRange],
        judge: impl FnOnce(&Standing) -> Result<Begin, MoveError> + Send,
    ) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Records a move away from this shard or a new driver of it, as `judge` says: no other move begins meanwhile. [`DurableStep::Join`].
    fn join(
        &mut self,
        slots: &[SlotRange],
        judge: impl FnOnce(&Standing) -> Result<Begin, MoveError> + Send,
    ) -> impl Future<Output = Result<Estimates, MoveError>> + Send;

    /// Marks the slots as incoming at this epoch, so that refusals name the source. [`DurableStep::Announce`].
    fn announce(&mut self, change: Advance<'_>, epoch: i64) -> impl Future<Output = Result<(), MoveError>> + Send;

    // === reads at the source ===

    /// The position up to which the projections are written.
    fn folded_position(&mut self) -> impl Future<Output = Result<i64, MoveError>> + Send;

    /// The bookings of a part of the journal that are relevant to the slots. Looks at so many bookings.
    fn read_bookings(
        &mut self,
        slots: &[SlotRange],
        part: Part,
        limit: i64,
    ) -> impl Future<Output = Result<BookingsPage, MoveError>> + Send;

    /// The highest position of a part of the journal, if it has one.
    fn highest(&mut self, part: Part) -> impl Future<Output = Result<Option<i64>, MoveError>> + Send;

    /// Rows of accounts after an id.
    fn read_accounts(
        &mut self,
        slots: &[SlotRange],
        after: &str,
        limit: u32,
    ) -> impl Future<Output = Result<AccountsPage, MoveError>> + Send;

    /// The rows of holds and sagas, and the scales of assets, in one snapshot.
    fn read_small_tables(
        &mut self,
        slots: &[SlotRange],
        own: Part,
    ) -> impl Future<Output = Result<wire::ReadMoveSmallTablesResponse, MoveError>> + Send;

    /// Sums up slots at the end of the shard's own part, in one snapshot. The bookings that `before` includes are not read again. With
    /// `slot`, each account of that slot as well.
    fn sum_up(
        &mut self,
        slots: &[SlotRange],
        number: u16,
        before: Option<Verified>,
        slot: Option<u32>,
    ) -> impl Future<Output = Result<Summed, MoveError>> + Send;

    fn scales(&mut self) -> impl Future<Output = Result<Vec<wire::AssetScale>, MoveError>> + Send;

    /// Accounts and their legs by slot. Reads every row of `account`.
    fn load(&mut self) -> impl Future<Output = Result<wire::LoadResponse, MoveError>> + Send;

    // === writes and reads at the target ===

    /// Writes a page of bookings and its waypoints with the progress; in the catch-up, also the page's effect on other rows. Bookings that are here
    /// already must be the same. [`DurableStep::CopyBookings`] or [`DurableStep::FollowBookings`].
    fn write_page(
        &mut self,
        page: PageWrite<'_>,
    ) -> impl Future<Output = Result<(Progress, String), MoveError>> + Send;

    /// Writes a page of rows of accounts with the progress that `written` makes of their number. [`DurableStep::CopyAccounts`].
    fn write_accounts(
        &mut self,
        row: &MoveRow,
        rows: Bytes,
        written: impl FnOnce(u64) -> String + Send,
    ) -> impl Future<Output = Result<String, MoveError>> + Send;

    /// Writes rows of holds and sagas, and the scales of assets. [`DurableStep::CopySmallTables`].
    fn write_small_tables(
        &mut self,
        tables: wire::ReadMoveSmallTablesResponse,
        change: Advance<'_>,
    ) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Writes the scales of assets that are new here.
    ///
    /// # Errors
    /// [`MoveError::Differs`] if a scale is another one here.
    fn insert_scales(&mut self, scales: &[wire::AssetScale]) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// The newest time of an account of the slots, in microseconds since the epoch.
    fn newest_account_us(&mut self, slots: &[SlotRange]) -> impl Future<Output = Result<i64, MoveError>> + Send;

    /// The sums of each slot, those over the bookings between two positions, and those over the open holds.
    fn compare_sums(
        &mut self,
        slots: &[SlotRange],
        own: Part,
        bookings: (i64, i64),
    ) -> impl Future<Output = Result<Compared, MoveError>> + Send;

    /// Ends a move that was given up. [`DurableStep::EndAbort`].
    fn end_abort(&mut self, change: Advance<'_>, undo: Undo) -> impl Future<Output = Result<(), MoveError>> + Send;

    // === clean-up, at either shard ===

    /// The position at which a page of the whole journal ends that begins after `after` and has so many bookings; `None` if the journal ends before.
    fn page_end(&mut self, after: i64, rows: i64) -> impl Future<Output = Result<Option<i64>, MoveError>> + Send;

    /// Deletes the rows of accounts, holds, sagas and waypoints, in small transactions.
    fn delete_projections(&mut self, clean_up: CleanUp<'_>) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Deletes what a copy left that was given up halfway: waypoints whose accounts have not come, and sagas whose first bookings have not
    /// come. No other move may be coming in.
    fn delete_lone_rows(&mut self, clean_up: CleanUp<'_>) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Deletes the bookings between two positions that are relevant to the slots of the move, and to no slot that the shard owns, receives or can take
    /// back. Writes the phase and the progress that `deleted` makes of their number in the same transaction, and returns them.
    fn delete_bookings(
        &mut self,
        clean_up: CleanUp<'_>,
        range: (i64, i64),
        deleted: impl FnOnce(u64) -> (Phase, String) + Send,
    ) -> impl Future<Output = Result<(Phase, String), MoveError>> + Send;
}

/// The sessions of a hand-over: the release at the source, or the take at the target. One session holds the lane's lock and writes, the other reads
/// meanwhile. Dropping the sessions ends a transaction without effect.
pub trait HandOver: Send {
    fn get(&mut self, id: Uuid) -> impl Future<Output = Result<Option<MoveRow>, MoveError>> + Send;

    /// The relevant bookings of a part of the journal, and the position up to which it was read. Looks at so many bookings.
    fn appended(
        &mut self,
        slots: &[SlotRange],
        part: Part,
        at_once: i64,
    ) -> impl Future<Output = Result<(Vec<Booking>, i64), MoveError>> + Send;

    /// The relevant bookings between two positions.
    fn bookings(
        &mut self,
        slots: &[SlotRange],
        after: i64,
        to: i64,
    ) -> impl Future<Output = Result<Vec<Booking>, MoveError>> + Send;

    /// The same as rows that travel.
    fn rows(
        &mut self,
        slots: &[SlotRange],
        after: i64,
        to: i64,
    ) -> impl Future<Output = Result<Bytes, MoveError>> + Send;

    /// What the rows of accounts hold, by id, for the accounts that exist.
    fn posted(&mut self, ids: &[AccountId]) -> impl Future<Output = Result<HashMap<String, i64>, MoveError>> + Send;

    fn scales(&mut self) -> impl Future<Output = Result<Vec<wire::AssetScale>, MoveError>> + Send;

    /// Commits a transaction without effect on the row of the move. Everything that was visible before is then confirmed by the stand-by, if
    /// there is one.
    fn confirm(&mut self, row: &MoveRow) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// Takes the lane's lock. Nothing is appended from now on, so that the state says where the journal ends.
    fn lock(&mut self) -> impl Future<Output = Result<ShardState, MoveError>> + Send;

    /// Commits a transaction that holds the lock.
    fn commit(&mut self, change: &SlotsChange<'_>) -> impl Future<Output = Result<(), MoveError>> + Send;

    /// The same, and reads while the commit waits for the disk what the target needs: the relevant bookings between two positions, if they are wanted and can be
    /// read, and the scales of assets. The lock keeps everything else out until then.
    fn commit_and_read(
        &mut self,
        change: &SlotsChange<'_>,
        bookings: Option<(i64, i64)>,
    ) -> impl Future<Output = Result<(Option<Bytes>, Vec<wire::AssetScale>), MoveError>> + Send;
}

/// A compare-and-set on the row of a move.
#[derive(Debug, Clone, Copy)]
pub struct Advance<'a> {
    /// The row as the caller believes it to be.
    pub row: &'a MoveRow,
    pub to: Phase,
    /// JSON.
    pub progress: &'a str,
}

/// What speaks for or against a move that begins.
#[derive(Debug)]
pub struct Standing {
    /// Every move of the shard, oldest first.
    pub rows: Vec<MoveRow>,
    /// How many of the slots the shard owns, and their highest epoch.
    pub owned: i64,
    pub epoch: i64,
}

impl Standing {
    pub fn row(&self, id: Uuid) -> Option<&MoveRow> {
        self.rows.iter().find(|row| row.id == id)
    }
}

/// How a move begins at a shard.
#[derive(Debug)]
pub enum Begin {
    /// With a row.
    Insert(MoveRow),
    /// It has a row already, and this is a driver's epoch. A lower one changes nothing.
    Drive(Uuid, i64),
    /// It has a row already.
    Nothing,
}

/// How much a source has, by the server's statistics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Estimates {
    pub folded_position: i64,
    /// Slots that the shard owns.
    pub owned: i64,
    pub accounts: i64,
    pub bookings: i64,
}

/// A page of bookings.
#[derive(Debug)]
pub struct BookingsPage {
    pub rows: Bytes,
    /// The page reaches this position.
    pub to: i64,
    pub at_end: bool,
}

/// A page of rows of accounts.
#[derive(Debug)]
pub struct AccountsPage {
    pub rows: Bytes,
    pub count: u64,
    /// The id of the last account; empty if there is none.
    pub last: String,
}

/// What a target writes of a page of bookings.
#[derive(Debug)]
pub struct PageWrite<'a> {
    pub row: &'a MoveRow,
    /// `None`: no booking between the two positions is relevant.
    pub rows: Option<Bytes>,
    /// The page has the bookings after this position, up to the other one.
    pub after: i64,
    pub to: i64,
    /// The progress after the page, without the number of its bookings and the sums over what has come.
    pub progress: Progress,
    /// The sums over what has come, in the catch-up. After a failure they are of no use.
    pub incoming: Option<&'a mut Incoming>,
    /// The commit of the take makes this one durable, too.
    pub is_last: bool,
}

/// Sums at the target.
#[derive(Debug)]
pub struct Compared {
    pub slots: Vec<wire::SlotSum>,
    pub bookings: BookingsDigest,
    pub holds: wire::HoldsSum,
}

/// What becomes of the slots when a move to this shard was given up.
#[derive(Debug, Clone, Copy)]
pub enum Undo {
    /// They were never announced.
    Nothing,
    /// The shard never had them.
    Forget,
    /// They go back to the state in which this move has released them. Their rows are as of this position of the other shard.
    GiveBack { reverses: Uuid, reached: i64 },
}

/// How slots change hands.
#[derive(Debug)]
pub struct SlotsChange<'a> {
    /// [`DurableStep::Release`] or [`DurableStep::Take`].
    pub step: DurableStep,
    pub slots: &'a [SlotRange],
    pub from: SlotState,
    pub to: SlotState,
    pub epoch: i64,
    pub peer: &'a str,
    /// The state of the shard under the lock, and what is booked.
    pub state: ShardState,
    pub effects: &'a Effects,
    /// The row of the move, and that of the move that this one reverses.
    pub advances: Vec<Advance<'a>>,
}

/// What a clean-up may delete, checked in each of its transactions: a driver that froze and was superseded deletes nothing.
#[derive(Debug, Clone, Copy)]
pub struct CleanUp<'a> {
    pub row: &'a MoveRow,
    /// State and epoch of the slots.
    pub state: SlotState,
    pub epoch: i64,
}
