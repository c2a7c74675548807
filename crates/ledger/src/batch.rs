//! One batch of the lane: operations in order, decided in memory.
//!
//! The caller loads every account the operations name into [`Accounts`], every hold and original and the [`Openings`] asked
//! for into [`Named`], applies the operations one by one, and writes [`Effects`] and [`Accounts::changes`] in one transaction.
//! Two ways to know about ids used before:
//!
//! * [`Prior::Unknown`], the optimistic way: every id is taken to be new and every settled transfer to be pending. The
//!   database's unique keys and row counts object when that is wrong; the batch is rolled back and decided again. Where an
//!   answer would leave nothing that the database could object to, [`Batch::is_sure`] says so.
//! * [`Prior::Loaded`], the careful way: what the database holds under the batch's ids is known, and replays are answered
//!   from it.
//!
//! One file a subject: [`account_changes`], [`openings`], [`transfers`] (payments, captures, reversals), [`reversals`] (what may
//! be reversed), [`holds`], [`saga_steps`], [`undoing`] (atomic groups, dry runs).

mod account_changes;
mod effects;
mod holds;
mod openings;
mod prior;
mod reversals;
mod saga_steps;
mod transfers;
mod undoing;

use std::collections::{HashMap, HashSet};

pub use effects::{Effects, NewHold, NewRegister, NewReversal, NewTransfer, Reversed, Settlement, Unbalanced};
pub use openings::Openings;
pub use prior::{Named, Original, Prior, Stored, StoredRegister, StoredTransfer};

use self::{holds::KnownHold, reversals::KnownOriginal};
use crate::{
    Account, AccountId, AssetCode, HoldKey, Limit, Metadata, Position, Refusal, Refused, TransferId, TransferKey,
    accounts::Accounts,
    journal::{Cause, Entry, EntryKind},
    operation::{CreateAccount, Operation, Transfer},
    outcome::{DebitAfter, NotOwner, Outcome},
};

/// Says whether this shard owns an account's slot.
pub type Fence<'a> = &'a (dyn Fn(&AccountId) -> Result<(), NotOwner> + Sync);

/// A batch in the making.
pub struct Batch<'a> {
    accounts: &'a mut Accounts,
    prior: Prior,
    holds: HashMap<HoldKey, KnownHold>,
    originals: HashMap<TransferKey, KnownOriginal>,
    /// Accounts to be closed with a transfer in flight from before this batch.
    in_flight: HashSet<AccountId>,
    /// What accounts were opened with: those of [`Named::openings`], and those that this batch opened.
    openings: HashMap<AccountId, CreateAccount>,
    fence: Fence<'a>,
    now_us: i64,
    effects: Effects,
    /// Per order group, the accounts whose later operations have to wait.
    deferred: HashMap<u64, HashSet<AccountId>>,
    /// An answer was given that stores nothing, though its operation may have taken effect before.
    unsure: bool,
}

/// An operation that did not take place, apart from why.
enum Aside {
    Deferred,
    NotOwner(NotOwner),
    Illegal(String),
}

/// What is known of the client's request that an operation is part of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request {
    /// Operations of one request that must take effect in order share one, which is not 0.
    pub order_group: u64,
    /// Until when the router of an ordered request sees to it, in microseconds since the epoch.
    pub deadline_us: i64,
}

impl Request {
    /// Of operations that any others may come before or after.
    pub const UNORDERED: Self = Self { order_group: 0, deadline_us: 0 };

    fn is_ordered(&self) -> bool {
        self.order_group != 0
    }
}

/// One account's part in a booking.
struct Leg<'l> {
    account: &'l AccountId,
    counterparty: &'l AccountId,
    kind: EntryKind,
    /// Changes in minor units.
    posted: i64,
    held: i64,
    /// The transfer behind it, or the hold ([`EntryKind::is_of_hold`]).
    cause: TransferId,
}

impl<'a> Batch<'a> {
    pub fn new(
        accounts: &'a mut Accounts,
        prior: Prior,
        named: Named,
        fence: Fence<'a>,
        now_us: i64,
        next_position: Position,
    ) -> Self {
        Self {
            accounts,
            prior,
            holds: named.holds.into_iter().map(|(key, hold)| (key, KnownHold::loaded(hold))).collect(),
            originals: named.originals.into_iter().map(|(key, it)| (key, KnownOriginal::loaded(it))).collect(),
            in_flight: named.in_flight,
            openings: named.openings,
            fence,
            now_us,
            effects: Effects { next_position, ..Effects::default() },
            deferred: HashMap::new(),
            unsure: false,
        }
    }

    /// Decides one operation.
    pub fn apply(&mut self, request: Request, operation: &Operation) -> Outcome {
        let outcome = match operation {
            Operation::CreateAccount(create) => self.create_account(create),
            Operation::UpdateAccount(update) => self.update_account(update),
            Operation::Transfer(transfer) => match self.transfer(request, transfer) {
                Ok(outcome) => Outcome::Transfer(outcome),
                Err(aside) => self.set_aside(request, transfer, aside),
            },
            Operation::AtomicTransfers(items) => self.atomic(items),
            Operation::Decide(decide) => self.decide(decide),
            Operation::Settle(settle) => self.settle(settle),
            Operation::PlaceHold(place) => self.place_hold(place),
            Operation::ReleaseHold(key) => self.release_hold(key),
            Operation::ExpireHold(key) => self.expire_hold(key),
            Operation::DryRun(operation) => self.dry_run(operation),
        };
        if matches!(outcome, Outcome::Illegal(_)) {
            self.unsure = true;
        }
        outcome
    }

