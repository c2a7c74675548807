//! A shard in memory. [`Database`] is what PostgreSQL is in production: a journal, the rows of open holds, and the
//! look-ups that the lane makes before it decides a batch. [`Shard`] adds the accounts that the lane has in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    Account, AccountId, AssetCode, Hold, HoldKey, HoldStatus, Limit, Metadata, Position, TransferKey,
    accounts::Accounts,
    batch::{Batch, Effects, HoldRow, Named, Openings, Prior, Request, Stored},
    booking::{Attributes, Booking, BookingKind, Role},
    fold::{self, SagaChange},
    history::{self, Original, StoredRegister, StoredTransfer},
    operation::{CreateAccount, Operation},
    outcome::{Outcome, TransferState},
};

pub const T0: i64 = 1_000_000;

/// The journal with its unique key, and the rows of open holds.
#[derive(Default)]
pub struct Database {
    bookings: Vec<Booking>,
    /// Places in the journal, by the columns of `journal_answer`.
    answers: HashMap<(TransferKey, Role), usize>,
    holds: HashMap<HoldKey, OpenHold>,
}

/// An open hold and the position of the booking that placed it.
type OpenHold = (Hold, Position);

/// Every projection of a journal.
#[derive(Debug, Default, PartialEq)]
pub struct Folded {
    pub accounts: BTreeMap<AccountId, Account>,
    pub holds: HashMap<HoldKey, OpenHold>,
    pub sagas: HashMap<TransferKey, Position>,
}

impl Folded {
    /// Folds a journal from its first booking.
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

impl Database {
    pub fn bookings(&self) -> &[Booking] {
        &self.bookings
    }

    /// The number of transfers with a first answer.
    pub fn transfers(&self) -> usize {
        self.answers.keys().filter(|(_, role)| *role == Role::Transfer).count()
    }

    // === look-ups ===

    /// The booking that answers `key` in this role.
    pub fn answer(&self, key: &TransferKey, role: Role) -> Option<&Booking> {
        self.answers.get(&(key.clone(), role)).map(|&place| &self.bookings[place])
    }

    pub fn transfer(&self, key: &TransferKey) -> Option<StoredTransfer> {
        let (first, settlement) = (self.answer(key, Role::Transfer)?, self.answer(key, Role::Settlement));
        let answer = history::answer_of(first, settlement).map(|position| self.at(position));
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

    /// A transfer with the sum over its reversals.
    pub fn original(&self, key: &TransferKey) -> Option<Original> {
        let StoredTransfer { credit, asset, amount, state, .. } = self.transfer(key)?;
        let reverses = |booking: &&Booking| {
            matches!(booking.kind, BookingKind::Posted | BookingKind::Credited)
                && booking.purpose().reversed_transfer() == Some(key.id)
                && booking.payee.as_ref() == Some(&key.debit)
        };
        let reversed = self.bookings.iter().filter(reverses).map(|booking| booking.amount).sum();
        Some(Original { credit, asset, amount, state, reversed })
    }

    /// The keys of all transfers, in the order of their first answers.
    pub fn transfer_keys(&self) -> Vec<TransferKey> {
        let first = self.bookings.iter().filter(|booking| booking.kind.role() == Role::Transfer);
        first.filter_map(Booking::key).collect()
    }

    /// The keys of all holds, in the order in which they were placed.
    pub fn hold_keys(&self) -> Vec<HoldKey> {
        let first = self.bookings.iter().filter(|booking| booking.kind.role() == Role::Hold);
        first.filter_map(Booking::key).collect()
    }

    /// What the account was opened with: at the end of its chain.
    fn opening(&self, account: &Account) -> Option<CreateAccount> {
        let mut at = account.head;
        loop {
            let booking = self.bookings.iter().find(|booking| booking.position == at)?;
            let (_, _, leg) = booking.legs().find(|(_, id, _)| **id == account.id)?;
            if leg.previous != Position::NONE {
                at = leg.previous;
                continue;
            }
            let Attributes { max_balance, .. } = booking.extra.as_ref()?.attributes?;
            return Some(CreateAccount {
                id: account.id.clone(),
                asset: booking.asset,
                overdraft: leg.overdraft,
                max_balance,
                metadata: booking.metadata(),
            });
        }
    }

    fn at(&self, position: Position) -> &Booking {
        self.bookings.iter().find(|booking| booking.position == position).unwrap()
    }

    /// What the careful way loads: the transfers and registers under the operations' ids.
    pub fn stored(&self, operations: &[Operation]) -> Stored {
        let mut stored = Stored::default();
        for key in operations.iter().flat_map(keys) {
            stored.transfers.extend(self.transfer(&key).map(|transfer| (key.clone(), transfer)));
            stored.registers.extend(self.register(&key).map(|register| (key, register)));
        }
        stored
    }

    /// What the lane loads besides accounts and ids.
    pub fn named(&self, accounts: &Accounts, operations: &[Operation]) -> Named {
        let mut named = Named::default();
        let Openings { known, to_load } = Openings::of(accounts, operations.iter());
        named.openings = known;
        let opening = |account: &Account| Some((account.id.clone(), self.opening(account)?));
        named.openings.extend(to_load.into_iter().filter_map(opening));
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
                named.in_flight.extend(self.transfer_keys().iter().any(pending).then(|| account.clone()));
            }
        }
        named
    }

