//! What a shard can be asked to do. One [`Operation`] is one line in the lane's queue.

use crate::{
    Account, AccountId, AccountStatus, AssetCode, HoldKey, KeyName, Limit, Metadata, Refused, TransferId,
    TransferKey, booking::Role,
};

#[derive(Debug, Clone)]
pub enum Operation {
    CreateAccount(CreateAccount),
    UpdateAccount(UpdateAccount),
    Transfer(Transfer),
    /// All or nothing, accounts of this shard only.
    AtomicTransfers(Vec<Transfer>),
    Decide(Decide),
    Settle(Settle),
    PlaceHold(PlaceHold),
    ReleaseHold(ReleaseHold),
    /// Does nothing unless the hold's time is over.
    ExpireHold(HoldKey),
    /// Of a transfer or hold. That of an account is erased by an update with [`Metadata::erased`].
    EraseMetadata(EraseMetadata),
    /// Decides and leaves no trace: the answer is what the operation would be answered now.
    DryRun(Box<Operation>),
    /// Takes effect, or leaves no trace: a refusal is answered and not stored, so that the id stays free. For repairs.
    OrNothing(Box<Operation>),
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
                if settle.touches_payer() {
                    visit(&settle.debit);
                }
            }
            Self::PlaceHold(place) => visit(&place.debit),
            Self::ReleaseHold(ReleaseHold { key, .. }) | Self::ExpireHold(key) => visit(&key.debit),
            // No account changes.
            Self::EraseMetadata(_) => {}
            Self::DryRun(operation) | Self::OrNothing(operation) => operation.for_each_account(visit),
        }
    }

    /// Every key under which the journal may already hold an answer to the operation, with the role of that answer. Keys of holds
    /// are not among them: holds are loaded for every decision about them.
    pub fn for_each_key(&self, visit: &mut impl FnMut(Role, TransferId, &AccountId)) {
        match self {
            Self::Transfer(transfer) => visit(Role::Transfer, transfer.id, &transfer.debit),
            Self::AtomicTransfers(items) => items.iter().for_each(|item| visit(Role::Transfer, item.id, &item.debit)),
            Self::Decide(decide) => visit(Role::Register, decide.id, &decide.debit),
            Self::Settle(settle) => visit(Role::Settlement, settle.id, &settle.debit),
            Self::EraseMetadata(erase) => {
                if erase.of == Erased::Transfer {
                    visit(Role::Transfer, erase.id, &erase.debit);
                }
            }
            Self::DryRun(operation) | Self::OrNothing(operation) => operation.for_each_key(visit),
            Self::CreateAccount(_)
            | Self::UpdateAccount(_)
            | Self::PlaceHold(_)
            | Self::ReleaseHold(_)
            | Self::ExpireHold(_) => {}
        }
    }

    /// The hold the decision depends on.
    pub fn hold(&self) -> Option<HoldKey> {
        let captured = |purpose: Purpose, debit: &AccountId| {
            purpose.captured_hold().map(|id| HoldKey { id, debit: debit.clone() })
        };
        match self {
            Self::Transfer(transfer) => captured(transfer.purpose, &transfer.debit),
            Self::Settle(settle) => captured(settle.purpose, &settle.debit),
            Self::PlaceHold(place) => Some(place.key()),
            Self::ReleaseHold(ReleaseHold { key, .. }) | Self::ExpireHold(key) => Some(key.clone()),
            Self::EraseMetadata(erase) => (erase.of == Erased::Hold).then(|| erase.key()),
            Self::DryRun(operation) | Self::OrNothing(operation) => operation.hold(),
            // Atomic groups hold payments only.
            Self::AtomicTransfers(_) | Self::Decide(_) | Self::CreateAccount(_) | Self::UpdateAccount(_) => None,
        }
    }

    /// The transfer whose reversed amount the decision depends on. It lives where its debit account, the reversal's credit
    /// account, lives.
    pub fn original(&self) -> Option<TransferKey> {
        let reversed = |purpose: Purpose, credit: &AccountId| {
            purpose.reversed_transfer().map(|id| TransferKey { id, debit: credit.clone() })
        };
        match self {
            Self::Transfer(transfer) if !transfer.cross_shard => reversed(transfer.purpose, &transfer.credit),
            Self::Decide(decide) => reversed(decide.purpose, &decide.credit),
            Self::DryRun(operation) | Self::OrNothing(operation) => operation.original(),
            _ => None,
        }
    }

    /// The account that is to be closed, which it may not while a transfer of its own is in flight.
    pub fn closes(&self) -> Option<&AccountId> {
        match self {
            Self::UpdateAccount(update) if update.status == Some(AccountStatus::Closed) => Some(&update.id),
            _ => None,
        }
    }

    /// The asset whose in-transit account the operation may move money through.
    pub fn in_transit_asset(&self) -> Option<AssetCode> {
        match self {
            Self::Transfer(transfer) => transfer.cross_shard.then_some(transfer.asset),
            Self::Decide(decide) => Some(decide.asset),
            Self::Settle(settle) => settle.compensates().then_some(settle.asset),
            Self::DryRun(operation) | Self::OrNothing(operation) => operation.in_transit_asset(),
            // An atomic group is of one shard; the router never builds one that reserves.
            Self::AtomicTransfers(_)
            | Self::CreateAccount(_)
            | Self::UpdateAccount(_)
            | Self::PlaceHold(_)
            | Self::ReleaseHold(_)
            | Self::ExpireHold(_)
            | Self::EraseMetadata(_) => None,
        }
    }

    /// How much of a batch this operation takes.
    pub fn weight(&self) -> usize {
        match self {
            Self::AtomicTransfers(items) => items.len().max(1),
            Self::DryRun(operation) | Self::OrNothing(operation) => operation.weight(),
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
    /// As in [`Transfer::ordered_by`].
    pub ordered_by: Option<KeyName>,
}

impl CreateAccount {
    /// Whether both open one account with the same attributes, whichever key ordered them.
    pub fn opens_the_same(&self, other: &Self) -> bool {
        let Self { id, asset, overdraft, max_balance, metadata, ordered_by: _ } = self;
        (id, asset, overdraft, max_balance) == (&other.id, &other.asset, &other.overdraft, &other.max_balance)
            && !metadata.differs_from(&other.metadata)
    }

    /// What opens an account like this one.
    pub fn like(account: &Account) -> Self {
        Self {
            ordered_by: None,
            id: account.id.clone(),
            asset: account.asset,
            overdraft: account.overdraft,
            max_balance: account.max_balance,
            metadata: account.metadata.clone(),
        }
    }

    /// The first field in which the account is another than this opens.
    pub fn differs_from(&self, account: &Account) -> Option<&'static str> {
        [
            (self.asset != account.asset, "asset"),
            (self.overdraft != account.overdraft, "overdraft"),
            (self.max_balance != account.max_balance, "max_balance"),
            (self.metadata.differs_from(&account.metadata), "metadata"),
        ]
        .into_iter()
        .find_map(|(differs, field)| differs.then_some(field))
    }
}

