//! `journal`, read along one account's chain: entered at a waypoint or at the account's head, then backwards.
//!
//! A walk enters at most [`EntryKind::WAYPOINT_INTERVAL`] entries beyond what is wanted, however long the history is. Finding
//! the entrance and walking is one statement: there is one wait for the database and not two.

use ledger::{Account, journal::EntryKind};
use sqlx::{PgPool, postgres::PgRow};

use super::StoreError;

// Waypoints beyond the version of the account as it was read are of entries that came since.
const BY_VERSION: &str = "WITH RECURSIVE walk AS ( \
       SELECT j.*, 1 AS step FROM journal j WHERE j.position = coalesce( \
         (SELECT w.position FROM waypoint w WHERE w.account = $1 AND w.version >= $4 AND w.version <= $2 \
          ORDER BY w.version LIMIT 1), $3) \
       UNION ALL \
       SELECT j.*, walk.step + 1 FROM walk JOIN journal j ON j.position = walk.previous \
       WHERE walk.version > $5 AND walk.step < $6) \
     SELECT position, version, kind, amount, posted, held, overdraft, transfer_id, counterparty, created_at_us \
     FROM walk WHERE version <= $4 ORDER BY version DESC";

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

const BY_TIME: &str = "WITH RECURSIVE walk AS ( \
       SELECT j.*, 1 AS step FROM journal j WHERE j.position = coalesce( \
         (SELECT w.position FROM waypoint w WHERE w.account = $1 AND w.created_at_us > $4 AND w.version <= $2 \
          ORDER BY w.created_at_us, w.version LIMIT 1), $3) \
       UNION ALL \
       SELECT j.*, walk.step + 1 FROM walk JOIN journal j ON j.position = walk.previous \
       WHERE walk.created_at_us > $4 AND walk.step < $5) \
     SELECT position, version, kind, amount, posted, held, overdraft, transfer_id, counterparty, created_at_us \
     FROM walk WHERE created_at_us <= $4 ORDER BY version DESC LIMIT 1";

/// The newest entry at or before a time. Times never fall along a chain, so that the first waypoint after it is near.
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

/// The most that a walk to `wanted` entries can take.
fn steps(wanted: i64) -> i32 {
    i32::try_from(wanted.saturating_add(EntryKind::WAYPOINT_INTERVAL)).unwrap_or(i32::MAX)
}
