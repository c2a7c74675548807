//! The order of a transfer, and the answers of the core.

use std::{collections::BTreeMap, sync::Arc};

use ledger::{
    AccountId, AssetCode, Hold, HoldKey, KeyName, Metadata, Refused, TransferId,
    operation::{Purpose, Transfer},
    outcome::{HoldAnswer, TransferAnswer, TransferOutcome},
};

use super::call::CallError;

/// A transfer as a client orders it, parsed and checked by the edge.
#[derive(Debug, Clone)]
pub struct NewTransfer {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units, greater than 0. It is 0 where the purpose takes all that is left, which the ledger knows.
    pub amount: i64,
    pub metadata: Metadata,
    pub purpose: Purpose,
    /// The API key of the request.
    pub ordered_by: Option<KeyName>,
}

impl NewTransfer {
    /// The operation for the shard of the debit account, which executes the transfer or, with `cross_shard`, reserves it.
    pub fn as_transfer(&self, cross_shard: bool) -> Transfer {
        Transfer {
            id: self.id,
            debit: self.debit.clone(),
            credit: self.credit.clone(),
            asset: self.asset,
            amount: self.amount,
            metadata: self.metadata.clone(),
            purpose: self.purpose,
            cross_shard,
            defer_insufficient: false,
            defer_limited: false,
            ordered_by: self.ordered_by.clone(),
        }
    }
}

/// A value and the shard that gave it.
#[derive(Debug, Clone)]
pub struct Located<T> {
    pub shard: Arc<str>,
    pub value: T,
}

/// The answer to one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferReply {
    /// Posted or rejected, for good.
    Done(TransferAnswer),
    /// The deadline passed while the saga was under way. The saga goes on without the client. The state is `Pending`.
    Pending(TransferAnswer),
    /// The id is taken by a transfer with another value of this field.
    Mismatch { field: &'static str },
    /// The debit account does not exist. Nothing is stored, the id stays free.
    DebitNotFound,
    /// The transfer captures a hold that does not exist. Nothing is stored, the id stays free.
    HoldNotFound,
    /// The atomic group around it failed. Nothing is stored, the id stays free.
    NotStored(Refused),
}

impl From<TransferOutcome> for TransferReply {
    fn from(outcome: TransferOutcome) -> Self {
        match outcome {
            TransferOutcome::Done(answer) if answer.state == ledger::outcome::TransferState::Pending => {
                Self::Pending(answer)
            }
            TransferOutcome::Done(answer) => Self::Done(answer),
            TransferOutcome::Mismatch { field } => Self::Mismatch { field },
            TransferOutcome::DebitNotFound => Self::DebitNotFound,
            TransferOutcome::HoldNotFound => Self::HoldNotFound,
            TransferOutcome::NotStored(refused) => Self::NotStored(refused),
        }
    }
}

/// The answer to an atomic group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtomicReply {
    /// Every transfer took effect, now or before (`replayed` of each answer). One reply for each item.
    Stored(Vec<TransferReply>),
    /// Nothing is stored. The reply of the item `culprit` says why; the other replies are `NotStored(batch_failed)`.
    Failed { culprit: usize, items: Vec<TransferReply> },
    /// The accounts live on more than one shard. Nothing was sent.
    CrossShard,
}

/// The answer to placing a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldReply {
    /// The hold was placed or refused. This is the first answer to this id, and it stays.
    Placed(HoldAnswer),
    /// The id is taken by a hold with another value of this field.
    Mismatch { field: &'static str },
    /// The debit account does not exist. Nothing is stored, the id stays free.
    DebitNotFound,
}

/// The answer to releasing a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseReply {
    /// The hold is released, by this request or (`replayed`) by an earlier one.
    Released {
        key: HoldKey,
        hold: Box<Hold>,
        replayed: bool,
    },
    NotFound,
    /// The hold has ended in another way.
    Refused(Refused),
}

/// The answer to opening or changing an account.
#[derive(Debug, Clone)]
pub enum AccountReply {
    Created(Located<wire::Account>),
    /// The account existed: it was opened with equal content, or is equal now.
    Replayed(Located<wire::Account>),
    Updated(Located<wire::Account>),
    /// The account exists with another value of this field.
    Conflict {
        field: &'static str,
    },
    NotFound,
    Refused {
        refused: Refused,
    },
}

/// Some accounts in id order.
#[derive(Debug, Clone, Default)]
pub struct AccountPage {
    pub accounts: Vec<Located<wire::Account>>,
    pub has_more: bool,
}

/// What some accounts held at a time, in id order.
#[derive(Debug, Clone, Default)]
pub struct AccountsAtPage {
    pub accounts: Vec<wire::AccountAt>,
    /// The id after which the next page begins; `None`: there are no more accounts.
    pub next: Option<String>,
}

/// What accounts hold together.
#[derive(Debug, Clone, Default)]
pub struct BalanceSums {
    /// By asset code.
    pub assets: BTreeMap<String, BalanceSum>,
    /// Shards that did not answer; what their accounts hold is not in the sums.
    pub missing: Vec<Arc<str>>,
    /// Why the first of `missing` whose part did not end in time was late, if the sums are as of a time.
    pub late: Option<CallError>,
}

impl BalanceSums {
    /// Why a shard is missing, if one is.
    pub fn incomplete(&self) -> Option<CallError> {
        self.late
            .clone()
            .or_else(|| self.missing.first().map(|shard| CallError::Unavailable { shard: Arc::clone(shard) }))
    }
}

/// What the accounts of one asset hold, in minor units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BalanceSum {
    pub posted: i128,
    pub held: i128,
    pub accounts: u64,
}

/// Everything found under one id: one for each debit account.
#[derive(Debug, Clone)]
pub struct Found<T> {
    pub found: Vec<T>,
    /// Shards that did not answer; what they hold is unknown.
    pub unreachable: Vec<Arc<str>>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { found: Vec::new(), unreachable: Vec::new() }
    }
}

/// A stored transfer, the shard that holds it, and its verdict where one was found.
#[derive(Debug, Clone)]
pub struct FoundTransfer {
    pub record: wire::TransferRecord,
    pub shard: Arc<str>,
    pub register: Option<(wire::RegisterRecord, Arc<str>)>,
    /// No verdict was found, and a shard that may have one did not answer.
    pub verdict_unread: bool,
}

/// A stored hold under its key.
#[derive(Debug, Clone)]
pub struct FoundHold {
    pub key: HoldKey,
    pub hold: Hold,
}

/// Which sagas to list.
#[derive(Debug, Clone, Copy)]
pub struct SagaFilter {
    pub older_than: std::time::Duration,
    /// At most this many, over all shards.
    pub limit: u32,
}

/// A saga under way: the pending transfer at its source shard.
#[derive(Debug, Clone)]
pub struct SagaView {
    pub record: wire::TransferRecord,
    pub source: Arc<str>,
    /// The shard of the credit account, as this router sees it.
    pub destination: Arc<str>,
}

/// One shard of the map as this router sees it now.
#[derive(Debug, Clone)]
pub struct ShardStatus {
    pub shard: Arc<str>,
    /// Node endpoints in order of preference.
    pub nodes: Vec<String>,
    /// The endpoint that this router uses.
    pub node_in_use: Option<String>,
    /// What the node says of itself, or why it could not be asked.
    pub status: Result<wire::StatusResponse, String>,
    /// `closed`, `open` or `probing`.
    pub breaker: &'static str,
    /// Operations waiting in this router for that shard.
    pub queued_operations: usize,
}
