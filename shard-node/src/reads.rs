//! What reads answer: an account, a page of its journal, its balance at a time, transfers; many accounts in
//! [`account_list`].
//!
//! An account's journal is a chain backwards from its head. A page in the middle enters the chain at the next waypoint
//! ([`chain`]), so that it takes no longer in a long history than in a short one.

pub mod account_list;

use ledger::{Account, AccountId};
use sqlx::{PgPool, postgres::PgRow};
use wire::convert::state_to_columns;

use crate::{
    rpc::nothing_yet,
    store::{self, StoreError, chain, read, read::Owned, session::column},
};

pub async fn account(pool: &PgPool, id: &AccountId) -> Result<Owned<Option<Account>>, StoreError> {
    Ok(match read::account(pool, id).await? {
        Owned::Here(Some(row)) => Owned::Here(Some(store::account::from_row(&row)?)),
        Owned::Here(None) => Owned::Here(None),
        Owned::NotHere(not_owner) => Owned::NotHere(not_owner),
    })
}

/// Which entries are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub limit: i64,
    pub ascending: bool,
    /// Go on strictly beyond this version; 0: from the end.
    pub after_version: i64,
    /// Half-open window in microseconds.
    pub from_us: i64,
    pub to_us: i64,
}

pub async fn entries(
    pool: &PgPool,
    id: &AccountId,
    page: Page,
) -> Result<Owned<Option<wire::EntryPage>>, StoreError> {
    let account = match account(pool, id).await? {
        Owned::Here(Some(account)) => account,
        Owned::Here(None) => return Ok(Owned::Here(None)),
        Owned::NotHere(not_owner) => return Ok(Owned::NotHere(not_owner)),
    };
    // Versions are gap-free and times never fall with them, so a window in time is a window of versions.
    let mut first = match page.from_us {
        i64::MIN => 1,
        from_us => version_at(pool, &account, from_us.saturating_sub(1)).await?.0 + 1,
    };
    let mut last = match page.to_us {
        i64::MAX => account.version,
        to_us => version_at(pool, &account, to_us.saturating_sub(1)).await?.0,
    };
    if page.after_version > 0 {
        if page.ascending {
            first = first.max(page.after_version.saturating_add(1));
        } else {
            last = last.min(page.after_version - 1);
        }
    }
    let wanted = (last - first + 1).clamp(0, page.limit);
    let has_more = last - first + 1 > page.limit;
    let mut entries = Vec::new();
    if wanted > 0 {
        let (oldest, newest) = if page.ascending { (first, first + wanted - 1) } else { (last - wanted + 1, last) };
        for row in &chain::entries(pool, &account, oldest, newest).await? {
            entries.push(read::entry_from_row(row)?);
        }
        if page.ascending {
            entries.reverse();
        }
    }
    Ok(Owned::Here(Some(wire::EntryPage { entries, has_more, asset: account.asset.to_string() })))
}

/// The newest version at or before a time and its row; (0, None) before the account was opened.
async fn version_at(pool: &PgPool, account: &Account, at_us: i64) -> Result<(i64, Option<PgRow>), StoreError> {
    if at_us < account.created_at_us {
        return Ok((0, None));
    }
    Ok(match chain::entry_at(pool, account, at_us).await? {
        Some(row) => (column(&row, "version")?, Some(row)),
        None => (0, None),
    })
}

pub async fn balance_at(
    pool: &PgPool,
    id: &AccountId,
    at_us: i64,
) -> Result<Owned<Option<wire::BalanceAt>>, StoreError> {
    let account = match account(pool, id).await? {
        Owned::Here(Some(account)) => account,
        Owned::Here(None) => return Ok(Owned::Here(None)),
        Owned::NotHere(not_owner) => return Ok(Owned::NotHere(not_owner)),
    };
    let asset = account.asset.to_string();
    let (version, row) = version_at(pool, &account, at_us).await?;
    let balance = match row {
        None => nothing_yet(asset),
        Some(row) => {
            let entry = read::entry_from_row(&row)?;
            wire::BalanceAt { asset, version, posted: entry.posted, held: entry.held, overdraft: entry.overdraft }
        }
    };
    Ok(Owned::Here(Some(balance)))
}

