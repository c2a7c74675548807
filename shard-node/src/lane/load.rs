//! Reads what a batch depends on before the batch is decided: accounts, which stay in memory, and rows that only this
//! batch needs. Most batches read nothing.

use std::collections::HashMap;

use ledger::{
    AccountId, HoldKey, TransferKey,
    accounts::Accounts,
    batch::{Named, Openings, Prior, Stored},
    operation::{CreateAccount, Operation},
};

use crate::{
    metric_definitions as m,
    store::{StoreError, account, chain, hold, register, session::Session, transfer},
};

/// Loads every account that the operations depend on into memory.
pub async fn accounts(
    session: &mut Session,
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
    if missing.is_empty() {
        return Ok(());
    }
    missing.sort_unstable();
    missing.dedup();
    let found = account::load(session, &missing).await?;
    for id in missing {
        accounts.learn(id, None);
    }
    for account in found {
        accounts.learn(account.id.clone(), Some(account));
    }
    Ok(())
}

/// Loads the rows other than accounts that operations name. Most batches name none.
pub async fn named(session: &mut Session, operations: impl Iterator<Item = &Operation>) -> Result<Named, StoreError> {
    let (mut holds, mut originals, mut closing): (Vec<HoldKey>, Vec<TransferKey>, Vec<AccountId>) =
        Default::default();
    for operation in operations {
        holds.extend(operation.hold());
        originals.extend(operation.original());
        closing.extend(operation.closes().cloned());
    }
    let mut named = Named::default();
    if !holds.is_empty() {
        named.holds.extend(hold::load(session, &holds).await?);
    }
    if !originals.is_empty() {
        named.originals.extend(transfer::load_originals(session, &originals).await?);
    }
    if !closing.is_empty() {
        named.in_flight.extend(transfer::accounts_with_pending(session, &closing).await?);
    }
    Ok(named)
}

/// Loads the opening parameters of accounts that are created again. `accounts` holds all accounts that the operations
/// depend on.
pub async fn openings(
    session: &mut Session,
    accounts: &Accounts,
    operations: impl Iterator<Item = &Operation>,
) -> Result<HashMap<AccountId, CreateAccount>, StoreError> {
    let Openings { known: mut openings, to_load } = Openings::of(accounts, operations);
    if !to_load.is_empty() {
        let loaded = chain::openings(session, &to_load).await?;
        openings.extend(loaded.into_iter().map(|opening| (opening.id.clone(), opening)));
    }
    Ok(openings)
}

/// Loads what the database holds under the operations' ids.
pub async fn prior(session: &mut Session, operations: impl Iterator<Item = &Operation>) -> Result<Prior, StoreError> {
    let mut transfers: Vec<TransferKey> = Vec::new();
    let mut registers: Vec<TransferKey> = Vec::new();
    for operation in operations {
        let operation = match operation {
            Operation::DryRun(operation) => operation,
            operation => operation,
        };
        match operation {
            Operation::Transfer(transfer) => transfers.push(transfer.key()),
            Operation::AtomicTransfers(items) => transfers.extend(items.iter().map(|t| t.key())),
            Operation::Settle(settle) => transfers.push(settle.key()),
            Operation::Decide(decide) => registers.push(decide.key()),
            // Holds are always loaded; a dry run cannot contain another dry run.
            Operation::CreateAccount(_)
            | Operation::UpdateAccount(_)
            | Operation::PlaceHold(_)
            | Operation::ReleaseHold(_)
            | Operation::ExpireHold(_)
            | Operation::DryRun(_) => {}
        }
    }
    let mut stored = Stored::default();
    if !transfers.is_empty() {
        stored.transfers.extend(transfer::load(session, &transfers).await?);
    }
    if !registers.is_empty() {
        stored.registers.extend(register::load(session, &registers).await?);
    }
    Ok(Prior::Loaded(stored))
}