    /// False: decide the batch again with [`Prior::Loaded`]. Some answer stores nothing, so that no id collides if its
    /// operation took effect before.
    pub fn is_sure(&self) -> bool {
        !self.unsure || matches!(self.prior, Prior::Loaded(_))
    }

    pub fn finish(mut self) -> Effects {
        self.note_holds();
        self.note_originals();
        self.effects
    }

    // === order within a request ===

    fn must_wait(&self, request: Request, transfer: &Transfer) -> bool {
        request.is_ordered()
            && self
                .deferred
                .get(&request.order_group)
                .is_some_and(|waiting| waiting.contains(&transfer.debit) || waiting.contains(&transfer.credit))
    }

    fn set_aside(&mut self, request: Request, transfer: &Transfer, aside: Aside) -> Outcome {
        if request.is_ordered() {
            let waiting = self.deferred.entry(request.order_group).or_default();
            waiting.insert(transfer.debit.clone());
            waiting.insert(transfer.credit.clone());
        }
        match aside {
            Aside::Deferred => Outcome::Deferred,
            Aside::NotOwner(not_owner) => Outcome::NotOwner(not_owner),
            Aside::Illegal(why) => Outcome::Illegal(why),
        }
    }

    /// Whether it matters to a credit what the account has been credited with before. (Requests large enough to fill any account
    /// see to their order themselves.)
    fn is_limited(&self, account: &AccountId) -> bool {
        let limited = |there: &Account| there.max_balance != Limit::Unlimited || there.posted > Account::HALF_FULL;
        self.accounts.get(account).is_some_and(limited)
    }

    // === booking ===

    /// The in-transit account of an asset, opened on first use.
    fn in_transit(&mut self, asset: AssetCode) -> AccountId {
        let id = self.accounts.in_transit_id(asset);
        if self.accounts.get(&id).is_none() {
            self.open_account(CreateAccount {
                id: id.clone(),
                asset,
                overdraft: Limit::Unlimited,
                max_balance: Limit::Unlimited,
                metadata: Metadata::empty(),
            });
        }
        id
    }

    /// May this shard's in-transit account change by so much? Money that flows one way between shards for long enough, or
    /// one enormous transfer, fills it like any other account; that is a refusal, and no saga that cannot go on.
    fn check_in_transit(&mut self, asset: AssetCode, change: i128) -> Result<(), Refused> {
        let id = self.accounts.in_transit_id(asset);
        let posted = self.accounts.get(&id).map_or(0, |account| account.posted);
        match i64::try_from(i128::from(posted) + change) {
            Ok(_) => Ok(()),
            Err(_) => Err(Refused::whole(Refusal::BalanceOverflow)),
        }
    }

    /// Books all legs or, when one of them is impossible, none: a half-booked transfer would unbalance the whole batch. The
    /// caller has checked the rules; what is looked at here is arithmetic.
    fn book(&mut self, asset: AssetCode, legs: &[Leg<'_>]) -> Result<(), Aside> {
        let illegal = |leg: &Leg<'_>, what: &str| {
            Err(Aside::Illegal(format!("INV-1: account {} of {} {what}", leg.account, leg.cause.0)))
        };
        for leg in legs {
            let Some(there) = self.accounts.get(leg.account) else {
                return illegal(leg, "is missing");
            };
            if there.asset != asset {
                return illegal(leg, "holds another asset");
            }
            if there.posted.checked_add(leg.posted).is_none() {
                return illegal(leg, "would overflow");
            }
            if there.held.checked_add(leg.held).is_none_or(|held| held < 0) {
                return illegal(leg, "does not hold so much, or cannot");
            }
        }
        for leg in legs {
            let position = self.take_position();
            let now_us = self.now_us;
            let Some(account) = self.accounts.change(leg.account, false) else { continue };
            let previous = account.head;
            account.posted += leg.posted;
            account.held += leg.held;
            account.version += 1;
            account.head = position;
            account.updated_at_us = now_us.max(account.updated_at_us);
            let cause = Cause { transfer: leg.cause, counterparty: leg.counterparty.clone() };
            let entry = entry_of(account, previous, leg.kind, leg.posted, Some(cause));
            self.effects.entries.push(entry);
        }
        Ok(())
    }

    /// The account as an answer shows it, and the entry that made it so.
    fn balances_now(&self, account: &AccountId) -> Option<(DebitAfter, Position)> {
        self.accounts.get(account).map(|a| {
            let balances = DebitAfter { posted: a.posted, held: a.held, overdraft: a.overdraft, version: a.version };
            (balances, a.head)
        })
    }

    fn take_position(&mut self) -> Position {
        let position = self.effects.next_position;
        self.effects.next_position = position.next();
        position
    }
}

/// The entry that brought `account` to its present state (INV-9: its place in the account's chain).
fn entry_of(account: &Account, previous: Position, kind: EntryKind, amount: i64, cause: Option<Cause>) -> Entry {
    Entry {
        position: account.head,
        previous,
        account: account.id.clone(),
        asset: account.asset,
        version: account.version,
        kind,
        amount,
        posted: account.posted,
        held: account.held,
        overdraft: account.overdraft,
        cause,
        detail: None,
        created_at_us: account.updated_at_us,
    }
}

#[cfg(test)]
mod tests;
