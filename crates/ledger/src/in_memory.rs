//! A shard's journal in memory, for tests.
//!
//! [`Journal`] keeps what PostgreSQL keeps in production: the bookings with their unique key, and the rows of open holds.
//! It answers the look-ups that the lane makes before it decides a batch. [`Folded`] has every projection of a journal.
//!
//! Both are strict. A journal that breaks an invariant fails the test with a panic, because a test has nothing better to
//! do with it.

#![allow(clippy::unwrap_used, reason = "only tests use this module")]

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    Account, AccountId, AssetCode, Hold, HoldKey, HoldStatus, Metadata, Position, TransferKey,
    accounts::Accounts,
    batch::{Effects, HoldRow, Named, Openings, Stored},
    booking::{Booking, BookingKind, Erasure, Role},
    fold::{self, SagaChange},
    history::{self, Original, StoredRegister, StoredTransfer},
    operation::{CreateAccount, Operation},
    outcome::TransferState,
};

/// The journal of a shard with its unique key, and the rows of open holds.
#[derive(Debug, Clone)]
pub struct Journal {
    bookings: Vec<Booking>,
    /// Places in the journal, by the primary key and by the columns of `journal_answer`.
    positions: HashMap<Position, usize>,
    answers: HashMap<(TransferKey, Role), usize>,
    holds: HashMap<HoldKey, OpenHold>,
    next_position: Position,
}

/// An open hold and the position of the booking that placed it.
pub type OpenHold = (Hold, Position);

/// Every projection of a journal.
#[derive(Debug, Default, PartialEq)]
pub struct Folded {
    pub accounts: BTreeMap<AccountId, Account>,
    pub holds: HashMap<HoldKey, OpenHold>,
    /// The sagas under way, with the positions of their first bookings.
    pub sagas: HashMap<TransferKey, Position>,
}

impl Folded {
    /// Folds a journal from its first booking. Panics when a booking does not continue the state that it belongs to, or
    /// when the books do not balance in the end.
    pub fn of(bookings: &[Booking]) -> Self {
        let mut folded = Self::default();
        for booking in bookings {
            folded.apply_to_accounts(booking);
            folded.apply_to_holds(booking);
            match fold::saga_change(booking) {
                Some(SagaChange::Begun(key)) => {
                    assert_eq!(folded.sagas.insert(key, booking.position), None, "begun twice");
                }
                Some(SagaChange::Ended(key)) => {
                    assert!(folded.sagas.remove(&key).is_some(), "a settlement without a saga: {booking:?}");
                }
                None => {}
            }
        }
        folded.check();
        folded
    }

    fn apply_to_accounts(&mut self, booking: &Booking) {
        if booking.kind == BookingKind::Opened {
            let account = fold::open_account(booking).unwrap();
            assert_eq!(self.accounts.insert(booking.payer.clone(), account), None, "opened twice");
            return;
        }
        for (party, id, _) in booking.legs() {
            let account = self.accounts.get_mut(id).unwrap();
            assert!(fold::apply_leg(account, booking, party).unwrap(), "a leg of a version that was there");
        }
        if booking.kind.in_transit() != 0 {
            let account = self.accounts.get_mut(&AccountId::in_transit(booking.asset)).unwrap();
            assert!(fold::apply_in_transit(account, booking).unwrap());
        }
    }

    fn apply_to_holds(&mut self, booking: &Booking) {
        let Some(key) = fold::hold_key(booking) else { return };
        if booking.kind.role() == Role::Hold {
            let hold = fold::place_hold(booking).unwrap();
            if hold.status == HoldStatus::Held {
                assert_eq!(self.holds.insert(key, (hold, booking.position)), None, "placed twice");
            }
            return;
        }
        let (hold, _) = self.holds.get_mut(&key).unwrap();
        fold::apply_to_hold(hold, booking).unwrap();
        if hold.status != HoldStatus::Held {
            self.holds.remove(&key);
        }
    }

