//! What a client may ask for, after the JSON is read. Amounts are minor units.

use std::collections::BTreeMap;

use crate::{Asset, Status};

/// A UUID as text. It belongs to its debit account: the key of everything stored is (debit, id).
pub type Id = String;

pub type Metadata = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    OpenAccount(NewAccount),
    OpenAccounts(Vec<NewAccount>),
    ChangeAccount {
        account: String,
        changes: Changes,
    },
    Pay {
        order: Payment,
        dry_run: bool,
    },
    PayBatch {
        items: Vec<Payment>,
        atomic: bool,
    },
    Hold {
        order: NewHold,
        dry_run: bool,
    },
    Capture(Capture),
    Release(Release),
    Reverse(Reversal),
    ShowAccount(String),
    /// Of all accounts whose ids begin so.
    ListAccounts {
        prefix: String,
    },
    /// Of all accounts whose ids begin so.
    SumBalances {
        prefix: String,
    },
    ShowTransfer(Named),
    ShowHold(Named),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAccount {
    pub id: String,
    pub asset: Asset,
    /// `None`: unlimited.
    pub overdraft: Option<i64>,
    pub max_balance: Option<i64>,
    pub metadata: Metadata,
}

/// What is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub status: Option<Status>,
    pub overdraft: Option<Option<i64>>,
    pub max_balance: Option<Option<i64>>,
    pub metadata: Option<Metadata>,
}

/// A payment ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    pub id: Id,
    pub debit: String,
    pub credit: String,
    pub amount: i64,
    pub asset: Asset,
    pub metadata: Metadata,
}

/// A hold ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHold {
    pub id: Id,
    pub debit: String,
    pub credit: String,
    pub amount: i64,
    pub asset: Asset,
    pub expires_in_s: Option<u32>,
    pub metadata: Metadata,
}

/// A capture ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    pub hold: Named,
    pub id: Id,
    /// `None`: all that remains.
    pub amount: Option<i64>,
    pub is_final: bool,
}

/// The release of a hold ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub hold: Named,
}

/// A reversal ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reversal {
    pub transfer: Named,
    pub id: Id,
    /// `None`: all that is left.
    pub amount: Option<i64>,
}

/// What a URL names: an id, and with `?debit=` whose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub id: Id,
    pub debit: Option<String>,
}
