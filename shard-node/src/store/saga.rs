//! Sagas that start here: pending rows of `transfer`, found through their partial index.
//!
//! Advancing `next_attempt_us` is the only write outside the lane. It moves no money and decides nothing. It only
//! makes it unlikely that two coordinators claim the same saga.

use sqlx::{PgPool, postgres::PgRow};

use super::{StoreError, columns::columns};

/// Each failed attempt doubles the pause, up to this many microseconds.
const LONGEST_PAUSE_US: i64 = 10_000_000;

/// No pause is this long. A saga that is due later than this was written while the clock was ahead, and would wait
/// without need.
const CLOCK_WENT_BACK_US: i64 = 60_000_000;

// `status + 0`: each row by its primary key, as in `transfer::settle`.
const CLAIM: &str = concat!(
    "WITH due AS ( \
       SELECT id, debit FROM shardledger.transfer WHERE status = 1 AND (next_attempt_us <= $1 OR next_attempt_us > $1 + $4) \
       ORDER BY next_attempt_us LIMIT $2 FOR UPDATE SKIP LOCKED), \
     claimed AS ( \
       UPDATE shardledger.transfer t SET attempts = t.attempts + 1, \
         next_attempt_us = $1 + LEAST($3, 1000000 * (2 ^ LEAST(t.attempts, 20))::int8) \
       FROM due WHERE t.id = due.id AND t.debit = due.debit AND t.status + 0 = 1 RETURNING ",
    columns!(t: transfer),
    ") SELECT ",
    columns!(t: transfer),
    ", ",
    columns!(j: debit_after),
    " FROM claimed t LEFT JOIN shardledger.journal j ON j.position = t.debit_position ORDER BY t.created_at_us"
);

/// Claims up to `limit` sagas whose next attempt is due.
pub async fn claim_due(pool: &PgPool, now_us: i64, limit: i64) -> Result<Vec<PgRow>, StoreError> {
    Ok(sqlx::query(CLAIM)
        .bind(now_us)
        .bind(limit)
        .bind(LONGEST_PAUSE_US)
        .bind(CLOCK_WENT_BACK_US)
        .fetch_all(pool)
        .await?)
}

const LIST: &str = concat!(
    "SELECT ",
    columns!(t: transfer),
    ", ",
    columns!(j: debit_after),
    " FROM shardledger.transfer t LEFT JOIN shardledger.journal j ON j.position = t.debit_position \
     WHERE t.status = 1 AND t.created_at_us <= $1 ORDER BY t.created_at_us LIMIT $2"
);

/// Sagas that began before `before_us`, oldest first.
pub async fn list(pool: &PgPool, before_us: i64, limit: i64) -> Result<Vec<PgRow>, StoreError> {
    Ok(sqlx::query(LIST).bind(before_us).bind(limit).fetch_all(pool).await?)
}

const RETRY_NOW: &str = "UPDATE shardledger.transfer SET next_attempt_us = $2 WHERE id = $1 AND status = 1";

/// Makes the sagas of one id due at once. Returns their number.
pub async fn retry_now(pool: &PgPool, id: uuid::Uuid, now_us: i64) -> Result<u64, StoreError> {
    Ok(sqlx::query(RETRY_NOW).bind(id).bind(now_us).execute(pool).await?.rows_affected())
}

const COUNT: &str = "SELECT count(*) FROM shardledger.transfer WHERE status = 1";

pub async fn count(pool: &PgPool) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar(COUNT).fetch_one(pool).await?)
}
