//! A shard in memory: the accounts that the lane has in memory, over an in-memory [`Journal`].

use std::collections::{BTreeSet, HashMap};

use crate::{
    Account, AccountId, Hold, HoldKey, Limit, Metadata, TransferKey,
    accounts::Accounts,
    batch::{Batch, Prior, Request, Stored},
    history::{Original, StoredTransfer},
    in_memory::{Journal, needed},
    operation::{CreateAccount, Operation},
    outcome::Outcome,
};

pub const T0: i64 = 1_000_000;

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
            Prior::Suspected(stored) | Prior::Loaded(stored) => stored,
            Prior::Unknown => Stored::default(),
        };
        let holds = batch.holds.keys().filter_map(|key| Some((key.clone(), batch.hold(key)?.clone())));
        Self { stored, holds: holds.collect(), originals: batch.originals.clone(), sagas: batch.sagas.clone() }
    }

    /// After a batch was decided with care: what it knows of ids is what the look-ups find in the journal afterwards.
    fn compare_with(self, journal: &Journal) {
        for (key, transfer) in self.stored.transfers {
            assert_eq!(journal.transfer(&key), Some(transfer), "{key:?}");
        }
        for (key, register) in self.stored.registers {
            assert_eq!(journal.register(&key), Some(register), "{key:?}");
        }
        for (key, hold) in self.holds {
            assert_eq!(journal.hold(&key), Some(hold), "{key:?}");
        }
        for (key, original) in self.originals {
            assert_eq!(journal.original(&key).map(|it| it.reversed), Some(original.reversed), "{key:?}");
        }
        for (key, saga) in self.sagas {
            assert_eq!(journal.transfer(&key).map(|it| it.state), Some(saga.state), "{key:?}");
        }
    }
}

/// The lane's memory over a journal. Each batch is decided with care, committed, and compared with the fold.
pub struct Shard {
    pub accounts: Accounts,
    pub journal: Journal,
    pub now_us: i64,
    learnt: BTreeSet<AccountId>,
}

impl Shard {
    /// Accounts by name: a leading `bank` may go negative without limit.
    pub fn with(names: &[&str]) -> Self {
        let mut shard = Self {
            accounts: Accounts::with_capacity(1000),
            journal: Journal::default(),
            now_us: T0,
            learnt: BTreeSet::new(),
        };
        for name in names {
            let overdraft = if name.starts_with("bank") { Limit::Unlimited } else { Limit::ZERO };
            let create = CreateAccount {
                ordered_by: None,
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
        let prior = Prior::Loaded(self.journal.stored(operations.iter()));
        let named = self.journal.named(&self.accounts, operations.iter());
        let mut batch =
            Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, self.journal.next_position());
        let outcomes = operations.iter().map(|operation| batch.apply(request, operation)).collect();
        let known = Known::of(&mut batch);
        let effects = batch.finish();
        self.accounts.finish_batch();
        self.journal.append(effects);
        let folded = self.journal.fold();
        for id in &self.learnt {
            assert_eq!(
                self.accounts.get(id),
                folded.accounts.get(id),
                "{id} in memory is not the fold of the journal"
            );
        }
        assert!(folded.accounts.keys().all(|id| self.learnt.contains(id)));
        known.compare_with(&self.journal);
        outcomes
    }

    /// Decides one operation and takes it back, for a journal that the fold would object to.
    pub fn decide_only(&mut self, operation: &Operation) -> Outcome {
        let fence = |_: &AccountId| Ok(());
        let operations = std::slice::from_ref(operation);
        let prior = Prior::Loaded(self.journal.stored(operations.iter()));
        let named = self.journal.named(&self.accounts, operations.iter());
        let mut batch =
            Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, self.journal.next_position());
        let outcome = batch.apply(Request::UNORDERED, operation);
        drop(batch);
        self.accounts.abandon_batch();
        outcome
    }

    fn account(&self, name: &str) -> &Account {
        self.accounts.get(&super::id(name)).unwrap()
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
        let bookings = self.journal.bookings()[from..].iter();
        let legs = bookings.flat_map(|booking| booking.legs().map(move |(party, id, _)| (booking, party, id)));
        legs.map(|(booking, party, id)| {
            (id.as_str(), booking.entry_kind(party), booking.change(party).unwrap().posted)
        })
        .collect()
    }
}