    // === writing ===

    /// Whether the unique key objects to a batch.
    pub fn objects_to(&self, effects: &Effects) -> Option<Role> {
        let mut new = std::collections::HashSet::new();
        let keys = effects.bookings.iter().filter_map(|booking| Some((booking.key()?, booking.kind.role())));
        keys.filter(|key| self.answers.contains_key(key) || !new.insert(key.clone())).map(|(_, role)| role).next()
    }

    /// Commits a batch. The fold of the whole journal must have the same open holds as the rows.
    pub fn write(&mut self, effects: Effects) -> Folded {
        assert_eq!(self.objects_to(&effects), None, "the unique key objects");
        for booking in effects.bookings {
            assert!(self.bookings.last().is_none_or(|last| last.position.next() == booking.position));
            if let Some(key) = booking.key() {
                self.answers.insert((key, booking.kind.role()), self.bookings.len());
            }
            self.bookings.push(booking);
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
        let folded = Folded::of(&self.bookings);
        assert_eq!(folded.holds, self.holds, "the rows of open holds are not the fold of the journal");
        folded
    }

    /// Deletes an account's first booking, as damage would.
    pub fn lose_opening(&mut self, account: &AccountId) {
        self.bookings.retain(|booking| booking.kind != BookingKind::Opened || booking.payer != *account);
    }

    /// After a batch was decided with care: what it knows of ids is what the look-ups find in the journal afterwards.
    fn compare_with(&self, known: Known) {
        for (key, transfer) in known.stored.transfers {
            assert_eq!(self.transfer(&key), Some(transfer), "{key:?}");
        }
        for (key, register) in known.stored.registers {
            assert_eq!(self.register(&key), Some(register), "{key:?}");
        }
        for (key, hold) in known.holds {
            assert_eq!(self.hold(&key), Some(hold), "{key:?}");
        }
        for (key, original) in known.originals {
            assert_eq!(self.original(&key).map(|it| it.reversed), Some(original.reversed), "{key:?}");
        }
        for (key, saga) in known.sagas {
            assert_eq!(self.transfer(&key).map(|it| it.state), Some(saga.state), "{key:?}");
        }
    }
}

/// What a batch knows of ids when it ends.
pub struct Known {
    stored: Stored,
    holds: Vec<(HoldKey, Hold)>,
    originals: HashMap<TransferKey, Original>,
    sagas: HashMap<TransferKey, StoredTransfer>,
}

impl Known {
    pub fn of(batch: &mut Batch<'_>) -> Self {
        let stored = match std::mem::replace(&mut batch.prior, Prior::Unknown) {
            Prior::Loaded(stored) => stored,
            Prior::Unknown => Stored::default(),
        };
        let holds = batch.holds.keys().filter_map(|key| Some((key.clone(), batch.hold(key)?.clone())));
        Self { stored, holds: holds.collect(), originals: batch.originals.clone(), sagas: batch.sagas.clone() }
    }
}

/// The ids that an operation asks about.
fn keys(operation: &Operation) -> Vec<TransferKey> {
    match operation {
        Operation::Transfer(transfer) => vec![transfer.key()],
        Operation::AtomicTransfers(items) => items.iter().map(|item| item.key()).collect(),
        Operation::Decide(decide) => vec![decide.key()],
        Operation::Settle(settle) => vec![settle.key()],
        Operation::DryRun(operation) => keys(operation),
        Operation::CreateAccount(_)
        | Operation::UpdateAccount(_)
        | Operation::PlaceHold(_)
        | Operation::ReleaseHold(_)
        | Operation::ExpireHold(_) => Vec::new(),
    }
}

/// Every account that must be known before an operation is decided.
pub fn needed(operation: &Operation) -> Vec<AccountId> {
    let mut needed = Vec::new();
    operation.for_each_account(|id| needed.push(id.clone()));
    needed.extend(operation.in_transit_asset().map(AccountId::in_transit));
    needed
}

/// The lane's memory over a database. Each batch is decided with care, committed, and compared with the fold.
pub struct Shard {
    pub accounts: Accounts,
    pub database: Database,
    pub now_us: i64,
    next: Position,
    learnt: BTreeSet<AccountId>,
}

impl Shard {
    /// Accounts by name: a leading `bank` may go negative without limit.
    pub fn with(names: &[&str]) -> Self {
        let mut shard = Self {
            accounts: Accounts::with_capacity(1000),
            database: Database::default(),
            now_us: T0,
            next: Position::first_of(0),
            learnt: BTreeSet::new(),
        };
        for name in names {
            let overdraft = if name.starts_with("bank") { Limit::Unlimited } else { Limit::ZERO };
            let create = CreateAccount {
                id: super::id(name),
                asset: super::usd(),
                overdraft,
                max_balance: Limit::Unlimited,
                metadata: Metadata::empty(),
            };
            shard.run(&[Operation::CreateAccount(create)]);
        }
        shard
    }

