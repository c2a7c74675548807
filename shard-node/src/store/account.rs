//! `account`: one row for each account. The row is the fold of the account's journal.

use ledger::{Account, AccountId, AccountStatus, AssetCode, Limit, Metadata, Position, accounts::Change};
use sqlx::postgres::PgRow;

use super::{
    StoreError,
    columns::columns,
    row_array::{RowArray, RowType},
    session::{Session, check_rows, column},
    slot_column,
};

const SELECT_MANY: &str = concat!(
    "SELECT ",
    columns!(a: account),
    " FROM unnest($1::text[]) AS wanted(id) JOIN shardledger.account a ON a.id = wanted.id"
);

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

const UPDATE_ATTRIBUTES: &str = "UPDATE shardledger.account AS a \
     SET status = u.status, overdraft = u.overdraft, max_balance = u.max_balance, metadata = u.metadata, \
       posted = u.posted, held = u.held \
     FROM unnest($1::text[], $2::int2[], $3::int8[], $4::int8[], $5::text[], $6::int8[], $7::int8[]) \
       AS u(id, status, overdraft, max_balance, metadata, posted, held) \
     WHERE a.id = u.id";

/// The rows of accounts that the batch opened.
pub fn opened_rows<'a>(row_type: RowType, opened: impl Iterator<Item = &'a Account>) -> RowArray {
    let mut rows = RowArray::new(row_type, 13, 16, 200);
    for account in opened {
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
    rows
}

/// New balances of existing accounts, one vector for each column, as the batch's statement takes them.
#[derive(Debug, Default)]
pub struct BalanceUpdates<'a> {
    pub ids: Vec<&'a str>,
    /// The version that the batch was decided on. The row must still have it.
    pub loaded_versions: Vec<i64>,
    pub posted: Vec<i64>,
    pub held: Vec<i64>,
    pub versions: Vec<i64>,
    pub heads: Vec<i64>,
    pub updated_at_us: Vec<i64>,
}

impl<'a> BalanceUpdates<'a> {
    pub fn of(changed: &[(&'a Account, Change)]) -> Self {
        let all = |field: fn(&Account) -> i64| changed.iter().map(|(account, _)| field(account)).collect();
        Self {
            ids: changed.iter().map(|(account, _)| account.id.as_str()).collect(),
            loaded_versions: changed.iter().map(|(_, change)| change.loaded_version).collect(),
            posted: all(|a| a.posted),
            held: all(|a| a.held),
            versions: all(|a| a.version),
            heads: all(|a| a.head.0),
            updated_at_us: all(|a| a.updated_at_us),
        }
    }
}

/// Writes status, limits and metadata of accounts that were updated, together with their balances. A constraint
/// compares the available amount with the new overdraft, and the batch may have credited the account before it
/// lowered the overdraft.
pub async fn update_attributes(session: &mut Session, accounts: &[&Account]) -> Result<(), StoreError> {
    let ids: Vec<&str> = accounts.iter().map(|a| a.id.as_str()).collect();
    let status: Vec<i16> = accounts.iter().map(|a| a.status.code().into()).collect();
    let overdraft: Vec<Option<i64>> = accounts.iter().map(|a| a.overdraft.to_nullable()).collect();
    let max_balance: Vec<Option<i64>> = accounts.iter().map(|a| a.max_balance.to_nullable()).collect();
    let metadata: Vec<&str> = accounts.iter().map(|a| a.metadata.as_str()).collect();
    let posted: Vec<i64> = accounts.iter().map(|a| a.posted).collect();
    let held: Vec<i64> = accounts.iter().map(|a| a.held).collect();
    let touched = session
        .run(async |c| {
            let done = sqlx::query(UPDATE_ATTRIBUTES)
                .bind(ids)
                .bind(status)
                .bind(overdraft)
                .bind(max_balance)
                .bind(metadata)
                .bind(posted)
                .bind(held)
                .execute(c)
                .await?;
            Ok(done.rows_affected())
        })
        .await?;
    check_rows("the update of account attributes", accounts.len() as u64, touched)
}
