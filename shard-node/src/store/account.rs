//! `account`: the rows of accounts, which the fold keeps close behind the journal.

use ledger::{Account, AccountId};
use shard_database::{account::account_from_row, account_columns, journal::slot_column};
use sqlx::PgConnection;

use super::{FoldedAccount, StoreError, session::Session};

const SELECT_MANY: &str = concat!(
    "SELECT ",
    account_columns!(),
    " FROM unnest($1::text[]) AS wanted(id) JOIN shardledger.account a ON a.id = wanted.id"
);

/// The accounts among `ids` that exist.
pub async fn load(session: &mut Session, ids: &[AccountId]) -> Result<Vec<Account>, StoreError> {
    let ids: Vec<&str> = ids.iter().map(AccountId::as_str).collect();
    let rows = session.run(async |c| sqlx::query(SELECT_MANY).bind(ids).fetch_all(c).await).await?;
    rows.iter().map(|row| account_from_row(row).map_err(StoreError::from)).collect()
}

/// The accounts among `ids` that exist, outside the lane.
pub async fn load_from(connection: &mut PgConnection, ids: &[&str]) -> Result<Vec<Account>, StoreError> {
    let rows = sqlx::query(SELECT_MANY).bind(ids).fetch_all(connection).await?;
    rows.iter().map(|row| account_from_row(row).map_err(StoreError::from)).collect()
}

/// Which rows a fold may replace. A row at the base of the account's unfolded bookings, or a later state that the journal
/// has: a fold that was interrupted, or another node, has written it. In-transit accounts have no legs that could be compared.
macro_rules! leads_to_the_new_state {
    () => {
        "a.id = u.id AND a.version < u.version AND ( \
           (a.version = u.base_version AND a.head = u.base_head) \
           OR (a.version > u.base_version AND (a.slot < 0 OR EXISTS ( \
             SELECT FROM shardledger.journal j WHERE j.position = a.head \
               AND ((j.payer = a.id AND j.payer_version = a.version AND j.payer_posted = a.posted AND j.payer_held = a.held) \
                 OR (j.payee = a.id AND j.payee_version = a.version AND j.payee_posted = a.posted AND j.payee_held = a.held))))))"
    };
}

// Only an UPDATE, never an INSERT: the row of an account that moved away must not come back. The version guard makes a
// repeated or late fold harmless.
const FOLD: &str = concat!(
    "UPDATE shardledger.account AS a \
     SET posted = u.posted, held = u.held, version = u.version, head = u.head, updated_at_us = u.updated_at_us, \
       status = u.status, overdraft = u.overdraft, max_balance = u.max_balance, metadata = u.metadata \
     FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::int2[], \
         $10::int8[], $11::int8[], $12::text[]) \
       AS u(id, posted, held, version, head, updated_at_us, base_version, base_head, status, overdraft, max_balance, metadata) \
     WHERE ",
    leads_to_the_new_state!(),
    " AND (SELECT s.incarnation FROM shardledger.shard_state s) = $13"
);
const FOLD_BALANCES: &str = concat!(
    "UPDATE shardledger.account AS a \
     SET posted = u.posted, held = u.held, version = u.version, head = u.head, updated_at_us = u.updated_at_us \
     FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[], $8::int8[]) \
       AS u(id, posted, held, version, head, updated_at_us, base_version, base_head) \
     WHERE ",
    leads_to_the_new_state!(),
    " AND (SELECT s.incarnation FROM shardledger.shard_state s) = $9"
);
// The row of an account whose slot has moved away may be gone.
const BEHIND: &str = "SELECT u.id FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int4[]) AS u(id, version, head, slot) \
     LEFT JOIN shardledger.account a ON a.id = u.id \
     WHERE (a.version IS NULL AND (u.slot < 0 OR EXISTS ( \
         SELECT FROM shardledger.slot_ownership o WHERE o.slot = u.slot AND o.state = 1))) OR a.version < u.version OR (a.version = u.version AND a.head <> u.head) LIMIT 1";
const INCARNATION: &str = "SELECT incarnation FROM shardledger.shard_state";

/// Writes newer states over older rows, in one statement.
///
/// # Errors
/// [`StoreError::Fenced`] when the database was accepted anew. [`StoreError::Corrupt`] when a row is missing, or does not
/// lead to the state that is to replace it.
pub async fn fold(session: &mut Session, incarnation: i64, accounts: &[&FoldedAccount]) -> Result<(), StoreError> {
    // Most folds change balances alone, and the attributes of an account are larger than its balances.
    let with_attributes = accounts.iter().any(|a| a.attributes_changed);
    let all = |field: fn(&FoldedAccount) -> i64| accounts.iter().map(|a| field(a)).collect::<Vec<i64>>();
    let ids: Vec<&str> = accounts.iter().map(|a| a.account.id.as_str()).collect();
    let slots: Vec<i32> = accounts.iter().map(|a| slot_column(&a.account.id).into()).collect();
    let versions = all(|a| a.account.version);
    let heads = all(|a| a.account.head.0);
    let statement = if with_attributes { FOLD } else { FOLD_BALANCES };
    let mut query = sqlx::query(statement)
        .bind(&ids)
        .bind(all(|a| a.account.posted))
        .bind(all(|a| a.account.held))
        .bind(&versions)
        .bind(&heads)
        .bind(all(|a| a.account.updated_at_us))
        .bind(all(|a| a.base_version))
        .bind(all(|a| a.base_head.0));
    if with_attributes {
        query = query
            .bind(accounts.iter().map(|a| i16::from(a.account.status.code())).collect::<Vec<_>>())
            .bind(accounts.iter().map(|a| a.account.overdraft.to_nullable()).collect::<Vec<_>>())
            .bind(accounts.iter().map(|a| a.account.max_balance.to_nullable()).collect::<Vec<_>>())
            .bind(accounts.iter().map(|a| a.account.metadata.as_str()).collect::<Vec<_>>());
    }
    let query = query.bind(incarnation);
    let touched = session.run(async |c| Ok(query.execute(c).await?.rows_affected())).await?;
    if touched == accounts.len() as u64 {
        return Ok(());
    }
    // Rows that another node of the shard has folded further are not touched. Any other row is a fault.
    let now: i64 = session.run(async |c| sqlx::query_scalar(INCARNATION).fetch_one(c).await).await?;
    if now != incarnation {
        return Err(StoreError::Fenced);
    }
    let behind: Option<String> = session
        .run(async |c| {
            let query = sqlx::query_scalar(BEHIND).bind(&ids).bind(&versions).bind(&heads).bind(&slots);
            query.fetch_optional(c).await
        })
        .await?;
    match behind {
        None => Ok(()),
        Some(id) => Err(StoreError::Corrupt(format!(
            "INV-9: the row of account {id} does not lead to the account's newest bookings"
        ))),
    }
}