    /// The books balance, no limited account is overdrawn, and what accounts hold is what remains of their holds.
    fn check(&self) {
        let mut sums: BTreeMap<AssetCode, i128> = BTreeMap::new();
        for account in self.accounts.values() {
            *sums.entry(account.asset).or_default() += i128::from(account.posted);
            assert!(account.available().is_none_or(|available| available >= 0), "INV-10: {account:?}");
            let of_account = self.holds.iter().filter(|(key, _)| key.debit == account.id);
            let remaining: i64 = of_account.map(|(_, (hold, _))| hold.remaining()).sum();
            assert_eq!(account.held, remaining, "INV-11: {}", account.id);
        }
        assert!(sums.values().all(|sum| *sum == 0), "INV-1: {sums:?}");
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::of_shard(0)
    }
}

impl Journal {
    /// An empty journal.
    pub fn of_shard(number: u16) -> Self {
        Self {
            bookings: Vec::new(),
            positions: HashMap::new(),
            answers: HashMap::new(),
            holds: HashMap::new(),
            next_position: Position::first_of(number),
        }
    }

    /// The bookings in the order in which they were appended or copied.
    pub fn bookings(&self) -> &[Booking] {
        &self.bookings
    }

    /// The position of the next booking.
    pub fn next_position(&self) -> Position {
        self.next_position
    }

    /// The rows of open holds.
    pub fn open_holds(&self) -> &HashMap<HoldKey, OpenHold> {
        &self.holds
    }

    // === look-ups ===

    pub fn at(&self, position: Position) -> Option<&Booking> {
        self.positions.get(&position).map(|&place| &self.bookings[place])
    }

    /// The bookings of the shard's own range after a position, in order.
    pub fn after(&self, position: Position) -> impl Iterator<Item = &Booking> {
        let own = self.next_position.shard_number();
        let is_own = move |booking: &&Booking| booking.position.shard_number() == own;
        self.bookings.iter().filter(is_own).filter(move |booking| booking.position > position)
    }

    /// The booking that answers `key` in this role.
    pub fn answer(&self, key: &TransferKey, role: Role) -> Option<&Booking> {
        self.answers.get(&(key.clone(), role)).map(|&place| &self.bookings[place])
    }

    pub fn transfer(&self, key: &TransferKey) -> Option<StoredTransfer> {
        let (first, settlement) = (self.answer(key, Role::Transfer)?, self.answer(key, Role::Settlement));
        let answer = history::answer_of(first, settlement).map(|position| self.at(position).unwrap());
        let leg = answer.map(|booking| booking.payer_leg.as_ref().unwrap());
        Some(StoredTransfer::of(first, settlement, leg).unwrap())
    }

    pub fn register(&self, key: &TransferKey) -> Option<StoredRegister> {
        self.answer(key, Role::Register).map(|booking| StoredRegister::of(booking).unwrap())
    }

    /// A hold, open or ended.
    pub fn hold(&self, key: &HoldKey) -> Option<Hold> {
        if let Some((hold, _)) = self.holds.get(key) {
            return Some(hold.clone());
        }
        let first = self.answer(key, Role::Hold)?;
        Some(history::ended_hold(first, self.answer(key, Role::HoldEnd)).unwrap())
    }

    /// The bookings that moved the money of reversals of a transfer.
    pub fn reversals(&self, of: &TransferKey) -> impl Iterator<Item = &Booking> {
        self.bookings.iter().filter(|booking| {
            matches!(booking.kind, BookingKind::Posted | BookingKind::Credited)
                && booking.purpose().reversed_transfer() == Some(of.id)
                && booking.payee.as_ref() == Some(&of.debit)
        })
    }

    /// A transfer with the sum over its reversals.
    pub fn original(&self, key: &TransferKey) -> Option<Original> {
        let StoredTransfer { credit, asset, amount, state, .. } = self.transfer(key)?;
        let reversed = self.reversals(key).map(|booking| booking.amount).sum();
        Some(Original { credit, asset, amount, state, reversed })
    }

