//! The accounts a shard has in memory.
//!
//! The lane decides on these. A batch changes them before it is written; an undo list takes the batch back when it is
//! not written. Every account that a batch changed stays in memory until the fold has written the account's row,
//! because the row is older until then. All other accounts may be evicted.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::{
    Account, AccountId, AssetCode, Position,
    booking::{Booking, BookingKind, Party},
    fold::{self, FoldError},
};

/// Number of a batch of the lane. Batches count from 1.
pub type BatchNumber = u64;

/// Bytes that an account takes in memory in addition to its id and metadata: the state, the index and the allocations.
const ACCOUNT_BYTES: usize = 320;

/// The most accounts that one eviction looks at. This bounds its time to about a millisecond. The number is more than twice what
/// one batch can load.
const LOOKS_PER_EVICTION: usize = 65_536;

#[derive(Debug)]
pub struct Accounts {
    index: HashMap<AccountId, Handle, RandomState>,
    known: Vec<Known>,
    free: Vec<Handle>,
    /// The next account to look at for eviction.
    hand: usize,
    bytes: usize,
    capacity_bytes: usize,
    /// The batch being decided.
    batch: BatchNumber,
    /// States before the batch being decided changed them, in order.
    undo: Vec<(Handle, Option<Account>)>,
    in_transit: Vec<(AssetCode, AccountId)>,
}

/// An account in memory. Valid until the account is evicted, which never happens while a batch is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(u32);

#[derive(Debug, Clone)]
struct Known {
    id: AccountId,
    /// `None`: the database has no such account.
    account: Option<Account>,
    /// The last batch that changed the account; 0: none since it was loaded.
    changed_by: BatchNumber,
    /// The account was used since the eviction last looked at it.
    used: bool,
}

/// What a batch changed, to be taken back with [`Accounts::revert`].
#[derive(Debug, Default)]
pub struct Undo(Vec<(Handle, Option<Account>)>);

/// An account whose row is older than a batch left the account.
#[derive(Debug, Clone)]
pub struct Changed {
    pub after: Account,
    /// Version and head before the batch.
    pub base_version: i64,
    pub base_head: Position,
}