/// Transfers and registers of one id. An empty `debit` asks for all; a `debit` whose slot is not owned here is refused.
pub async fn transfers(pool: &PgPool, id: uuid::Uuid, debit: &str) -> Result<wire::GetTransfersResponse, StoreError> {
    let mut found = wire::GetTransfersResponse::default();
    for row in &read::transfers(pool, id, debit).await? {
        let mut record = transfer_record(row)?;
        if record.reversed > 0 {
            let reversals = read::reversals(pool, id, &record.debit).await?;
            record.reversals =
                reversals.into_iter().map(|id| wire::convert::id_to_wire(ledger::TransferId(id))).collect();
        }
        found.transfers.push(record);
    }
    for row in &read::registers(pool, id, debit).await? {
        let (key, stored) = store::register::from_row(row)?;
        let (credited, refusal, side) = wire::convert::verdict_to_wire(stored.verdict);
        found.registers.push(wire::RegisterRecord {
            id: wire::convert::id_to_wire(key.id),
            debit: key.debit.to_string(),
            credit: stored.credit.to_string(),
            credited,
            refusal,
            side,
            decided_at_us: stored.decided_at_us,
        });
    }
    if found.transfers.is_empty() {
        found.not_owner = not_owner_of(pool, debit).await?;
    }
    Ok(found)
}

/// Holds of one id. An empty `debit` asks for all; a `debit` whose slot is not owned here is refused.
pub async fn holds(pool: &PgPool, id: uuid::Uuid, debit: &str) -> Result<wire::GetHoldsResponse, StoreError> {
    let mut found = wire::GetHoldsResponse::default();
    for row in &read::holds(pool, id, debit).await? {
        let (key, hold) = store::hold::from_row(row)?;
        found.holds.push(wire::convert::hold_to_wire(&key, &hold));
    }
    if found.holds.is_empty() {
        found.not_owner = not_owner_of(pool, debit).await?;
    }
    Ok(found)
}

/// Whether the slot of an account belongs to somebody else. Nothing was found then, and nothing is thereby said.
async fn not_owner_of(pool: &PgPool, account: &str) -> Result<Option<wire::NotOwner>, StoreError> {
    let Ok(account) = AccountId::client(account) else { return Ok(None) };
    match read::account(pool, &account).await? {
        Owned::NotHere(not_owner) => Ok(Some(not_owner.into())),
        Owned::Here(_) => Ok(None),
    }
}

/// One row of `transfer` with the debit account's entry beside it.
pub fn transfer_record(row: &PgRow) -> Result<wire::TransferRecord, StoreError> {
    let (key, stored) = store::transfer::from_row(row)?;
    let (status, refusal, side, finished_at_us) = state_to_columns(stored.state);
    let (refusal, side) = stored.presumed.map_or((refusal, side), wire::convert::refused_to_wire);
    let attempts: i32 = column(row, "attempts")?;
    let next_attempt: Option<i64> = column(row, "next_attempt_us")?;
    Ok(wire::TransferRecord {
        id: wire::convert::id_to_wire(key.id),
        debit: key.debit.to_string(),
        credit: stored.credit.to_string(),
        asset: stored.asset.to_string(),
        amount: stored.amount,
        metadata: stored.metadata.as_str().to_owned(),
        cross_shard: stored.cross_shard,
        status,
        refusal,
        side,
        debit_after: stored.debit_after.map(Into::into),
        created_at_us: stored.created_at_us,
        finished_at_us,
        attempts: u32::try_from(attempts).unwrap_or(0),
        next_attempt_us: next_attempt.unwrap_or(0),
        purpose: wire::convert::purpose_to_wire(stored.purpose),
        reversed: column(row, "reversed")?,
        reversals: Vec::new(),
    })
}
