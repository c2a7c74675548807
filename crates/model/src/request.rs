//! The requests of a client, after the JSON is parsed. Amounts are minor units.

use std::collections::BTreeMap;

use crate::{Asset, Status};

/// A UUID as text. Transfers and holds are stored by their debit account and id, so one id may name one of each account.
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
    /// Only accounts whose ids begin with this prefix.
    ListAccounts {
        prefix: String,
    },
    /// Only accounts whose ids begin with this prefix.
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
    /// `None` means without limit.
    pub overdraft: Option<i64>,
    pub max_balance: Option<i64>,
    pub metadata: Metadata,
}

/// Changes of an account. A field that is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub status: Option<Status>,
    pub overdraft: Option<Option<i64>>,
    pub max_balance: Option<Option<i64>>,
    pub metadata: Option<Metadata>,
}

/// An order for a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    pub id: Id,
    pub debit: String,
    pub credit: String,
    pub amount: i64,
    pub asset: Asset,
    pub metadata: Metadata,
}

/// An order for a hold.
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

/// An order for a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    pub hold: Named,
    pub id: Id,
    /// `None` means all that remains.
    pub amount: Option<i64>,
    pub is_final: bool,
}

/// An order for the release of a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub hold: Named,
}

/// An order for a reversal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reversal {
    pub transfer: Named,
    pub id: Id,
    /// `None` means all that is left to reverse.
    pub amount: Option<i64>,
}

/// The id in a URL, and the debit account in `?debit=` if the URL has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub id: Id,
    pub debit: Option<String>,
}
