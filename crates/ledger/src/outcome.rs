//! What the ledger answers to an [`crate::operation::Operation`].

use crate::{Account, Limit, Refused, operation::Verdict};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Account(AccountOutcome),
    Transfer(TransferOutcome),
    Atomic(AtomicOutcome),
    Decided(Decided),
    Settled(Settled),
    NotOwner(NotOwner),
    /// Not executed: something earlier of the same request has to finish first.
    Deferred,
    /// Not executed: it would break an invariant. A human must look.
    Illegal(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountOutcome {
    Created(Account),
    /// It exists with equal content.
    Replayed(Account),
    /// It exists with other content in this field.
    Conflict {
        field: &'static str,
    },
    Updated(Account),
    NotFound,
    Refused {
        account: Account,
        refused: Refused,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferOutcome {
    Done(TransferAnswer),
    /// The id is taken by a transfer with another value of this field.
    Mismatch {
        field: &'static str,
    },
    /// The debit account does not exist: nothing is stored, the id stays free.
    DebitNotFound,
    /// An atomic group failed around it: nothing is stored.
    NotStored(Refused),
}

/// The stored answer of a transfer; a replay gives the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferAnswer {
    pub state: TransferState,
    pub cross_shard: bool,
    /// The debit account after this transfer; absent for a transfer refused outright.
    pub debit_after: Option<DebitAfter>,
    pub created_at_us: i64,
    pub replayed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferState {
    Pending,
    Posted { at_us: i64 },
    Rejected { refused: Refused, at_us: i64 },
}

/// Status codes as stored. Never reuse one; 4 is kept for `reversed`.
impl TransferState {
    pub const PENDING: u8 = 1;
    pub const POSTED: u8 = 2;
    pub const REJECTED: u8 = 3;

    pub fn code(self) -> u8 {
        match self {
            Self::Pending => Self::PENDING,
            Self::Posted { .. } => Self::POSTED,
            Self::Rejected { .. } => Self::REJECTED,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Posted { .. } => "posted",
            Self::Rejected { .. } => "rejected",
        }
    }

    pub fn finished_at_us(self) -> Option<i64> {
        match self {
            Self::Pending => None,
            Self::Posted { at_us } | Self::Rejected { at_us, .. } => Some(at_us),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebitAfter {
    pub posted: i64,
    pub held: i64,
    pub overdraft: Limit,
    pub version: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtomicOutcome {
    pub items: Vec<TransferOutcome>,
    /// The item that failed the group. Nothing of the group is stored then.
    pub culprit: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    pub verdict: Verdict,
    pub at_us: i64,
    pub replayed: bool,
}

/// Step 3 of a saga is done. What the client is told besides comes from the reserve's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub state: TransferState,
    pub replayed: bool,
}

/// The fence refused: this shard does not own the slot. Nothing was executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotOwner {
    pub slot: u16,
    pub state: u8,
    pub epoch: i64,
    /// The shard that took the slot, where this shard knows it.
    pub owner: String,
}
