//! Journal entries: every change of an account appends one.

pub mod detail;

use std::sync::Arc;

use crate::{AccountId, AssetCode, Limit, Position, TransferId};

/// One line of one account's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub position: Position,
    /// The entry before this one of the same account; [`Position::NONE`] for the first.
    pub previous: Position,
    pub account: AccountId,
    pub asset: AssetCode,
    pub version: i64,
    pub kind: EntryKind,
    /// Signed change of `posted`, in minor units.
    pub amount: i64,
    /// Balances after this entry.
    pub posted: i64,
    pub held: i64,
    pub overdraft: Limit,
    pub cause: Option<Cause>,
    /// What an [`EntryKind::Opened`] or [`EntryKind::Updated`] set, as JSON ([`detail`]).
    pub detail: Option<Arc<str>>,
    pub created_at_us: i64,
}

/// The transfer or hold behind an entry.
///
/// The counterparty of a debit account's entry is the credit account, and the other way round, also when the money goes
/// through in-transit. The counterparty of an in-transit entry is always the debit account, so that (transfer, counterparty)
/// identifies the transfer on both shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Of a hold where [`EntryKind::is_of_hold`].
    pub transfer: TransferId,
    pub counterparty: AccountId,
}

/// What an entry records. The numbers are stored: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// The account was opened.
    Opened = 1,
    /// Status, limits or metadata changed; no money moved.
    Updated = 2,
    /// A leg of a posted transfer: both legs of a local one, the payee's of a cross-shard one.
    Posted = 3,
    /// Payer to in-transit: step 1 of a saga.
    Reserved = 4,
    /// In-transit back to payer: the saga's credit side refused.
    Compensated = 5,
    /// A hold was placed; only `held` changes. The cause is the hold.
    Held = 6,
    /// The payer's leg of a capture: out of `posted` and `held` at once. The cause is the capture.
    Captured = 7,
    /// A hold, or the rest of one after its final capture, is available again. The cause is the hold.
    Released = 8,
    /// The same, because its time was over. The cause is the hold.
    Expired = 9,
}

impl EntryKind {
    pub const ALL: [Self; 9] = [
        Self::Opened,
        Self::Updated,
        Self::Posted,
        Self::Reserved,
        Self::Compensated,
        Self::Held,
        Self::Captured,
        Self::Released,
        Self::Expired,
    ];
    /// Every this-many-th version of an account leaves a waypoint row.
    pub const WAYPOINT_INTERVAL: i64 = 64;

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.code() == code)
    }

    /// Whether the cause of such an entry is a hold and not a transfer.
    pub fn is_of_hold(self) -> bool {
        matches!(self, Self::Held | Self::Released | Self::Expired)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Updated => "updated",
            Self::Posted => "posted",
            Self::Reserved => "reserved",
            Self::Compensated => "compensated",
            Self::Held => "held",
            Self::Captured => "captured",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }
}
