//! The shard's database as the lane and the fold use it.
//!
//! [`Store`] is the boundary: the lane decides, a store keeps. [`postgres`] is the store that serves; [`memory`] is one
//! for tests, which can lose an answer, swallow a COMMIT, fence, stall and crash. Reads for clients do not go through
//! the boundary: they are statements of their own on a pool ([`read`], [`statement`], [`account_list`]).

pub mod account;
pub mod account_list;
pub mod bookings;
pub mod error;
pub mod evidence;
#[cfg(any(test, feature = "simulation"))]
#[cfg_attr(not(test), allow(dead_code, reason = "some faults are ordered by tests of the lane only"))]
pub mod memory;
pub mod message;
pub mod moves;
pub mod ownership;
pub mod postgres;
pub mod read;
pub mod session;
pub mod statement;

use std::{future::Future, sync::Arc};

use identity::{AssetScales, Marks};
use ledger::{
    Account, AccountId, AssetCode, Booking, Hold, HoldKey, Position, TransferKey,
    batch::{Effects, Stored},
    history::Original,
    operation::CreateAccount,
};
use shard_database::ShardState;
use shard_map::SlotRange;

pub use error::StoreError;
use ownership::Ownership;

/// What a store has to be able to do. Every method may be called again after it failed.
pub trait Store: Send + Sync + 'static {
    /// A batch in the form in which it is sent.
    type Message: Send + 'static;

    /// Opens the session that reads, if it is not open, and reads what the lane must know before it decides.
    ///
    /// # Errors
    /// When the database is out of reach, or refused by the gate.
    fn open(&self) -> impl Future<Output = Result<Opened, StoreError>> + Send;

    /// Opens the session that writes, if it is not open. Returns whether it is new. [`Store::open`] comes first.
    ///
    /// # Errors
    /// When the database is out of reach, takes no writes, or is not the one that the reading session leads to.
    fn open_writer(&self) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Drops the session that writes, if it is open.
    fn close_writer(&self) -> impl Future<Output = ()> + Send;

    /// Drops the lane's sessions. The next call of [`Store::open`] opens new ones.
    fn close(&self) -> impl Future<Output = ()> + Send;

    /// Whether the lane's sessions lead to the database that is accepted now.
    fn is_current(&self) -> bool;

    /// Reads the folded position, and the sagas that were under way at that position. The lane loads its tail from both.
    fn folded(&self) -> impl Future<Output = Result<Folded, StoreError>> + Send;

    /// The first bookings of the sagas under way whose payers are in these slots, as of the folded position.
    fn sagas_of(&self, slots: &[SlotRange]) -> impl Future<Output = Result<Vec<Booking>, StoreError>> + Send;

    /// The bookings of the shard's own range after a position, in order, at most `limit`.
    fn bookings_after(
        &self,
        position: Position,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<Booking>, StoreError>> + Send;

    /// The rows of those accounts that exist. A row may be older than the journal by what is not folded yet.
    fn accounts(&self, ids: &[AccountId]) -> impl Future<Output = Result<Vec<Account>, StoreError>> + Send;

    /// What the accounts were opened with.
    fn openings(&self, accounts: &[&Account]) -> impl Future<Output = Result<Vec<CreateAccount>, StoreError>> + Send;

    /// The holds among `keys` that exist.
    fn holds(&self, keys: &[HoldKey]) -> impl Future<Output = Result<Vec<(HoldKey, Hold)>, StoreError>> + Send;

    /// The transfers among `keys` with what is reversed of them.
    fn originals(
        &self,
        keys: &[TransferKey],
    ) -> impl Future<Output = Result<Vec<(TransferKey, Original)>, StoreError>> + Send;

    /// What the journal holds under these ids.
    fn stored(
        &self,
        transfers: &[TransferKey],
        registers: &[TransferKey],
    ) -> impl Future<Output = Result<Stored, StoreError>> + Send;

    /// Puts a batch into the form in which it is sent.
    fn encode(&self, append: &Append<'_>) -> Self::Message;

    /// Writes a batch in one transaction, if the shard is in the state that the batch was decided on.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when it is not. [`CommitFailure::in_doubt`] says whether the batch may be committed all
    /// the same.
    fn commit(&self, message: Self::Message) -> impl Future<Output = Result<(), CommitFailure>> + Send;

    /// Opens the session of the fold, if it is not open. `timeline` is that of the server that the tail was loaded from.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the database is on another timeline.
    fn begin_fold(&self, timeline: i64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Dead versions for each row of `account`, as the server estimates them. The server cannot remove the versions that an open
    /// snapshot may still see.
    fn dead_versions_per_row(&self) -> impl Future<Output = Result<f64, StoreError>> + Send;

    /// Writes newer states over older rows of `account`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a row does not lead to the state that is to replace it.
    fn fold_accounts(
        &self,
        incarnation: i64,
        accounts: &[&FoldedAccount],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Advances the projections that reach exactly to a position. Returns `false` if another writer has advanced them
    /// since, and changes nothing then.
    fn finish_fold(&self, step: &FoldStep) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// What the lane must know before it decides.
#[derive(Debug, Clone)]
pub struct Opened {
    pub state: ShardState,
    /// The timeline of the server.
    pub timeline: i64,
    /// The position that the projections reach.
    pub folded: Position,
    pub ownership: Arc<Ownership>,
    /// Scales of the assets that accounts of this shard use.
    pub scales: AssetScales,
    /// The session is new. What is found in the database may be visible and not yet replicated.
    pub is_new: bool,
}

/// How far the projections reach.
#[derive(Debug, Clone)]
pub struct Folded {
    pub position: Position,
    /// The first bookings of the sagas under way as of that position.
    pub sagas: Vec<Booking>,
}

/// A batch to be written.
#[derive(Debug)]
pub struct Append<'b> {
    /// The state that the batch was decided on.
    pub state: ShardState,
    pub effects: &'b Effects,
    /// Marks of other shards that came with the operations.
    pub marks: &'b Marks,
    /// Scales of assets that are new on this shard.
    pub scales: &'b [(AssetCode, u32)],
}

/// A batch was not written, or may not have been.
#[derive(Debug)]
pub struct CommitFailure {
    pub error: StoreError,
    /// The batch may have been committed. If false, the batch certainly had no effect.
    pub in_doubt: bool,
}

impl From<StoreError> for CommitFailure {
    fn from(error: StoreError) -> Self {
        Self { error, in_doubt: false }
    }
}

/// The newest committed state of an account, and the state that its row must have reached before.
#[derive(Debug, Clone)]
pub struct FoldedAccount {
    pub account: Account,
    /// Version and head before the account's first booking that is not folded.
    pub base_version: i64,
    pub base_head: Position,
    /// Status, limits or metadata may differ from the row's.
    pub attributes_changed: bool,
}

/// The last step of a fold.
#[derive(Debug, Clone, Default)]
pub struct FoldStep {
    pub incarnation: i64,
    /// The timeline that the tail was loaded on.
    pub timeline: i64,
    pub from: Position,
    pub to: Position,
    pub waypoints: Vec<Waypoint>,
    /// Positions of the first bookings of sagas that began and are under way, and of those that have ended.
    pub begun: Vec<Position>,
    pub ended: Vec<Position>,
}

/// A place to enter an account's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waypoint {
    pub account: AccountId,
    pub version: i64,
    pub position: Position,
    pub at_us: i64,
}
