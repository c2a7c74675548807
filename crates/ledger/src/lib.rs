//! The ledger: what a transfer may do to the accounts it names.
//!
//! This crate decides; it never reads a clock, a file, a socket or a database. The shard-node's lane loads the accounts
//! that a batch names and calls [`batch::Batch`] once per operation, in order. Each decision becomes a [`Booking`], one row
//! of the journal. The lane writes the bookings of [`batch::Effects`] in one PostgreSQL transaction.
//!
//! Start at [`posting`]: the rules of double entry, one function a rule. [`hold`] has the rules of holds. [`batch`]
//! applies them in sequence and implements idempotency, atomic groups and the steps of a saga. [`fold`] says what a
//! booking does to accounts, holds and sagas; nothing changes their state in another way. [`history`] says what the
//! bookings of one id come to. Amounts are minor units in `i64`; sums are `i128`.

pub mod account;
pub mod accounts;
pub mod amount;
pub mod asset;
pub mod batch;
pub mod booking;
pub mod fold;
pub mod history;
pub mod hold;
pub mod id;
#[cfg(any(test, feature = "testing"))]
pub mod in_memory;
pub mod metadata;
pub mod operation;
pub mod outcome;
pub mod posting;
pub mod refusal;
#[cfg(test)]
mod samples;

pub use account::{Account, AccountPrefix, AccountStatus, Limit};
pub use amount::{AmountError, format_minor, parse_minor};
pub use asset::{AssetCode, AssetRegistry};
pub use booking::{Booking, BookingKind, Entry, EntryKind};
pub use hold::{Hold, HoldStatus};
pub use id::{AccountId, HoldKey, InvalidAccountId, InvalidKeyName, KeyName, Position, TransferId, TransferKey};
pub use metadata::Metadata;
pub use refusal::{Refusal, Refused, Side};
