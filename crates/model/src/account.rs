//! One account and its journal.

use crate::{Asset, Metadata, NewAccount};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Open,
    /// No debits.
    Frozen,
    /// Neither debits nor credits.
    Closed,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Frozen => "frozen",
            Self::Closed => "closed",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Account {
    pub id: String,
    pub asset: Asset,
    pub status: Status,
    pub posted: i64,
    pub held: i64,
    /// `None`: unlimited.
    pub overdraft: Option<i64>,
    /// `None`: no limit.
    pub max_balance: Option<i64>,
    pub metadata: Metadata,
    /// What opened it.
    pub opening: NewAccount,
    /// Its version is the number of its entries.
    pub journal: Vec<Entry>,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of the request that wrote it: the entries of one batch may come in any order.
    pub request: usize,
    pub kind: &'static str,
    pub transfer: Option<String>,
    pub hold: Option<String>,
    pub counterparty: Option<String>,
    /// Change of `posted`.
    pub amount: i64,
    /// Afterwards.
    pub posted: i64,
    /// Afterwards.
    pub held: i64,
}

impl Account {
    pub fn version(&self) -> usize {
        self.journal.len()
    }

    /// The first field that is not as it would be opened by `new`.
    pub fn differs_from(&self, new: &NewAccount) -> Option<&'static str> {
        match () {
            () if self.asset != new.asset => Some("asset"),
            () if self.overdraft != new.overdraft => Some("overdraft"),
            () if self.max_balance != new.max_balance => Some("max_balance"),
            () if self.metadata != new.metadata => Some("metadata"),
            () => None,
        }
    }

    /// What a debit may take. `None`: without limit.
    pub fn available(&self) -> Option<i128> {
        let overdraft = self.overdraft?;
        Some(i128::from(self.posted) - i128::from(self.held) + i128::from(overdraft))
    }
}
