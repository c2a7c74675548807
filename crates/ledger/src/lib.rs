//! The ledger: what a transfer may do to the accounts it names.
//!
//! This crate decides; it never reads a clock, a file, a socket or a database. The shard-node's lane loads the accounts a
//! batch names, calls [`batch::Batch`] once per operation in order, and writes the resulting [`batch::Effects`] in one
//! PostgreSQL transaction.
//!
//! Start at [`posting`]: the rules of double entry, one function per rule; [`hold`] has those of holds. [`batch`] applies them in sequence and keeps
//! idempotency, atomic groups and the saga's steps straight. Amounts are minor units in `i64`; sums are `i128`.

pub mod account;
pub mod account_prefix;
pub mod accounts;
pub mod amount;
pub mod asset;
pub mod batch;
pub mod booking;
pub mod fold;
pub mod history;
pub mod hold;
pub mod id;
pub mod metadata;
pub mod operation;
pub mod outcome;
pub mod posting;
pub mod refusal;

pub use account::{Account, AccountStatus, Limit};
pub use account_prefix::AccountPrefix;
pub use booking::{Booking, BookingKind, Entry, EntryKind};
pub use amount::{AmountError, format_minor, parse_minor};
pub use asset::{AssetCode, AssetRegistry};
pub use hold::{Hold, HoldStatus};
pub use id::{AccountId, HoldKey, InvalidAccountId, Position, TransferId, TransferKey};
pub use metadata::Metadata;
pub use refusal::{Refusal, Refused, Side};
