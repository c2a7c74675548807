//! The accounts a shard has in memory, and which of them the current batch touched.
//!
//! The lane decides on these; PostgreSQL has the last word. When a batch cannot be written, what it touched is forgotten
//! and loaded again. The store is bounded by two generations: accounts used since the last turn are `young`; when there
//! are too many of them they become `old`, and what was old and unused is dropped.

use std::collections::HashMap;

use crate::{Account, AccountId, AssetCode};

#[derive(Debug)]
pub struct Accounts {
    young: HashMap<AccountId, Known>,
    old: HashMap<AccountId, Known>,
    /// Accounts per generation.
    generation_size: usize,
    in_transit: HashMap<AssetCode, AccountId>,
    touched: Vec<AccountId>,
}

#[derive(Debug, Clone)]
struct Known {
    /// `None`: the database has no such account.
    account: Option<Account>,
    /// Set while the current batch has changed the account and not yet committed.
    change: Option<Change>,
}

/// What the current batch did to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The version the batch decided on; 0 when the batch opened the account.
    pub loaded_version: i64,
    /// Status, limits or metadata changed, not only balances.
    pub attributes: bool,
}

impl Accounts {
    /// Keeps at most about `capacity` accounts.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            generation_size: (capacity / 2).max(1),
            in_transit: HashMap::new(),
            touched: Vec::new(),
        }
    }

    /// Whether the account (or its absence) is known; known ones stay so until the batch ends.
    pub fn is_known(&mut self, id: &AccountId) -> bool {
        if self.young.contains_key(id) {
            return true;
        }
        match self.old.remove_entry(id) {
            Some((id, known)) => {
                self.young.insert(id, known);
                true
            }
            None => false,
        }
    }

    /// Takes in what the database says.
    pub fn learn(&mut self, id: AccountId, account: Option<Account>) {
        self.young.insert(id, Known { account, change: None });
    }

    /// The account, if it exists. Asking for one that was never learnt is a programming error.
    pub fn get(&self, id: &AccountId) -> Option<&Account> {
        let known = self.young.get(id);
        assert!(known.is_some(), "account {id} was not loaded before the batch was decided");
        known.and_then(|k| k.account.as_ref())
    }

    /// The shard's in-transit account for an asset.
    pub fn in_transit_id(&mut self, asset: AssetCode) -> AccountId {
        self.in_transit.entry(asset).or_insert_with(|| AccountId::in_transit(asset)).clone()
    }

    /// Opens an account in the current batch.
    pub(crate) fn open(&mut self, account: Account) {
        let id = account.id.clone();
        self.touched.push(id.clone());
        let change = Some(Change { loaded_version: 0, attributes: true });
        self.young.insert(id, Known { account: Some(account), change });
    }

    /// The account to change in the current batch. `None`: it does not exist.
    pub(crate) fn change(&mut self, id: &AccountId, attributes: bool) -> Option<&mut Account> {
        let known = self.young.get_mut(id)?;
        let account = known.account.as_mut()?;
        match &mut known.change {
            Some(change) => change.attributes |= attributes,
            None => {
                known.change = Some(Change { loaded_version: account.version, attributes });
                self.touched.push(id.clone());
            }
        }
        Some(account)
    }

    /// Every account the current batch changed, with what it did to it.
    pub fn changes(&self) -> impl Iterator<Item = (&Account, Change)> {
        self.touched.iter().filter_map(|id| {
            let known = self.young.get(id)?;
            Some((known.account.as_ref()?, known.change?))
        })
    }

    /// The batch is in the database.
    pub fn committed(&mut self) {
        for id in self.touched.drain(..) {
            if let Some(known) = self.young.get_mut(&id) {
                known.change = None;
            }
        }
        if self.young.len() > self.generation_size {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// The batch is not in the database: what it touched must be loaded again.
    pub fn rolled_back(&mut self) {
        for id in self.touched.drain(..) {
            self.young.remove(&id);
        }
    }

    /// Somebody else wrote to the shard: nothing in memory can be trusted.
    pub fn forget_all(&mut self) {
        self.young.clear();
        self.old.clear();
        self.touched.clear();
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the batch stands, to come back to with [`Accounts::restore`]: the named accounts as they are now.
    pub(crate) fn snapshot<'a>(&self, ids: impl Iterator<Item = &'a AccountId>) -> Snapshot {
        let known = ids.filter_map(|id| Some((id.clone(), self.young.get(id)?.clone()))).collect();
        Snapshot { known, touched: self.touched.len() }
    }

    pub(crate) fn restore(&mut self, snapshot: Snapshot) {
        self.touched.truncate(snapshot.touched);
        self.young.extend(snapshot.known);
    }
}

pub(crate) struct Snapshot {
    known: Vec<(AccountId, Known)>,
    touched: usize,
}
