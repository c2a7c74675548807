//! `journal`, read along an account's chain: from a waypoint or from the account's head, backwards.
//!
//! A walk reads at most [`EntryKind::WAYPOINT_INTERVAL`] entries more than requested, however long the history is.
//! One statement finds the waypoint and walks the chain, so that the caller waits for the database once.

use ledger::{
    Account, AccountId,
    journal::{EntryKind, detail},
    operation::CreateAccount,
};
use sqlx::{PgPool, postgres::PgRow};

use super::{
    StoreError,
    columns::columns,
    session::{Session, column},
};

// Waypoints above the version of the account as read belong to later entries.
const BY_VERSION: &str = concat!(
    "WITH RECURSIVE walk AS ( \
       SELECT ",
    columns!(j: entry),
    ", 1 AS step FROM shardledger.journal j WHERE j.position = coalesce( \
         (SELECT w.position FROM shardledger.waypoint w WHERE w.account = $1 AND w.version >= $4 AND w.version <= $2 \
          ORDER BY w.version LIMIT 1), $3) \
       UNION ALL \
       SELECT ",
    columns!(j: entry),
    ", walk.step + 1 FROM walk JOIN shardledger.journal j ON j.position = walk.previous \
       WHERE walk.version > $5 AND walk.step < $6) \
     SELECT position, version, kind, amount, posted, held, overdraft, transfer_id, counterparty, created_at_us \
     FROM walk WHERE version <= $4 ORDER BY version DESC"
);

/// The entries of the versions `first` to `last`, newest first.
pub async fn entries(pool: &PgPool, account: &Account, first: i64, last: i64) -> Result<Vec<PgRow>, StoreError> {
    Ok(sqlx::query(BY_VERSION)
        .bind(account.id.as_str())
        .bind(account.version)
        .bind(account.head.0)
        .bind(last)
        .bind(first)
        .bind(steps(last - first + 1))
        .fetch_all(pool)
        .await?)
}

const BY_TIME: &str = concat!(
    "WITH RECURSIVE walk AS ( \
       SELECT ",
    columns!(j: entry),
    ", 1 AS step FROM shardledger.journal j WHERE j.position = coalesce( \
         (SELECT w.position FROM shardledger.waypoint w WHERE w.account = $1 AND w.created_at_us > $4 AND w.version <= $2 \
          ORDER BY w.created_at_us, w.version LIMIT 1), $3) \
       UNION ALL \
       SELECT ",
    columns!(j: entry),
    ", walk.step + 1 FROM walk JOIN shardledger.journal j ON j.position = walk.previous \
       WHERE walk.created_at_us > $4 AND walk.step < $5) \
     SELECT position, version, kind, amount, posted, held, overdraft, transfer_id, counterparty, created_at_us \
     FROM walk WHERE created_at_us <= $4 ORDER BY version DESC LIMIT 1"
);

/// The newest entry at or before a time. Times never decrease along a chain, so the first waypoint after the time is
/// near.
pub async fn entry_at(pool: &PgPool, account: &Account, at_us: i64) -> Result<Option<PgRow>, StoreError> {
    Ok(sqlx::query(BY_TIME)
        .bind(account.id.as_str())
        .bind(account.version)
        .bind(account.head.0)
        .bind(at_us)
        .bind(steps(1))
        .fetch_optional(pool)
        .await?)
}

// The lowest waypoint is at version 64. An account without a waypoint has fewer than 64 entries.
const OPENINGS: &str = "WITH RECURSIVE walk AS ( \
       SELECT wanted.account, j.previous, j.version, j.detail, 1 AS step \
       FROM unnest($1::text[], $2::int8[]) AS wanted(account, head) \
       CROSS JOIN LATERAL (SELECT coalesce( \
         (SELECT w.position FROM shardledger.waypoint w WHERE w.account = wanted.account ORDER BY w.version LIMIT 1), wanted.head) \
         AS position) AS entrance \
       JOIN shardledger.journal j ON j.position = entrance.position \
       UNION ALL \
       SELECT walk.account, j.previous, j.version, j.detail, walk.step + 1 \
       FROM walk JOIN shardledger.journal j ON j.position = walk.previous WHERE walk.version > 1 AND walk.step < $3) \
     SELECT account, detail FROM walk WHERE version = 1";

/// Chains for each statement. Each chain may be dozens of blocks from disk, and a statement must end well before its
/// deadline.
const OPENINGS_AT_ONCE: usize = 256;

/// Loads the opening parameters of accounts from their first entries.
pub async fn openings(session: &mut Session, accounts: &[&Account]) -> Result<Vec<CreateAccount>, StoreError> {
    let mut openings = Vec::with_capacity(accounts.len());
    for accounts in accounts.chunks(OPENINGS_AT_ONCE) {
        let ids: Vec<&str> = accounts.iter().map(|account| account.id.as_str()).collect();
        let heads: Vec<i64> = accounts.iter().map(|account| account.head.0).collect();
        let bound = steps(0);
        let rows =
            session.run(async |c| sqlx::query(OPENINGS).bind(ids).bind(heads).bind(bound).fetch_all(c).await).await?;
        for row in &rows {
            openings.push(opening_from_row(row)?);
        }
    }
    Ok(openings)
}

fn opening_from_row(row: &PgRow) -> Result<CreateAccount, StoreError> {
    let id: &str = column(row, "account")?;
    let corrupt = |what: String| StoreError::Corrupt(format!("account {id}: {what}"));
    let account = AccountId::any(id).map_err(|error| corrupt(error.to_string()))?;
    let written: Option<&str> = column(row, "detail")?;
    detail::read_opening(&account, written.unwrap_or_default()).map_err(|error| corrupt(error.to_string()))
}

/// The most that a walk to `wanted` entries can take.
fn steps(wanted: i64) -> i32 {
    i32::try_from(wanted.saturating_add(EntryKind::WAYPOINT_INTERVAL)).unwrap_or(i32::MAX)
}
