//! An account and its limits.

use crate::{AccountId, AssetCode, Metadata, Position};

/// The state of one account: the fold of its legs in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: AccountId,
    pub asset: AssetCode,
    pub status: AccountStatus,
    /// Credits minus debits, in minor units.
    pub posted: i64,
    /// Reserved by open holds, in minor units.
    pub held: i64,
    /// How far below zero `available` funds may take the account.
    pub overdraft: Limit,
    /// What credits may raise `posted` to.
    pub max_balance: Limit,
    /// Grows by one with each leg of the account.
    pub version: i64,
    /// The newest booking with a leg of the account.
    pub head: Position,
    /// The booking that opened the account.
    pub opened: Position,
    pub metadata: Metadata,
    /// Microseconds since the epoch.
    pub created_at_us: i64,
    pub updated_at_us: i64,
}

impl Account {
    /// An account that holds no more than this is not filled by credits that come to no more than this together.
    pub const HALF_FULL: i64 = i64::MAX / 2;

    /// What a debit may take: posted − held + overdraft. `None`: without limit.
    pub fn available(&self) -> Option<i128> {
        available(self.posted, self.held, self.overdraft)
    }
}

/// posted − held + overdraft; `None` when the overdraft has no limit.
pub fn available(posted: i64, held: i64, overdraft: Limit) -> Option<i128> {
    match overdraft {
        Limit::Unlimited => None,
        Limit::AtMost(limit) => Some(i128::from(posted) - i128::from(held) + i128::from(limit)),
    }
}

/// A bound in minor units, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Unlimited,
    AtMost(i64),
}

impl Limit {
    pub const ZERO: Self = Self::AtMost(0);

    /// As a nullable column: NULL is unlimited.
    pub fn to_nullable(self) -> Option<i64> {
        match self {
            Self::Unlimited => None,
            Self::AtMost(minor) => Some(minor),
        }
    }

    pub fn from_nullable(value: Option<i64>) -> Self {
        value.map_or(Self::Unlimited, Self::AtMost)
    }
}

/// Frozen refuses debits; closed refuses both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AccountStatus {
    Open = 1,
    Frozen = 2,
    Closed = 3,
}

impl AccountStatus {
    pub const ALL: [Self; 3] = [Self::Open, Self::Frozen, Self::Closed];

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.code() == code)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Frozen => "frozen",
            Self::Closed => "closed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}