    pub fn run(&mut self, operations: &[Operation]) -> Vec<Outcome> {
        self.run_in_group(0, operations)
    }

    pub fn one(&mut self, operation: Operation) -> Outcome {
        self.run(&[operation]).remove(0)
    }

    pub fn run_in_group(&mut self, group: u64, operations: &[Operation]) -> Vec<Outcome> {
        for id in operations.iter().flat_map(needed) {
            if !self.accounts.is_known(&id) {
                self.accounts.learn(id.clone(), None);
            }
            self.learnt.insert(id);
        }
        let request = Request { order_group: group, deadline_us: self.now_us + 1 };
        let fence = |_: &AccountId| Ok(());
        let prior = Prior::Loaded(self.database.stored(operations));
        let named = self.database.named(&self.accounts, operations);
        let mut batch = Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, self.next);
        let outcomes = operations.iter().map(|operation| batch.apply(request, operation)).collect();
        let known = Known::of(&mut batch);
        let effects = batch.finish();
        self.accounts.finish_batch();
        self.next = effects.next_position;
        let folded = self.database.write(effects);
        for id in &self.learnt {
            assert_eq!(
                self.accounts.get(id),
                folded.accounts.get(id),
                "{id} in memory is not the fold of the journal"
            );
        }
        assert!(folded.accounts.keys().all(|id| self.learnt.contains(id)));
        self.database.compare_with(known);
        outcomes
    }

    /// Decides one operation and takes it back, for a database that the fold would object to.
    pub fn decide_only(&mut self, operation: &Operation) -> Outcome {
        let fence = |_: &AccountId| Ok(());
        let operations = std::slice::from_ref(operation);
        let prior = Prior::Loaded(self.database.stored(operations));
        let named = self.database.named(&self.accounts, operations);
        let mut batch = Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, self.next);
        let outcome = batch.apply(Request::UNORDERED, operation);
        drop(batch);
        self.accounts.abandon_batch();
        outcome
    }

    fn account(&self, name: &str) -> &Account {
        self.accounts.get(&super::id(name)).unwrap()
    }

    /// The position of the next booking.
    pub fn next(&self) -> Position {
        self.next
    }

    pub fn posted(&self, name: &str) -> i64 {
        self.account(name).posted
    }

    pub fn held(&self, name: &str) -> i64 {
        self.account(name).held
    }

    pub fn in_transit(&self) -> i64 {
        let id = AccountId::in_transit(super::usd());
        if !self.learnt.contains(&id) {
            return 0;
        }
        self.accounts.get(&id).map_or(0, |account| account.posted)
    }

    /// The legs since booking number `from`, as statements show them: account, kind, amount.
    pub fn entries_since(&self, from: usize) -> Vec<(&str, crate::EntryKind, i64)> {
        let bookings = self.database.bookings[from..].iter();
        let legs = bookings.flat_map(|booking| booking.legs().map(move |(party, id, _)| (booking, party, id)));
        legs.map(|(booking, party, id)| {
            (id.as_str(), booking.entry_kind(party), booking.change(party).unwrap().posted)
        })
        .collect()
    }
}