    /// What the account was opened with.
    pub fn opening(&self, account: &Account) -> Option<CreateAccount> {
        let opened = self.at(account.opened)?;
        Some(CreateAccount::like(&fold::open_account(opened).unwrap()))
    }

    /// The keys of the bookings with a role, in the order of the bookings.
    pub fn keys(&self, role: Role) -> Vec<TransferKey> {
        let with_role = self.bookings.iter().filter(|booking| booking.kind.role() == role);
        with_role.filter_map(Booking::key).collect()
    }

    /// What the careful way loads: the transfers and registers under the operations' ids.
    pub fn stored<'o>(&self, operations: impl Iterator<Item = &'o Operation>) -> Stored {
        let mut stored = Stored::default();
        for operation in operations {
            operation.for_each_key(&mut |role, id, debit| {
                let key = TransferKey { id, debit: debit.clone() };
                match role {
                    Role::Register => {
                        stored.registers.extend(self.register(&key).map(|register| (key, register)));
                    }
                    _ => stored.transfers.extend(self.transfer(&key).map(|transfer| (key, transfer))),
                }
            });
        }
        stored
    }

    /// What the lane loads in addition to accounts and ids.
    pub fn named<'o>(&self, accounts: &Accounts, operations: impl Iterator<Item = &'o Operation> + Clone) -> Named {
        let mut named = Named::default();
        let Openings { known, to_load } = Openings::of(accounts, operations.clone());
        named.openings = known;
        let opening = |account: &Account| Some((account.id.clone(), self.opening(account)?));
        named.openings.extend(to_load.into_iter().filter_map(opening));
        for reserved in self.under_way().into_iter().filter_map(fold::reserved) {
            named.under_way.entry(reserved.debit.clone()).or_default().add(&reserved);
        }
        for operation in operations {
            named.holds.extend(operation.hold().and_then(|key| Some((key.clone(), self.hold(&key)?))));
            named.originals.extend(operation.original().and_then(|key| Some((key.clone(), self.original(&key)?))));
            if let Operation::Settle(settle) = operation {
                let saga = self.transfer(&settle.key()).filter(|transfer| transfer.state == TransferState::Pending);
                named.sagas.extend(saga.map(|saga| (settle.key(), saga)));
            }
            if let Some(account) = operation.closes() {
                let pending = |key: &TransferKey| {
                    key.debit == *account
                        && self.transfer(key).is_some_and(|transfer| transfer.state == TransferState::Pending)
                };
                named.in_flight.extend(self.keys(Role::Transfer).iter().any(pending).then(|| account.clone()));
            }
        }
        named
    }

    /// The first bookings of the sagas under way.
    fn under_way(&self) -> Vec<&Booking> {
        let mut begun: HashMap<TransferKey, &Booking> = HashMap::new();
        for booking in &self.bookings {
            match fold::saga_change(booking) {
                Some(SagaChange::Begun(key)) => drop(begun.insert(key, booking)),
                Some(SagaChange::Ended(key)) => drop(begun.remove(&key)),
                None => {}
            }
        }
        begun.into_values().collect()
    }

    // === writing ===

    /// Whether the unique key objects to a batch: the role of the first booking that it refuses.
    pub fn objects_to(&self, effects: &Effects) -> Option<Role> {
        let mut new = HashSet::new();
        let keys = effects.bookings.iter().filter_map(|booking| Some((booking.key()?, booking.kind.role())));
        keys.filter(|key| self.answers.contains_key(key) || !new.insert(key.clone())).map(|(_, role)| role).next()
    }

    /// Commits a batch. Panics where a constraint of the database would refuse it.
    pub fn append(&mut self, effects: Effects) {
        assert_eq!(self.objects_to(&effects), None, "the unique key objects");
        for booking in effects.bookings {
            assert_eq!(booking.position, self.next_position, "a gap between positions");
            self.next_position = booking.position.next();
            self.push(booking);
        }
        for row in effects.holds {
            match row {
                HoldRow::Insert { key, hold, position } => {
                    assert_eq!(self.holds.insert(key, (hold, position)), None);
                }
                HoldRow::Update { key, hold } => self.holds.get_mut(&key).unwrap().0 = hold,
                HoldRow::Delete { key } => assert!(self.holds.remove(&key).is_some()),
            }
        }
    }

    fn push(&mut self, booking: Booking) {
        if let Some(erasure) = booking.erasure() {
            self.bookings.iter_mut().for_each(|earlier| earlier.erase(&erasure));
            if let Erasure::Hold(key) = &erasure
                && let Some((hold, _)) = self.holds.get_mut(&HoldKey { id: key.id, debit: key.debit.clone() })
                && hold.metadata.has_text()
            {
                hold.metadata = Metadata::erased();
            }
        }
        let place = self.bookings.len();
        assert_eq!(self.positions.insert(booking.position, place), None, "a position twice");
        if let Some(key) = booking.key() {
            self.answers.insert((key, booking.kind.role()), place);
        }
        self.bookings.push(booking);
    }

    /// Every projection of the journal. The open holds among them must be the rows.
    pub fn fold(&self) -> Folded {
        let folded = Folded::of(&self.bookings);
        assert_eq!(folded.holds, self.holds, "the rows of open holds are not the fold of the journal");
        folded
    }

    /// Copies what concerns some accounts from another shard's journal, as a move of their slots does. A booking keeps its
    /// position. A journal with copies has only a part of the other shard's chains and cannot be folded as a whole.
    pub fn copy_from(&mut self, other: &Self, is_moved: impl Fn(&AccountId) -> bool) {
        let concerns = |booking: &Booking| is_moved(&booking.payer) || booking.payee.as_ref().is_some_and(&is_moved);
        for booking in other.bookings.iter().filter(|booking| concerns(booking)) {
            if !self.positions.contains_key(&booking.position) {
                self.push(booking.clone());
            }
        }
        self.holds.retain(|key, _| !is_moved(&key.debit));
        let holds = other.holds.iter().filter(|(key, _)| is_moved(&key.debit));
        self.holds.extend(holds.map(|(key, hold)| (key.clone(), hold.clone())));
    }

    /// Copies a booking of another shard. Returns false if another booking has its position.
    pub fn copy_in(&mut self, mut booking: Booking) -> bool {
        let Some(&place) = self.positions.get(&booking.position) else {
            self.push(booking);
            return true;
        };
        let there = &mut self.bookings[place];
        there.share_erasure(&mut booking);
        *there == booking
    }

    /// Removes bookings, as the end of a move does. Returns how many.
    pub fn remove(&mut self, is_gone: impl Fn(&Booking) -> bool) -> usize {
        let before = self.bookings.len();
        self.damage(|bookings| bookings.retain(|booking| !is_gone(booking)));
        before - self.bookings.len()
    }

    /// The rows of open holds, for a move that copies or deletes some.
    pub fn holds_mut(&mut self) -> &mut HashMap<HoldKey, OpenHold> {
        &mut self.holds
    }

    /// Changes bookings behind the back of every check, as damage does.
    pub fn damage(&mut self, change: impl FnOnce(&mut Vec<Booking>)) {
        let mut bookings = std::mem::take(&mut self.bookings);
        change(&mut bookings);
        self.positions.clear();
        self.answers.clear();
        bookings.into_iter().for_each(|booking| self.push(booking));
    }
}

/// Every account that must be known before an operation is decided.
pub fn needed(operation: &Operation) -> Vec<AccountId> {
    let mut needed = Vec::new();
    operation.for_each_account(|id| needed.push(id.clone()));
    needed.extend(operation.in_transit_asset().map(AccountId::in_transit));
    needed
}
