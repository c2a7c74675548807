//! `account`: one row an account, the fold of its journal.

use ledger::{Account, AccountId, AccountStatus, AssetCode, Limit, Metadata, Position, accounts::Change};
use sqlx::postgres::PgRow;

use super::{
    StoreError,
    row_array::RowArray,
    session::{Session, check_rows, column},
    slot_column,
};

const SELECT_MANY: &str = "SELECT a.id, a.asset, a.status, a.posted, a.held, a.overdraft, a.max_balance, a.version, a.head, \
     a.metadata, a.created_at_us, a.updated_at_us \
     FROM unnest($1::text[]) AS wanted(id) JOIN account a ON a.id = wanted.id";

/// The accounts among `ids` that exist.
pub async fn load(session: &mut Session, ids: &[AccountId]) -> Result<Vec<Account>, StoreError> {
    let ids: Vec<&str> = ids.iter().map(AccountId::as_str).collect();
    let rows = session.run(async |c| sqlx::query(SELECT_MANY).bind(ids).fetch_all(c).await).await?;
    rows.iter().map(from_row).collect()
}

pub fn from_row(row: &PgRow) -> Result<Account, StoreError> {
    let id: &str = column(row, "id")?;
    let asset: &str = column(row, "asset")?;
    let status: i16 = column(row, "status")?;
    let corrupt = |what: &str| StoreError::Corrupt(format!("account {id}: {what}"));
    Ok(Account {
        id: AccountId::any(id).map_err(|e| corrupt(&e.to_string()))?,
        asset: AssetCode::new(asset).map_err(|e| corrupt(&e.to_string()))?,
        status: u8::try_from(status)
            .ok()
            .and_then(AccountStatus::from_code)
            .ok_or_else(|| corrupt(&format!("status {status}")))?,
        posted: column(row, "posted")?,
        held: column(row, "held")?,
        overdraft: Limit::from_nullable(column(row, "overdraft")?),
        max_balance: Limit::from_nullable(column(row, "max_balance")?),
        version: column(row, "version")?,
        head: Position(column(row, "head")?),
        metadata: Metadata::from_canonical(column(row, "metadata")?),
        created_at_us: column(row, "created_at_us")?,
        updated_at_us: column(row, "updated_at_us")?,
    })
}

const INSERT: &str = "INSERT INTO account SELECT * FROM unnest($1::account[])";

const UPDATE_BALANCES: &str = "UPDATE account AS a \
     SET posted = u.posted, held = u.held, version = u.version, head = u.head, updated_at_us = u.updated_at_us \
     FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[]) \
       AS u(id, loaded_version, posted, held, version, head, updated_at_us) \
     WHERE a.id = u.id AND a.version = u.loaded_version";

const UPDATE_ATTRIBUTES: &str = "UPDATE account AS a \
     SET status = u.status, overdraft = u.overdraft, max_balance = u.max_balance, metadata = u.metadata \
     FROM unnest($1::text[], $2::int2[], $3::int8[], $4::int8[], $5::text[]) \
       AS u(id, status, overdraft, max_balance, metadata) \
     WHERE a.id = u.id";

/// Writes what a batch did to accounts. Each must still have the version it was decided on.
pub async fn write<'a>(
    session: &mut Session,
    changes: impl Iterator<Item = (&'a Account, Change)>,
) -> Result<(), StoreError> {
    let (opened, changed): (Vec<_>, Vec<_>) = changes.partition(|(_, change)| change.loaded_version == 0);
    if !opened.is_empty() {
        insert(session, opened.iter().map(|(account, _)| *account)).await?;
    }
    let attributes: Vec<&Account> =
        changed.iter().filter(|(_, change)| change.attributes).map(|(account, _)| *account).collect();
    // Attributes first: a balance may only be within the new overdraft.
    if !attributes.is_empty() {
        update_attributes(session, &attributes).await?;
    }
    if !changed.is_empty() {
        update_balances(session, &changed).await?;
    }
    Ok(())
}

async fn insert<'a>(session: &mut Session, accounts: impl Iterator<Item = &'a Account>) -> Result<(), StoreError> {
    let mut rows = RowArray::new(session.row_types().account, 13, 16, 200);
    for account in accounts {
        rows.row()
            .text(account.id.as_str())
            .int4(slot_column(&account.id))
            .text(account.asset.as_str())
            .int2(account.status.code().into())
            .int8(account.posted)
            .int8(account.held)
            .optional_int8(account.overdraft.to_nullable())
            .optional_int8(account.max_balance.to_nullable())
            .int8(account.version)
            .int8(account.head.0)
            .text(account.metadata.as_str())
            .int8(account.created_at_us)
            .int8(account.updated_at_us);
    }
    session.insert(INSERT, rows).await
}

async fn update_balances(session: &mut Session, changed: &[(&Account, Change)]) -> Result<(), StoreError> {
    fn all<T>(changed: &[(&Account, Change)], field: impl Fn(&Account) -> T) -> Vec<T> {
        changed.iter().map(|(account, _)| field(account)).collect()
    }
    let ids: Vec<&str> = changed.iter().map(|(account, _)| account.id.as_str()).collect();
    let loaded: Vec<i64> = changed.iter().map(|(_, change)| change.loaded_version).collect();
    let touched = session
        .run(async |c| {
            let done = sqlx::query(UPDATE_BALANCES)
                .bind(ids)
                .bind(loaded)
                .bind(all(changed, |a| a.posted))
                .bind(all(changed, |a| a.held))
                .bind(all(changed, |a| a.version))
                .bind(all(changed, |a| a.head.0))
                .bind(all(changed, |a| a.updated_at_us))
                .execute(c)
                .await?;
            Ok(done.rows_affected())
        })
        .await?;
    check_rows("the update of account balances", changed.len() as u64, touched)
}

async fn update_attributes(session: &mut Session, accounts: &[&Account]) -> Result<(), StoreError> {
    let ids: Vec<&str> = accounts.iter().map(|a| a.id.as_str()).collect();
    let status: Vec<i16> = accounts.iter().map(|a| a.status.code().into()).collect();
    let overdraft: Vec<Option<i64>> = accounts.iter().map(|a| a.overdraft.to_nullable()).collect();
    let max_balance: Vec<Option<i64>> = accounts.iter().map(|a| a.max_balance.to_nullable()).collect();
    let metadata: Vec<&str> = accounts.iter().map(|a| a.metadata.as_str()).collect();
    let touched = session
        .run(async |c| {
            let done = sqlx::query(UPDATE_ATTRIBUTES)
                .bind(ids)
                .bind(status)
                .bind(overdraft)
                .bind(max_balance)
                .bind(metadata)
                .execute(c)
                .await?;
            Ok(done.rows_affected())
        })
        .await?;
    check_rows("the update of account attributes", accounts.len() as u64, touched)
}
