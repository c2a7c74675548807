//! Reads over many accounts: pages of them, and their sums.
//!
//! The router says which slots it means. They are answered for as of one snapshot, or those that are not owned here are
//! named: an answer without an account that has just moved would look like any other.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ledger::{AccountPrefix, outcome::NotOwner};
use shard_map::SlotRange;
use sqlx::PgPool;

use super::{ATTEMPTS, Reads};
use crate::store::{
    StoreError,
    account_list::{self, Meant, Versioned},
    ownership::{Ownership, as_multirange},
};

/// Which accounts a router means.
#[derive(Debug, Clone)]
pub struct Selection {
    pub prefix: AccountPrefix,
    pub slots: Vec<SlotRange>,
}

/// What was asked for, or the slots among those meant that are not owned here.
pub enum AllOwned<T> {
    Here(T),
    NotHere(Vec<NotOwner>),
}

/// Slot ownership as read last, so that not every page reads thousands of rows. The version read with a page tells whether
/// it still holds.
#[derive(Debug, Clone, Default)]
pub struct KnownOwnership(Arc<Mutex<Option<Known>>>);

type Known = Versioned<Arc<Ownership>>;

/// The first `limit` accounts after the id `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn page(
    reads: &Reads,
    known: &KnownOwnership,
    selection: &Selection,
    after: &str,
    limit: i64,
) -> Result<AllOwned<wire::ListAccountsResponse>, StoreError> {
    let slots = as_multirange(&selection.slots);
    let meant = Meant { prefix: &selection.prefix, slots: &slots };
    for _ in 0..ATTEMPTS {
        let (generation, folded) = reads.tail.generation();
        // One more than wanted tells whether there are more.
        let read = account_list::page(reads.from.pool()?, meant, after, limit.saturating_add(1)).await?;
        let (mut accounts, reached) = match known.checked(reads.from.pool()?, &selection.slots, read).await? {
            Some(AllOwned::Here(found)) => found,
            Some(AllOwned::NotHere(not_owner)) => return Ok(AllOwned::NotHere(not_owner)),
            None => continue,
        };
        reads.reach(folded, reached).await?;
        let (newer, generation_after) = reads.tail.overlays(accounts.iter().map(|account| &account.id));
        // A fold that finished in between may have taken newer states out of the tail.
        if generation_after != generation {
            continue;
        }
        for account in &mut accounts {
            if let Some(newer) = newer.get(&account.id).filter(|newer| newer.version > account.version) {
                account.clone_from(newer);
            }
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = accounts.len() > limit;
        let accounts = accounts.iter().take(limit).map(Into::into).collect();
        return Ok(AllOwned::Here(wire::ListAccountsResponse { accounts, has_more, not_owner: Vec::new() }));
    }
    Err(StoreError::Fenced)
}

pub async fn sums(
    pool: &PgPool,
    known: &KnownOwnership,
    selection: &Selection,
    timeout: Duration,
) -> Result<AllOwned<Vec<wire::AssetSum>>, StoreError> {
    let slots = as_multirange(&selection.slots);
    let meant = Meant { prefix: &selection.prefix, slots: &slots };
    for _ in 0..ATTEMPTS {
        let read = account_list::sums(pool, meant, timeout).await?;
        if let Some(sums) = known.checked(pool, &selection.slots, read).await? {
            return Ok(sums);
        }
    }
    Err(StoreError::Fenced)
}

// === impl KnownOwnership ===

impl KnownOwnership {
    /// What was read, once it is known who owned the slots at that moment. `None` when that can no longer be known.
    async fn checked<T>(
        &self,
        pool: &PgPool,
        slots: &[SlotRange],
        read: Versioned<T>,
    ) -> Result<Option<AllOwned<T>>, StoreError> {
        let Some(ownership) = self.as_of(pool, read.ownership_version).await? else { return Ok(None) };
        let mut not_owner = Vec::new();
        for range in slots {
            not_owner.extend(range.slots().filter_map(|slot| ownership.check(slot).err()));
        }
        Ok(Some(if not_owner.is_empty() { AllOwned::Here(read.value) } else { AllOwned::NotHere(not_owner) }))
    }

    /// The ownership of that version; `None` when another one is in force by now.
    async fn as_of(&self, pool: &PgPool, version: i64) -> Result<Option<Arc<Ownership>>, StoreError> {
        let known = self.lock().clone().filter(|known| known.ownership_version == version);
        if let Some(known) = known {
            return Ok(Some(known.value));
        }
        let Versioned { ownership_version, value } = account_list::ownership(pool).await?;
        let value = Arc::new(value);
        *self.lock() = Some(Versioned { ownership_version, value: Arc::clone(&value) });
        Ok((ownership_version == version).then_some(value))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