impl Accounts {
    /// Keeps at most about `capacity_bytes` of accounts that may be evicted.
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        Self {
            index: HashMap::default(),
            known: Vec::new(),
            free: Vec::new(),
            hand: 0,
            bytes: 0,
            capacity_bytes,
            batch: 1,
            undo: Vec::new(),
            in_transit: Vec::new(),
        }
    }

    /// Whether the account, or its absence, is known.
    pub fn is_known(&mut self, id: &AccountId) -> bool {
        match self.index.get(id) {
            Some(handle) => {
                self.known[handle.index()].used = true;
                true
            }
            None => false,
        }
    }

    /// Takes in what the database says. An account that is known already stays as it is: memory is never older than
    /// the row.
    pub fn learn(&mut self, id: AccountId, account: Option<Account>) {
        if self.index.contains_key(&id) {
            return;
        }
        self.bytes += bytes_of(&id, account.as_ref());
        let known = Known { id: id.clone(), account, changed_by: 0, used: true };
        let handle = match self.free.pop() {
            Some(handle) => {
                self.known[handle.index()] = known;
                handle
            }
            None => {
                let handle = Handle(u32::try_from(self.known.len()).unwrap_or(u32::MAX));
                assert!(handle.0 < u32::MAX, "the account memory is full");
                self.known.push(known);
                handle
            }
        };
        self.index.insert(id, handle);
    }

    /// The place of an account that was learnt. Asking for one that was never learnt is a programming error.
    pub fn find(&self, id: &AccountId) -> Handle {
        let handle = self.index.get(id).copied();
        assert!(handle.is_some(), "account {id} was not loaded before the batch was decided");
        handle.unwrap_or(Handle(0))
    }

    pub fn at(&self, handle: Handle) -> Option<&Account> {
        self.known[handle.index()].account.as_ref()
    }

    /// The account, if it exists. Asking for one that was never learnt is a programming error.
    pub fn get(&self, id: &AccountId) -> Option<&Account> {
        self.at(self.find(id))
    }

    /// The shard's in-transit account for an asset.
    pub fn in_transit_id(&mut self, asset: AssetCode) -> AccountId {
        if let Some((_, id)) = self.in_transit.iter().find(|(known, _)| *known == asset) {
            return id.clone();
        }
        let id = AccountId::in_transit(asset);
        self.in_transit.push((asset, id.clone()));
        id
    }

    /// Applies a booking to the accounts that it names. All of them must be known.
    ///
    /// # Errors
    /// When the booking does not continue an account's state. The accounts may then be half changed; the batch has to
    /// be taken back.
    pub fn apply(&mut self, booking: &Booking) -> Result<(), FoldError> {
        if booking.kind == BookingKind::Opened {
            let handle = self.find(&booking.payer);
            if self.at(handle).is_none() {
                let account = fold::open_account(booking)?;
                self.before_change(handle);
                self.put(handle, Some(account));
            }
            return Ok(());
        }
        for party in [Party::Payer, Party::Payee] {
            let id = match (party, &booking.payee) {
                (Party::Payer, _) if booking.payer_leg.is_some() => &booking.payer,
                (Party::Payee, Some(payee)) if booking.payee_leg.is_some() => payee,
                _ => continue,
            };
            let handle = self.find(id);
            self.before_change(handle);
            let Some(account) = &mut self.known[handle.index()].account else { return Err(missing(id, booking)) };
            let before = metadata_bytes(account);
            fold::apply_leg(account, booking, party)?;
            self.bytes = self.bytes + metadata_bytes(account) - before;
        }
        if booking.kind.in_transit() != 0 {
            let id = self.in_transit_id(booking.asset);
            let handle = self.find(&id);
            self.before_change(handle);
            match &mut self.known[handle.index()].account {
                Some(account) => drop(fold::apply_in_transit(account, booking)?),
                None => return Err(missing(&id, booking)),
            }
        }
        Ok(())
    }

    /// Keeps the state of an account as it was before the batch.
    fn before_change(&mut self, handle: Handle) {
        let known = &mut self.known[handle.index()];
        if known.changed_by != self.batch {
            known.changed_by = self.batch;
            self.undo.push((handle, known.account.clone()));
        }
    }

    /// Replaces what is known of an account.
    fn put(&mut self, handle: Handle, account: Option<Account>) {
        let known = &mut self.known[handle.index()];
        let bytes = |account: &Option<Account>| account.as_ref().map_or(0, metadata_bytes);
        self.bytes = self.bytes + bytes(&account) - bytes(&known.account);
        known.account = account;
    }

    // === batches ===

    /// The batch being decided.
    pub fn batch(&self) -> BatchNumber {
        self.batch
    }

    /// Ends the batch being decided and begins the next one. Returns what the batch changed, and how to take it back.
    pub fn finish_batch(&mut self) -> (Vec<Changed>, Undo) {
        let undo = std::mem::take(&mut self.undo);
        let changed = undo.iter().filter_map(|(handle, before)| {
            let after = self.at(*handle)?.clone();
            // A batch inserts the rows of accounts that it opens, as they were opened.
            let base = before.as_ref().map_or((1, after.opened), |before| (before.version, before.head));
            (after.version > base.0).then_some(Changed { after, base_version: base.0, base_head: base.1 })
        });
        let changed = changed.collect();
        self.batch += 1;
        (changed, Undo(undo))
    }

    /// Takes back the batch being decided.
    pub fn abandon_batch(&mut self) {
        let undo = std::mem::take(&mut self.undo);
        self.revert(Undo(undo));
        self.batch += 1;
    }

    /// Takes back a batch that was finished and not written. Later batches must have been taken back before.
    pub fn revert(&mut self, undo: Undo) {
        for (handle, before) in undo.0.into_iter().rev() {
            // The account stays marked as changed: an earlier batch may have changed it, and which one is not known.
            self.put(handle, before);
        }
    }

    /// Forgets everything: another writer's fold may have been ahead of this memory.
    pub fn forget_all(&mut self) {
        self.index.clear();
        self.known.clear();
        self.free.clear();
        self.undo.clear();
        self.hand = 0;
        self.bytes = 0;
    }

    /// Forgets the accounts for which `is_meant` is true: another shard wrote to them. Must not be called while a batch is being
    /// decided.
    pub fn forget(&mut self, is_meant: impl Fn(&AccountId) -> bool) {
        let meant: Vec<Handle> =
            self.index.iter().filter(|(id, _)| is_meant(id)).map(|(_, handle)| *handle).collect();
        meant.into_iter().for_each(|handle| self.evict_at(handle));
    }

    /// Evicts accounts until the memory is within its capacity, as far as accounts may be evicted: `folded` is the
    /// last batch whose accounts have all been folded. Must not be called while a batch is being decided.
    pub fn evict(&mut self, folded: BatchNumber) {
        // After two rounds, whatever is left must not be evicted.
        for _ in 0..LOOKS_PER_EVICTION.min(2 * self.known.len()) {
            if self.bytes <= self.capacity_bytes {
                break;
            }
            self.look_at_next(folded);
        }
    }

    fn look_at_next(&mut self, folded: BatchNumber) {
        if self.known.is_empty() {
            return;
        }
        self.hand = (self.hand + 1) % self.known.len();
        let handle = Handle(u32::try_from(self.hand).unwrap_or(u32::MAX));
        let known = &mut self.known[self.hand];
        if known.changed_by > folded {
            return;
        }
        if known.used {
            known.used = false;
            return;
        }
        self.evict_at(handle);
    }

    fn evict_at(&mut self, handle: Handle) {
        let known = &mut self.known[handle.index()];
        if self.index.get(&known.id) == Some(&handle) {
            self.bytes = self.bytes.saturating_sub(bytes_of(&known.id, known.account.as_ref()));
            self.index.remove(&known.id);
            known.account = None;
            self.free.push(handle);
        }
    }

    /// Accounts in memory, absent ones included.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The approximate size of the memory in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The present states of these accounts. [`Accounts::restore`] puts them back.
    pub(crate) fn snapshot<'a>(&self, ids: impl Iterator<Item = &'a AccountId>) -> Snapshot {
        Snapshot(ids.map(|id| self.find(id)).map(|handle| (handle, self.at(handle).cloned())).collect())
    }

    pub(crate) fn restore(&mut self, snapshot: Snapshot) {
        for (handle, account) in snapshot.0 {
            self.put(handle, account);
        }
    }
}

impl Handle {
    fn index(self) -> usize {
        self.0 as usize
    }
}

pub(crate) struct Snapshot(Vec<(Handle, Option<Account>)>);

fn bytes_of(id: &AccountId, account: Option<&Account>) -> usize {
    ACCOUNT_BYTES + 2 * id.as_str().len() + account.map_or(0, metadata_bytes)
}

fn metadata_bytes(account: &Account) -> usize {
    account.metadata.as_str().len()
}

fn missing(id: &AccountId, booking: &Booking) -> FoldError {
    FoldError::Content { account: id.clone(), position: booking.position, what: "the account does not exist" }
}

#[cfg(test)]
mod tests;
