//! What is known of ids used before.

use std::collections::HashMap;

use crate::{
    AccountId, AssetCode, Metadata, TransferKey,
    operation::Verdict,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTransfer {
    pub credit: AccountId,
    pub asset: AssetCode,
    pub amount: i64,
    pub metadata: Metadata,
    pub cross_shard: bool,
    pub state: TransferState,
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