#[derive(Debug, Clone)]
pub struct UpdateAccount {
    pub id: AccountId,
    pub status: Option<AccountStatus>,
    pub overdraft: Option<Limit>,
    pub max_balance: Option<Limit>,
    pub metadata: Option<Metadata>,
    /// As in [`Transfer::ordered_by`].
    pub ordered_by: Option<KeyName>,
}

/// What a transfer does in addition to moving money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    #[default]
    Payment,
    /// Takes its money from a hold of the debit account.
    Capture {
        hold: TransferId,
        /// No amount was given: all that remains.
        whole: bool,
        /// Releases the rest of the hold.
        finalize: bool,
    },
    /// Gives back what a transfer moved from the credit account to the debit account.
    Reversal {
        of: TransferId,
        /// No amount was given: all that was left when the request came in.
        whole: bool,
    },
}

impl Purpose {
    pub fn captured_hold(self) -> Option<TransferId> {
        match self {
            Self::Capture { hold, .. } => Some(hold),
            Self::Payment | Self::Reversal { .. } => None,
        }
    }

    pub fn reversed_transfer(self) -> Option<TransferId> {
        match self {
            Self::Reversal { of, .. } => Some(of),
            Self::Payment | Self::Capture { .. } => None,
        }
    }

    /// Whether the client gave no amount.
    pub fn is_whole(self) -> bool {
        match self {
            Self::Capture { whole, .. } | Self::Reversal { whole, .. } => whole,
            Self::Payment => false,
        }
    }

    /// Whether a capture releases the rest of its hold.
    pub fn finalizes(self) -> bool {
        matches!(self, Self::Capture { finalize: true, .. })
    }
}

