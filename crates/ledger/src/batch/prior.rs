//! What is known of ids used before.

use std::collections::{HashMap, HashSet};

use crate::{
    AccountId, AssetCode, Hold, HoldKey, Metadata, Refused, TransferKey,
    operation::{CreateAccount, Purpose, Verdict},
    outcome::{DebitAfter, TransferState},
};

/// What is known of ids used before this batch.
#[derive(Debug)]
pub enum Prior {
    Unknown,
    Loaded(Stored),
}

/// What the database holds under a batch's ids.
#[derive(Debug, Default)]
pub struct Stored {
    pub transfers: HashMap<TransferKey, StoredTransfer>,
    pub registers: HashMap<TransferKey, StoredRegister>,
}

/// Rows that operations name besides accounts and ids: always loaded, because the decision is about them. What is not in
/// here does not exist.
#[derive(Debug, Default)]
pub struct Named {
    pub holds: HashMap<HoldKey, Hold>,
    pub originals: HashMap<TransferKey, Original>,
    /// Of the accounts to be closed, those with a transfer in flight.
    pub in_flight: HashSet<AccountId>,
    /// What accounts were opened with, of those that [`Openings`](super::Openings) asks for.
    pub openings: HashMap<AccountId, CreateAccount>,
}

/// A transfer as its reversal sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    pub credit: AccountId,
    pub asset: AssetCode,
    pub amount: i64,
    pub state: TransferState,
    /// Minor units.
    pub reversed: i64,
}

impl Original {
    /// What can still be reversed. Money that never arrived cannot.
    pub fn reversible(&self) -> i64 {
        match self.state {
            TransferState::Posted { .. } => self.amount - self.reversed,
            TransferState::Pending | TransferState::Rejected { .. } => 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTransfer {
    pub credit: AccountId,
    pub asset: AssetCode,
    pub amount: i64,
    pub metadata: Metadata,
    pub purpose: Purpose,
    pub cross_shard: bool,
    pub state: TransferState,
    /// What a pending transfer will be refused with unless its credit side refuses first: nothing was reserved.
    pub presumed: Option<Refused>,
    pub debit_after: Option<DebitAfter>,
    pub created_at_us: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRegister {
    pub credit: AccountId,
    pub asset: AssetCode,
    pub amount: i64,
    pub verdict: Verdict,
    pub decided_at_us: i64,
}
