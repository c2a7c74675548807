//! One batch of the lane: operations in order, decided in memory.
//!
//! The caller loads every account that the operations name into [`Accounts`], and every other row that a decision depends
//! on into [`Named`]. It applies the operations one by one and writes the bookings of [`Effects`] in one transaction. A
//! decision becomes a booking, and the fold applies the booking to the accounts: no state changes in another way.
//!
//! There are three ways to know about ids that were used before:
//!
//! * [`Prior::Unknown`], the optimistic way. Every id is taken to be new. The database's unique key objects when that is
//!   wrong; the batch is taken back and decided again. [`Batch::is_sure`] is false where an answer leaves no booking
//!   that the database could object to.
//! * [`Prior::Suspected`], the same, except that what the database holds under some of the ids is known.
//! * [`Prior::Loaded`], the careful way. What the database holds under the batch's ids is known, and replays are
//!   answered from it.
//!
//! One file a subject: [`account_changes`], [`transfers`] (payments, captures, reversals), [`holds`], [`saga_steps`] (also what
//! depends on verdicts that are not known), [`erasure`] (of metadata), [`undoing`] (atomic groups, dry runs), [`prior`] (what is known of ids used before).

mod account_changes;
mod erasure;
mod holds;
mod prior;
mod saga_steps;
mod transfers;
mod undoing;

use std::collections::{HashMap, HashSet};

use self::holds::KnownHold;
use crate::{
    Account, AccountId, AssetCode, Hold, HoldKey, KeyName, Limit, Metadata, Position, Refusal, Refused, TransferId,
    TransferKey,
    accounts::Accounts,
    booking::{Booking, BookingKind, Change, Extra, Leg, Party, change},
    fold,
    history::{Original, StoredTransfer},
    operation::{CreateAccount, Operation, Transfer},
    outcome::{NotOwner, Outcome},
};

pub use account_changes::Openings;
pub use prior::{Named, Prior, Stored, UnderWay};

/// Says whether this shard owns an account's slot.
pub type Fence<'a> = &'a (dyn Fn(&AccountId) -> Result<(), NotOwner> + Sync);

/// A batch in the making.
pub struct Batch<'a> {
    accounts: &'a mut Accounts,
    prior: Prior,
    holds: HashMap<HoldKey, KnownHold>,
    originals: HashMap<TransferKey, Original>,
    /// The sagas under way that operations settle.
    sagas: HashMap<TransferKey, StoredTransfer>,
    /// Accounts to be closed with a transfer in flight from before this batch.
    in_flight: HashSet<AccountId>,
    /// Reserved money that may come back, by account, from before this batch and from this batch.
    under_way: HashMap<AccountId, UnderWay>,
    /// What accounts were opened with: those of [`Named::openings`], and those that this batch opened.
    openings: HashMap<AccountId, CreateAccount>,
    fence: Fence<'a>,
    now_us: i64,
    effects: Effects,
    /// Per order group, the accounts whose later operations have to wait.
    deferred: HashMap<u64, HashSet<AccountId>>,
    /// The accounts that an undetermined decision credits. A later decision of the batch must not take their room first.
    waiting_credits: HashSet<AccountId>,
    /// An answer was given that stores nothing, though its operation may have taken effect before.
    unsure: bool,
    /// A booking did not fit the accounts, which may be half changed: the batch must be taken back.
    is_broken: bool,
}

