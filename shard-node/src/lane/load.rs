//! Load: what a batch depends on is read before the batch is decided. Accounts stay in memory; other rows are of use to
//! this batch only. Most batches read nothing.

use ledger::{
    AccountId, HoldKey, TransferKey,
    accounts::Accounts,
    batch::{Named, Openings, Stored},
    booking::Role,
    operation::Operation,
};

use crate::{
    metric_definitions as m,
    store::{Store, StoreError},
    tail::Tail,
};

/// Loads every account that the operations depend on into memory.
pub async fn accounts(
    store: &impl Store,
    accounts: &mut Accounts,
    operations: impl Iterator<Item = &Operation>,
) -> Result<(), StoreError> {
    let mut missing: Vec<AccountId> = Vec::new();
    let mut seen = 0_u64;
    for operation in operations {
        operation.for_each_account(|id| {
            seen += 1;
            if !accounts.is_known(id) {
                missing.push(id.clone());
            }
        });
        if let Some(asset) = operation.in_transit_asset() {
            let id = accounts.in_transit_id(asset);
            if !accounts.is_known(&id) {
                missing.push(id);
            }
        }
    }
    metrics::counter!(m::LANE_CACHE_LOOKUPS, "result" => "miss").increment(missing.len() as u64);
    metrics::counter!(m::LANE_CACHE_LOOKUPS, "result" => "hit").increment(seen.saturating_sub(missing.len() as u64));
    learn(store, accounts, missing).await
}

/// Loads accounts that are not in memory.
pub async fn learn(
    store: &impl Store,
    accounts: &mut Accounts,
    mut missing: Vec<AccountId>,
) -> Result<(), StoreError> {
    if missing.is_empty() {
        return Ok(());
    }
    missing.sort_unstable();
    missing.dedup();
    for account in store.accounts(&missing).await? {
        accounts.learn(account.id.clone(), Some(account));
    }
    for id in missing {
        accounts.learn(id, None);
    }
    Ok(())
}

/// Whether a decision about the operations depends on what the journal says, and not on accounts alone. Such a batch is
/// decided when the batch before it is committed.
pub fn reads_journal<'o>(mut operations: impl Iterator<Item = &'o Operation>) -> bool {
    operations.any(|operation| {
        operation.hold().is_some()
            || operation.original().is_some()
            || operation.closes().is_some()
            || matches!(operation, Operation::CreateAccount(_) | Operation::EraseMetadata(_))
    })
}

/// Loads the rows other than accounts that operations name. Most batches name none. All accounts that the operations depend
/// on must be in memory.
pub async fn named(
    store: &impl Store,
    tail: &Tail,
    accounts: &Accounts,
    owns: &impl Fn(&AccountId) -> bool,
    operations: impl Iterator<Item = &Operation> + Clone,
) -> Result<Named, StoreError> {
    let (mut holds, mut originals, mut closing): (Vec<HoldKey>, Vec<TransferKey>, Vec<AccountId>) =
        Default::default();
    let mut settled: Vec<TransferKey> = Vec::new();
    for operation in operations.clone() {
        holds.extend(operation.hold());
        originals.extend(operation.original());
        closing.extend(operation.closes().cloned());
        if let Operation::Settle(settle) = operation {
            settled.push(settle.key());
        }
    }
    // Of slots that have moved away, the journal may have a part only. Their operations are refused anyway.
    holds.retain(|key| owns(&key.debit));
    originals.retain(|key| owns(&key.debit));
    settled.retain(|key| owns(&key.debit));
    let mut named = Named::default();
    if !holds.is_empty() {
        named.holds.extend(store.holds(&holds).await?);
    }
    if !originals.is_empty() {
        named.originals.extend(store.originals(&originals).await?);
    }
    if !closing.is_empty() {
        named.in_flight.extend(tail.accounts_in_flight(&closing));
    }
    if !settled.is_empty() {
        named.sagas = tail.sagas(settled.iter())?;
    }
    named.under_way = tail.under_way(operations.clone());
    let Openings { known, to_load } = Openings::of(accounts, operations);
    named.openings = known;
    if !to_load.is_empty() {
        let loaded = store.openings(&to_load).await?;
        named.openings.extend(loaded.into_iter().map(|opening| (opening.id.clone(), opening)));
    }
    Ok(named)
}

/// Loads what the journal holds under the operations' ids, of slots that the shard owns. For an erasure, also loads the
/// booking of a transfer whose debit account has moved away; this shard then has it because of the credit account.
pub async fn stored(
    store: &impl Store,
    owns: &impl Fn(&AccountId) -> bool,
    operations: impl Iterator<Item = &Operation>,
) -> Result<Stored, StoreError> {
    let mut transfers: Vec<TransferKey> = Vec::new();
    let mut registers: Vec<TransferKey> = Vec::new();
    for operation in operations {
        let is_at_payee = matches!(operation, Operation::EraseMetadata(erase) if owns(&erase.at));
        operation.for_each_key(&mut |role, id, debit| {
            let key = TransferKey { id, debit: debit.clone() };
            match role {
                Role::Register => registers.push(key),
                // A settlement is found with its transfer.
                _ if owns(debit) || is_at_payee => transfers.push(key),
                _ => {}
            }
        });
    }
    store.stored(&transfers, &registers).await
}
