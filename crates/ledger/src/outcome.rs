//! What the ledger answers to an [`crate::operation::Operation`].

use crate::{Account, AccountId, Hold, HoldKey, KeyName, Limit, Refused, operation::Verdict};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Account(AccountOutcome),
    Transfer(TransferOutcome),
    Hold(HoldOutcome),
    Atomic(AtomicOutcome),
    Decided(Decided),
    Settled(Settled),
    MetadataErased(MetadataErased),
    NotOwner(NotOwner),
    /// Not executed: something earlier of the same request has to finish first.
    Deferred,
    /// Not executed, and nothing is stored: whether it is refused depends on the verdicts of reserved transfers, whose money may come back.
    /// Some of the accounts that these transfers pay.
    Undetermined(Vec<AccountId>),
    /// Not executed: it would break an invariant. A human must look.
    Illegal(String),
}

/// What a shard answers to an operation that it was asked to execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Outcome(Outcome),
    /// It certainly had no effect and never will.
    NotExecuted {
        reason: Reason,
        detail: String,
    },
    /// Whether its commit was carried out could not be learnt in time.
    Unknown,
}

/// Why an operation was not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The shard has too much work.
    Overloaded,
    /// The shard's database cannot be reached or takes no writes.
    Unavailable,
    /// The operation's deadline passed before it was decided.
    Deadline,
    ShuttingDown,
    /// An invariant would have been broken.
    Internal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountOutcome {
    Created(Account),
    /// It exists: it was opened with equal content, or is equal now.
    Replayed(Account),
    /// It was opened with other content, and is other now in this field.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataErased {
    /// It was erased by this operation.
    Now,
    /// There is none, or it was erased before.
    Nothing,
    /// There is no such transfer or hold in the shard's journal.
    NotFound,
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
    /// A capture of a hold that does not exist: nothing is stored.
    HoldNotFound,
    /// An atomic group failed around it: nothing is stored.
    NotStored(Refused),
}

/// The answer of a transfer, as its bookings record it; a replay gives the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferAnswer {
    pub state: TransferState,
    /// Minor units. What was asked for, or what a capture of all that remains came to.
    pub amount: i64,
    pub cross_shard: bool,
    /// What a pending transfer will be refused with unless its credit side refuses first: nothing was reserved.
    pub presumed: Option<Refused>,
    /// The debit account after this transfer; absent for a transfer refused outright.
    pub debit_after: Option<DebitAfter>,
    pub created_at_us: i64,
    pub replayed: bool,
    /// The API key of the first request with this id.
    pub ordered_by: Option<KeyName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferState {
    Pending,
    Posted { at_us: i64 },
    Rejected { refused: Refused, at_us: i64 },
}

/// Status codes, as they travel on the wire. Never reuse one. `reversed` is none: it is a posted transfer of which nothing is
/// left.
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

    /// Why it is rejected, if it is.
    pub fn refused(self) -> Option<Refused> {
        match self {
            Self::Rejected { refused, .. } => Some(refused),
            Self::Pending | Self::Posted { .. } => None,
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

/// Step 3 of a saga is done. The rest of the client's answer comes from the reserve's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub state: TransferState,
    /// The debit account where the settlement was the last to change it for this transfer: a final capture's rest was released.
    pub debit_after: Option<DebitAfter>,
    pub replayed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldOutcome {
    Placed(HoldAnswer),
    /// The id is taken by a hold with another value of this field.
    Mismatch {
        field: &'static str,
    },
    /// The debit account does not exist: nothing is stored, the id stays free.
    DebitNotFound,
    /// It is released, now or since before.
    Released {
        key: HoldKey,
        hold: Box<Hold>,
        replayed: bool,
    },
    /// It has expired, now or since before.
    Expired,
    /// Asked to expire before its time, or with a capture in flight: nothing was done.
    NotDue,
    NotFound,
    /// It has ended otherwise. Nothing is stored.
    Refused(Refused),
}

/// The answer to placing a hold, as its first booking records it. A replay gives the same answer, whatever has become of
/// the hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldAnswer {
    pub refused: Option<Refused>,
    /// The debit account after the hold; absent when refused.
    pub debit_after: Option<DebitAfter>,
    pub expires_at_us: Option<i64>,
    pub created_at_us: i64,
    pub replayed: bool,
    /// The API key of the first request with this id.
    pub ordered_by: Option<KeyName>,
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