/// An operation that did not take place, apart from why.
enum Aside {
    Deferred,
    /// It depends on transfers that pay these accounts, among others.
    Undetermined(Vec<AccountId>),
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

/// A booking before it has a position and legs.
struct Draft<'d> {
    kind: BookingKind,
    id: Option<TransferId>,
    payer: &'d AccountId,
    payee: Option<&'d AccountId>,
    asset: AssetCode,
    /// Minor units.
    amount: i64,
    ordered_by: Option<KeyName>,
    extra: Option<Box<Extra>>,
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
            originals: named.originals,
            sagas: named.sagas,
            in_flight: named.in_flight,
            under_way: named.under_way,
            openings: named.openings,
            fence,
            now_us,
            effects: Effects { next_position, ..Effects::default() },
            deferred: HashMap::new(),
            waiting_credits: HashSet::new(),
            unsure: false,
            is_broken: false,
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
            Operation::ReleaseHold(release) => self.release_hold(release),
            Operation::ExpireHold(key) => self.expire_hold(key),
            Operation::EraseMetadata(erase) => self.erase_metadata(erase),
            Operation::DryRun(operation) => self.dry_run(operation),
            Operation::OrNothing(operation) => self.or_nothing(operation),
        };
        if matches!(outcome, Outcome::Illegal(_) | Outcome::Undetermined(_)) {
            self.unsure = true;
        }
        outcome
    }

    /// False: decide the batch again with [`Prior::Loaded`]. Some answer stores nothing, so that no id collides if its
    /// operation took effect before. Also false if the batch must not be written at all.
    pub fn is_sure(&self) -> bool {
        !self.is_broken && (!self.unsure || matches!(self.prior, Prior::Loaded(_)))
    }

    pub fn finish(mut self) -> Effects {
        self.note_holds();
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
        holds::outcome_of(aside)
    }

    /// Whether it matters to a credit what the account has been credited with before. (Requests large enough to fill any account
    /// see to their order themselves.)
    fn is_limited(&self, account: &AccountId) -> bool {
        let limited = |there: &Account| there.max_balance != Limit::Unlimited || there.posted > Account::HALF_FULL;
        self.accounts.get(account).is_some_and(limited)
    }

    // === booking ===

    /// Opens the in-transit account of an asset on first use.
    fn in_transit(&mut self, asset: AssetCode) -> Result<(), Aside> {
        let id = self.accounts.in_transit_id(asset);
        if self.accounts.get(&id).is_none() {
            self.open_account(&CreateAccount {
                ordered_by: None,
                id,
                asset,
                overdraft: Limit::Unlimited,
                max_balance: Limit::Unlimited,
                metadata: Metadata::empty(),
            })?;
        }
        Ok(())
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

    /// Appends a booking, or refuses it as a whole when a leg of it is impossible. The caller has checked the rules; what
    /// is checked here is arithmetic. Returns the place of the booking among the effects.
    fn book(&mut self, draft: Draft<'_>) -> Result<usize, Aside> {
        let Draft { kind, id, payer, payee, asset, amount, ordered_by, extra } = draft;
        let purpose = extra.as_ref().map_or_else(Default::default, |extra| extra.purpose);
        // Two legs of one account would have the same version. The router refuses such transfers before.
        if kind == BookingKind::Posted && payee == Some(payer) {
            return Err(Aside::Illegal(format!("INV-9: account {payer} is at both sides of a booking")));
        }
        let mut at_us = self.now_us;
        let payer_leg = match change(kind, purpose, amount, Party::Payer) {
            Some(change) => Some(self.leg(payer, asset, change, &mut at_us)?),
            None => None,
        };
        let payee_leg = match (payee, change(kind, purpose, amount, Party::Payee)) {
            (Some(payee), Some(change)) => Some(self.leg(payee, asset, change, &mut at_us)?),
            _ => None,
        };
        if kind.in_transit() != 0 {
            self.in_transit(asset)?;
            if self.check_in_transit(asset, i128::from(kind.in_transit() * amount)).is_err() {
                return Err(Aside::Illegal(format!("INV-1: the in-transit account of {asset} would overflow")));
            }
        }
        self.append(Booking {
            position: self.effects.next_position,
            kind,
            id,
            payer: payer.clone(),
            payee: payee.cloned(),
            asset,
            amount,
            at_us,
            payer_leg,
            payee_leg,
            ordered_by,
            extra,
        })
    }

    fn leg(&self, id: &AccountId, asset: AssetCode, change: Change, at_us: &mut i64) -> Result<Leg, Aside> {
        let illegal = |what: &str| Err(Aside::Illegal(format!("INV-1: account {id} {what}")));
        let Some(there) = self.accounts.get(id) else {
            return illegal("is missing");
        };
        if there.asset != asset {
            return illegal("holds another asset");
        }
        if there.posted.checked_add(change.posted).is_none() {
            return illegal("would overflow");
        }
        if there.held.checked_add(change.held).is_none_or(|held| held < 0) {
            return illegal("does not hold so much, or cannot");
        }
        // A time never decreases along an account's chain, also when the node's clock does.
        *at_us = (*at_us).max(there.updated_at_us);
        Ok(fold::leg_after(there, change))
    }

    /// Applies a booking through the fold and takes it into the effects.
    fn append(&mut self, booking: Booking) -> Result<usize, Aside> {
        let applied = self.accounts.apply(&booking).and_then(|()| self.apply_to_holds(&booking));
        if let Err(error) = applied {
            self.is_broken = true;
            return Err(Aside::Illegal(error.to_string()));
        }
        self.note_under_way(&booking);
        self.effects.next_position = booking.position.next();
        self.effects.bookings.push(booking);
        Ok(self.effects.bookings.len() - 1)
    }

    fn booking(&self, index: usize) -> &Booking {
        &self.effects.bookings[index]
    }
}

#[cfg(test)]
mod tests;

/// What a batch adds to the database.
#[derive(Debug, Default)]
pub struct Effects {
    pub bookings: Vec<Booking>,
    /// The rows of open holds that change in the same commit.
    pub holds: Vec<HoldRow>,
    /// One past the last position used.
    pub next_position: Position,
}

/// A change of the projection of open holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldRow {
    /// `position`: of the booking that placed the hold.
    Insert {
        key: HoldKey,
        hold: Hold,
        position: Position,
    },
    Update {
        key: HoldKey,
        hold: Hold,
    },
    /// The hold has ended. What became of it is in the journal.
    Delete {
        key: HoldKey,
    },
}

impl Effects {
    pub fn is_empty(&self) -> bool {
        self.bookings.is_empty()
    }

    /// Adds a booking that books nothing, so that the batch takes a position of its own.
    pub fn add_marker(&mut self, at_us: i64) {
        let position = self.next_position;
        self.bookings.push(Booking::marker(position, at_us));
        self.next_position = position.next();
    }
}