#[derive(Debug, Clone)]
pub struct Transfer {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units, positive; 0 where the purpose is whole and nothing is known to be left. A capture of all that remains
    /// learns its amount from the hold.
    pub amount: i64,
    pub metadata: Metadata,
    pub purpose: Purpose,
    /// The credit account lives on another shard: reserve instead of posting.
    pub cross_shard: bool,
    /// Answer `Deferred` instead of storing that the debit account has too little: something earlier of the same request may yet
    /// give back what it took.
    pub defer_insufficient: bool,
    /// Answer `Deferred` where the credit account has a `max_balance`, or not much room: something earlier of the same request has yet to change
    /// its balance.
    pub defer_limited: bool,
    /// The API key that ordered it, if the router has keys.
    pub ordered_by: Option<KeyName>,
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
    pub purpose: Purpose,
    /// Write `refused` for this reason unless a verdict exists or the credit side has a refusal of its own: nothing may be
    /// credited. For a transfer whose source knows already that it must not be, and the only way to give a saga up.
    pub presumed: Option<Refused>,
    /// As in [`Transfer::defer_limited`].
    pub defer_limited: bool,
    /// True if the caller asks again: the decision is `Undetermined` where money that may come back to the credit account would leave no room.
    /// In the end recovery does not ask so, because two transfers could wait for each other's verdict without end. Its decision is a refusal:
    /// the transfer comes before those that reserved the money.
    pub patient: bool,
    /// As in [`Transfer::ordered_by`]: recovery passes the name that the source has recorded.
    pub ordered_by: Option<KeyName>,
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
    pub purpose: Purpose,
    /// Money was reserved: the transfer was not presumed to be refused.
    pub reserved: bool,
    pub verdict: Verdict,
}

impl Settle {
    /// Whether money goes back from in-transit to the payer.
    pub fn compensates(&self) -> bool {
        self.reserved && matches!(self.verdict, Verdict::Refused(_))
    }

    /// Whether the payer's account changes: by a compensation, or by the release of a hold's rest.
    fn touches_payer(&self) -> bool {
        self.compensates() || self.purpose.finalizes()
    }

    pub fn key(&self) -> TransferKey {
        TransferKey { id: self.id, debit: self.debit.clone() }
    }
}

/// A hold to be placed.
#[derive(Debug, Clone)]
pub struct PlaceHold {
    pub id: TransferId,
    pub debit: AccountId,
    /// Who will be paid. Nothing of that account is looked at before a capture.
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units, positive.
    pub amount: i64,
    /// Seconds from when it is placed; `None`: it stays until it is captured or released.
    pub expires_in_s: Option<u32>,
    pub metadata: Metadata,
    /// As in [`Transfer::ordered_by`].
    pub ordered_by: Option<KeyName>,
}

/// A hold to be released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseHold {
    pub key: HoldKey,
    /// As in [`Transfer::ordered_by`].
    pub ordered_by: Option<KeyName>,
}

/// Erases the metadata of a transfer or hold from the bookings of one shard (`docs/adr/0021`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EraseMetadata {
    pub of: Erased,
    pub id: TransferId,
    /// The debit account of the transfer or hold.
    pub debit: AccountId,
    /// The account whose shard erases: the debit account, or the credit account of a transfer. A move of slots leaves a copy of a transfer's booking
    /// at the shard of the account that stays.
    pub at: AccountId,
    /// The credit account of a transfer within one shard. If this shard owns it too, a second erasure is booked for its slot, so that a move of that
    /// slot copies it.
    pub credit: Option<AccountId>,
    /// As in [`Transfer::ordered_by`].
    pub ordered_by: Option<KeyName>,
}

/// The kind of record whose metadata is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    Transfer,
    Hold,
}

impl EraseMetadata {
    pub fn key(&self) -> TransferKey {
        TransferKey { id: self.id, debit: self.debit.clone() }
    }
}

impl From<HoldKey> for ReleaseHold {
    /// A release that no key ordered.
    fn from(key: HoldKey) -> Self {
        Self { key, ordered_by: None }
    }
}

impl PlaceHold {
    pub fn key(&self) -> HoldKey {
        HoldKey { id: self.id, debit: self.debit.clone() }
    }
}

/// What the register says. Written once, never changed: the only decision of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Credited,
    Refused(Refused),
}

impl Verdict {
    pub fn refused(self) -> Option<Refused> {
        match self {
            Self::Credited => None,
            Self::Refused(refused) => Some(refused),
        }
    }
}
