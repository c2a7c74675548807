//! Reads over many accounts: pages of them, and their sums.
//!
//! The router says which slots it means. They are answered for as of one snapshot, or those that are not owned here are
//! named: an answer without an account that has just moved would look like any other.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ledger::{Account, AccountPrefix, outcome::NotOwner};
use shard_map::{Slot, SlotRange};
use sqlx::PgPool;

use super::{ATTEMPTS, Reads};
use crate::store::{
    StoreError,
    account_list::{self, Meant, SumSlice, Versioned},
    ownership::{Ownership, as_multirange},
    statement::{self, LegAt},
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
    Ok(match read_page(reads, known, selection, after, limit).await? {
        AllOwned::Here(Page { accounts, has_more }) => AllOwned::Here(wire::ListAccountsResponse {
            accounts: accounts.iter().map(Into::into).collect(),
            has_more,
            ..Default::default()
        }),
        AllOwned::NotHere(not_owner) => AllOwned::NotHere(not_owner),
    })
}

/// What the first `limit` accounts after the id `after` held at a time, in microseconds since the epoch; those that were opened later are left
/// out. The row of an account that has not changed since is its state then. The chains of the others are walked, in one statement.
///
/// # Errors
/// When the database cannot be read.
pub async fn page_at(
    reads: &Reads,
    known: &KnownOwnership,
    selection: &Selection,
    after: &str,
    limit: i64,
    at_us: i64,
) -> Result<AllOwned<wire::ListAccountsResponse>, StoreError> {
    for _ in 0..ATTEMPTS {
        let (generation, _) = reads.tail.generation();
        let Page { accounts, has_more } = match read_page(reads, known, selection, after, limit).await? {
            AllOwned::Here(page) => page,
            AllOwned::NotHere(not_owner) => return Ok(AllOwned::NotHere(not_owner)),
        };
        let changed: Vec<&Account> = accounts
            .iter()
            .filter(|account| account.created_at_us <= at_us && account.updated_at_us > at_us)
            .collect();
        let (entrances, generation_after) =
            reads.tail.waypoints_after(changed.iter().map(|account| &account.id), at_us);
        if generation_after != generation {
            continue;
        }
        let legs = match changed.is_empty() {
            true => HashMap::default(),
            false => statement::legs_at(reads.from.pool()?, &changed, &entrances, at_us).await?,
        };
        // The bookings of an account that has moved away may be deleted during the walk; the next page says so.
        if legs.len() < changed.len() {
            continue;
        }
        let at = accounts.iter().filter(|account| account.created_at_us <= at_us);
        let at = at.map(|account| account_at(account, legs.get(&account.id))).collect();
        let last = accounts.last().map(|account| account.id.to_string()).unwrap_or_default();
        return Ok(AllOwned::Here(wire::ListAccountsResponse { at, has_more, last, ..Default::default() }));
    }
    Err(StoreError::Fenced)
}

fn account_at(account: &Account, earlier: Option<&LegAt>) -> wire::AccountAt {
    let leg = earlier.copied().unwrap_or(LegAt {
        version: account.version,
        posted: account.posted,
        held: account.held,
        overdraft: account.overdraft,
        at_us: account.updated_at_us,
    });
    wire::AccountAt {
        id: account.id.to_string(),
        asset: account.asset.to_string(),
        posted: leg.posted,
        held: leg.held,
        overdraft: Some(leg.overdraft.into()),
        version: leg.version,
        created_at_us: account.created_at_us,
        updated_at_us: leg.at_us,
    }
}

/// Accounts in id order, as new as the journal.
struct Page {
    accounts: Vec<Account>,
    has_more: bool,
}

async fn read_page(
    reads: &Reads,
    known: &KnownOwnership,
    selection: &Selection,
    after: &str,
    limit: i64,
) -> Result<AllOwned<Page>, StoreError> {
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
        accounts.truncate(limit);
        return Ok(AllOwned::Here(Page { accounts, has_more }));
    }
    Err(StoreError::Fenced)
}

/// What the accounts hold together, by asset.
///
/// # Errors
/// When the database cannot be read within `timeout`.
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

/// What the first `limit` accounts after the id `after` held together at a time, in microseconds since the epoch. What an account held then does
/// not change, so the slices of one sum need no common snapshot. Each is checked for the ownership of all slots that are meant.
///
/// # Errors
/// When the database cannot be read within `timeout`.
pub async fn sums_at(
    pool: &PgPool,
    known: &KnownOwnership,
    selection: &Selection,
    at_us: i64,
    after: &str,
    limit: i64,
    timeout: Duration,
) -> Result<AllOwned<SumSlice>, StoreError> {
    let slots = as_multirange(&selection.slots);
    let meant = Meant { prefix: &selection.prefix, slots: &slots };
    for _ in 0..ATTEMPTS {
        let read = account_list::sums_at(pool, meant, at_us, after, limit, timeout).await?;
        if let Some(slice) = known.checked(pool, &selection.slots, read).await? {
            return Ok(slice);
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

    /// Those of these slots that the shard does not own. What is read after this call is as new as the call, unless a slot is named.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn refusals(
        &self,
        reads: &Reads,
        slots: impl IntoIterator<Item = Slot>,
    ) -> Result<Vec<NotOwner>, StoreError> {
        let pool = reads.from.pool()?;
        for _ in 0..ATTEMPTS {
            let version = account_list::ownership_version(pool).await?;
            if let Some(ownership) = self.as_of(pool, version).await? {
                return Ok(slots.into_iter().filter_map(|slot| ownership.check(slot).err()).collect());
            }
        }
        Err(StoreError::Fenced)
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
