//! Business refusals: the answer is no, and it stays no under the same transfer id.

/// Why the ledger refused. The numbers are stored and travel on the wire: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    AccountNotFound = 1,
    AssetMismatch = 2,
    AccountClosed = 3,
    AccountFrozen = 4,
    InsufficientFunds = 5,
    LimitExceeded = 6,
    BalanceOverflow = 7,
    ExceedsHold = 8,
    AlreadyReversed = 9,
    AtomicCrossShard = 10,
    BatchFailed = 11,
    AccountNotEmpty = 12,
    Cancelled = 13,
    HoldCaptured = 14,
    HoldReleased = 15,
    HoldExpired = 16,
}

impl Refusal {
    pub const ALL: [Self; 16] = [
        Self::AccountNotFound,
        Self::AssetMismatch,
        Self::AccountClosed,
        Self::AccountFrozen,
        Self::InsufficientFunds,
        Self::LimitExceeded,
        Self::BalanceOverflow,
        Self::ExceedsHold,
        Self::AlreadyReversed,
        Self::AtomicCrossShard,
        Self::BatchFailed,
        Self::AccountNotEmpty,
        Self::Cancelled,
        Self::HoldCaptured,
        Self::HoldReleased,
        Self::HoldExpired,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.code() == code)
    }

    /// The stable `code` of the HTTP contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccountNotFound => "account_not_found",
            Self::AssetMismatch => "asset_mismatch",
            Self::AccountClosed => "account_closed",
            Self::AccountFrozen => "account_frozen",
            Self::InsufficientFunds => "insufficient_funds",
            Self::LimitExceeded => "limit_exceeded",
            Self::BalanceOverflow => "balance_overflow",
            Self::ExceedsHold => "exceeds_hold",
            Self::AlreadyReversed => "already_reversed",
            Self::AtomicCrossShard => "atomic_cross_shard",
            Self::BatchFailed => "batch_failed",
            Self::AccountNotEmpty => "account_not_empty",
            Self::Cancelled => "cancelled",
            Self::HoldCaptured => "hold_captured",
            Self::HoldReleased => "hold_released",
            Self::HoldExpired => "hold_expired",
        }
    }
}

/// Which account of a transfer a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    Debit = 1,
    Credit = 2,
}

impl Side {
    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Debit),
            2 => Some(Self::Credit),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debit => "debit",
            Self::Credit => "credit",
        }
    }
}

/// A refusal and the account it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    /// `None` where the transfer as a whole is refused (`batch_failed`, `exceeds_hold`, …).
    pub side: Option<Side>,
}

impl Refused {
    pub fn debit(refusal: Refusal) -> Self {
        Self { refusal, side: Some(Side::Debit) }
    }

    pub fn credit(refusal: Refusal) -> Self {
        Self { refusal, side: Some(Side::Credit) }
    }

    pub fn whole(refusal: Refusal) -> Self {
        Self { refusal, side: None }
    }
}
