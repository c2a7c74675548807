//! What a shard can be asked to do. One [`Operation`] is one line in the lane's queue.

use crate::{AccountId, AccountStatus, AssetCode, Limit, Metadata, Refused, TransferId, TransferKey};

#[derive(Debug, Clone)]
pub enum Operation {
    CreateAccount(CreateAccount),
    UpdateAccount(UpdateAccount),
    Transfer(Transfer),
    /// All or nothing, accounts of this shard only.
    AtomicTransfers(Vec<Transfer>),
    Decide(Decide),
    Settle(Settle),
}

impl Operation {
    /// Every account whose state the decision depends on, in-transit accounts apart.
    pub fn for_each_account(&self, mut visit: impl FnMut(&AccountId)) {
        let mut both_or_debit = |transfer: &Transfer| {
            visit(&transfer.debit);
            if !transfer.cross_shard {
                visit(&transfer.credit);
            }
        };
        match self {
            Self::Transfer(transfer) => both_or_debit(transfer),
            Self::AtomicTransfers(items) => items.iter().for_each(both_or_debit),
            Self::CreateAccount(create) => visit(&create.id),
            Self::UpdateAccount(update) => visit(&update.id),
            Self::Decide(decide) => visit(&decide.credit),
            // Only a compensation touches the payer.
            Self::Settle(settle) => {
                if matches!(settle.verdict, Verdict::Refused(_)) {
                    visit(&settle.debit);
                }
            }
        }
    }

    /// The asset whose in-transit account the operation may move money through.
    pub fn in_transit_asset(&self) -> Option<AssetCode> {
        match self {
            Self::Transfer(transfer) => transfer.cross_shard.then_some(transfer.asset),
            Self::Decide(decide) => Some(decide.asset),
            Self::Settle(settle) => matches!(settle.verdict, Verdict::Refused(_)).then_some(settle.asset),
            // An atomic group is of one shard; the router never builds one that reserves.
            Self::AtomicTransfers(_) | Self::CreateAccount(_) | Self::UpdateAccount(_) => None,
        }
    }

    /// How much of a batch this operation takes.
    pub fn weight(&self) -> usize {
        match self {
            Self::AtomicTransfers(items) => items.len().max(1),
            _ => 1,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateAccount {
    pub id: AccountId,
    pub asset: AssetCode,
    pub overdraft: Limit,
    pub max_balance: Limit,
    pub metadata: Metadata,
}

#[derive(Debug, Clone)]
pub struct UpdateAccount {
    pub id: AccountId,
    pub status: Option<AccountStatus>,
    pub overdraft: Option<Limit>,
    pub max_balance: Option<Limit>,
    pub metadata: Option<Metadata>,
}

#[derive(Debug, Clone)]
pub struct Transfer {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units, positive.
    pub amount: i64,
    pub metadata: Metadata,
    /// The credit account lives on another shard: reserve instead of posting.
    pub cross_shard: bool,
    /// Answer `Deferred` instead of storing `insufficient_funds`.
    pub defer_insufficient: bool,
}

impl Transfer {
    pub fn key(&self) -> TransferKey {
        TransferKey { id: self.id, debit: self.debit.clone() }
    }
}

/// Step 2 of a saga, at the credit account's shard.
#[derive(Debug, Clone)]
pub struct Decide {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    pub amount: i64,
    /// Write `refused` unless a verdict exists: the only way to give a saga up.
    pub cancel: bool,
}

impl Decide {
    pub fn key(&self) -> TransferKey {
        TransferKey { id: self.id, debit: self.debit.clone() }
    }
}

/// Step 3 of a saga, at the debit account's shard.
#[derive(Debug, Clone)]
pub struct Settle {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    pub amount: i64,
    pub verdict: Verdict,
}

impl Settle {
    pub fn key(&self) -> TransferKey {
        TransferKey { id: self.id, debit: self.debit.clone() }
    }
}

/// What the register says. Written once, never changed: the only decision of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Credited,
    Refused(Refused),
}
