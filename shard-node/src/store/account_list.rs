//! `account`, read by ranges of its primary key: pages in id order, and sums.
//!
//! Every statement also reads the `ownership_version` of its snapshot; the caller keeps the ownership of that
//! version. In-transit accounts belong to no slot, so no list of slots contains them.

use std::time::Duration;

use ledger::{Account, AccountPrefix};
use shard_database::{account::account_from_row, account_columns};
use sqlx::{AssertSqlSafe, PgPool, Row, ValueRef, postgres::PgRow};

use super::{
    StoreError,
    ownership::{self, Ownership},
    read::{Reached, highest},
    session::column,
    statement,
};

/// The rows that were read, and the ownership version of their snapshot.
#[derive(Debug, Clone)]
pub struct Versioned<T> {
    pub ownership_version: i64,
    pub value: T,
}

/// Which accounts to read: ids with this prefix, in slots written as an `int4multirange`.
#[derive(Debug, Clone, Copy)]
pub struct Meant<'a> {
    pub prefix: &'a AccountPrefix,
    pub slots: &'a str,
}

// The cast of the slots is in a sub-select, which is evaluated once instead of for each row.
const PAGE: &str = concat!(
    "SELECT ",
    account_columns!(),
    ", s.ownership_version, ",
    highest!(),
    " FROM shardledger.shard_state s LEFT JOIN (SELECT ",
    account_columns!(),
    " FROM shardledger.account a \
       WHERE a.id >= $1 AND a.id < $2 AND a.id > $3 AND a.slot <@ (SELECT $4::text::int4multirange) \
       ORDER BY a.id LIMIT $5) a ON TRUE \
     ORDER BY a.id"
);

/// The rows of the first `limit` accounts after the id `after`, which the tail may be ahead of, and how far their
/// snapshot reached.
pub async fn page(
    pool: &PgPool,
    meant: Meant<'_>,
    after: &str,
    limit: i64,
) -> Result<Versioned<(Vec<Account>, Reached)>, StoreError> {
    let rows = sqlx::query(PAGE)
        .bind(meant.prefix.as_str())
        .bind(meant.prefix.end())
        .bind(after)
        .bind(meant.slots)
        .bind(limit)
        .fetch_all(pool)
        .await?;
    let first = rows.first().ok_or_else(|| StoreError::Corrupt("shard_state is empty".to_owned()))?;
    let reached = Reached::from_row(first)?;
    let Versioned { ownership_version, value: rows } = versioned(rows, "id")?;
    let accounts = rows.iter().map(account_from_row).collect::<Result<_, _>>()?;
    Ok(Versioned { ownership_version, value: (accounts, reached) })
}

// Rows, and what the journal beyond folded_position changes of them: of each account the newest leg, if it is newer than
// the row. Rows may be ahead of folded_position, so amounts are replaced, never added up. All in one snapshot.
const SUMS: &str = "WITH legs AS ( \
       SELECT j.payer AS id, j.payer_version AS version, j.payer_posted AS posted, j.payer_held AS held \
       FROM shardledger.journal j WHERE j.position > (SELECT f.folded_position FROM shardledger.fold_state f) \
         AND j.position <= (SELECT ((f.folded_position >> 51) << 51) + 2251799813685247 FROM shardledger.fold_state f) AND j.payer_version IS NOT NULL AND j.payer >= $1 AND j.payer < $2 \
       UNION ALL \
       SELECT j.payee, j.payee_version, j.payee_posted, j.payee_held \
       FROM shardledger.journal j WHERE j.position > (SELECT f.folded_position FROM shardledger.fold_state f) \
         AND j.position <= (SELECT ((f.folded_position >> 51) << 51) + 2251799813685247 FROM shardledger.fold_state f) AND j.payee_version IS NOT NULL AND j.payee >= $1 AND j.payee < $2), \
     newest AS (SELECT DISTINCT ON (id) id, version, posted, held FROM legs ORDER BY id, version DESC), \
     owned AS ( \
       SELECT a.asset, a.posted, a.held, 1 AS accounts FROM shardledger.account a \
       WHERE a.id >= $1 AND a.id < $2 AND a.slot <@ (SELECT $3::text::int4multirange) \
       UNION ALL \
       SELECT a.asset, n.posted - a.posted, n.held - a.held, 0 FROM newest n \
       JOIN shardledger.account a ON a.id = n.id AND a.version < n.version \
       WHERE a.slot <@ (SELECT $3::text::int4multirange)), \
     sums AS (SELECT asset, sum(posted)::text AS posted, sum(held)::text AS held, sum(accounts)::int8 AS accounts \
       FROM owned GROUP BY asset) \
     SELECT s.ownership_version, u.asset, u.posted, u.held, u.accounts FROM shardledger.shard_state s LEFT JOIN sums u ON TRUE";
// The same as of the time $4, of the first $7 accounts after the id $6. Legs that are not folded and the rows hold the states of most accounts
// at a recent time; the chains of the others are walked. Each slice passes over all bookings that are not folded, and takes only the legs of
// its own accounts from them. `lost`: accounts whose state then was not found.
const SUMS_AT: &str = concat!(
    "WITH slice AS MATERIALIZED ( \
       SELECT s.id, s.asset, s.posted, s.held, s.version, s.head, s.updated_at_us FROM shardledger.account s \
       WHERE s.id >= $1 AND s.id < $2 AND s.id > $6 AND s.slot <@ (SELECT $3::text::int4multirange) AND s.created_at_us <= $4 \
       ORDER BY s.id LIMIT $7), \
     span AS (SELECT max(id) AS last, count(*) AS accounts FROM slice), \
     legs AS ( \
       SELECT j.payer AS id, j.payer_version AS version, j.payer_previous AS previous, j.payer_posted AS posted, j.payer_held AS held, j.at_us \
       FROM shardledger.journal j WHERE j.position > (SELECT f.folded_position FROM shardledger.fold_state f) \
         AND j.position <= (SELECT ((f.folded_position >> 51) << 51) + 2251799813685247 FROM shardledger.fold_state f) \
         AND j.payer_version IS NOT NULL AND j.payer >= $1 AND j.payer > $6 AND j.payer <= (SELECT p.last FROM span p) \
       UNION ALL \
       SELECT j.payee, j.payee_version, j.payee_previous, j.payee_posted, j.payee_held, j.at_us \
       FROM shardledger.journal j WHERE j.position > (SELECT f.folded_position FROM shardledger.fold_state f) \
         AND j.position <= (SELECT ((f.folded_position >> 51) << 51) + 2251799813685247 FROM shardledger.fold_state f) \
         AND j.payee_version IS NOT NULL AND j.payee >= $1 AND j.payee > $6 AND j.payee <= (SELECT p.last FROM span p)), \
     known AS (SELECT DISTINCT ON (id) id, posted, held FROM legs WHERE at_us <= $4 ORDER BY id, version DESC), \
     later AS (SELECT DISTINCT ON (id) id, version, previous FROM legs WHERE at_us > $4 ORDER BY id, version), \
     meant AS ( \
       SELECT a.id, a.asset, a.posted, a.held, coalesce(l.version - 1, a.version) AS version, coalesce(l.previous, a.head) AS entrance, \
         k.posted AS known_posted, k.held AS known_held, k.id IS NULL AND a.updated_at_us > $4 AS is_far \
       FROM slice a LEFT JOIN known k ON k.id = a.id LEFT JOIN later l ON l.id = a.id), \
     states AS ( \
       SELECT w.asset, coalesce(w.known_posted, CASE WHEN w.is_far THEN f.posted ELSE w.posted END) AS posted, \
         coalesce(w.known_held, CASE WHEN w.is_far THEN f.held ELSE w.held END) AS held \
       FROM meant w LEFT JOIN LATERAL (",
    statement::walk_to_time!(" AND w.is_far"),
    ") f ON TRUE), \
     sums AS (SELECT asset, sum(posted)::text AS posted, sum(held)::text AS held, count(*) AS accounts, \
         count(*) FILTER (WHERE posted IS NULL) AS lost FROM states GROUP BY asset) \
     SELECT s.ownership_version, p.last, p.accounts AS read, u.asset, u.posted, u.held, u.accounts, u.lost \
     FROM shardledger.shard_state s CROSS JOIN span p LEFT JOIN sums u ON TRUE"
);
/// A sum uses one process of the server, so that a large sum does not take all capacity. The planner does not know
/// that there are few assets; without this setting it sorts all accounts by asset, on disk.
const SUM_SETTINGS: &str = "SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_sort = off";

/// The sums of each asset. The server gives up after `timeout`.
pub async fn sums(
    pool: &PgPool,
    meant: Meant<'_>,
    timeout: Duration,
) -> Result<Versioned<Vec<wire::AssetSum>>, StoreError> {
    let mut transaction = begin_sum(pool, timeout).await?;
    // The statement is planned for each prefix: a narrow prefix is a range of the key, the empty one the whole table.
    let query = sqlx::query(SUMS).persistent(false);
    let query = query.bind(meant.prefix.as_str()).bind(meant.prefix.end()).bind(meant.slots);
    let rows = query.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    let Versioned { ownership_version, value: rows } = versioned(rows, "asset")?;
    let value = rows.iter().map(sum_from_row).collect::<Result<_, _>>()?;
    Ok(Versioned { ownership_version, value })
}

/// The sums of some accounts as of a time.
#[derive(Debug, Clone)]
pub struct SumSlice {
    pub sums: Vec<wire::AssetSum>,
    /// The id after which the next slice begins; `None`: this was the last.
    pub next: Option<String>,
}

/// The sums of each asset over the first `limit` accounts after the id `after`, as of a time in microseconds since the epoch. The server
/// gives up after `timeout`.
pub async fn sums_at(
    pool: &PgPool,
    meant: Meant<'_>,
    at_us: i64,
    after: &str,
    limit: i64,
    timeout: Duration,
) -> Result<Versioned<SumSlice>, StoreError> {
    let mut transaction = begin_sum(pool, timeout).await?;
    let query = sqlx::query(SUMS_AT).persistent(false);
    let query = query.bind(meant.prefix.as_str()).bind(meant.prefix.end()).bind(meant.slots);
    let query = query.bind(at_us).bind(statement::steps(1)).bind(after).bind(limit);
    let rows = query.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    let first = rows.first().ok_or_else(|| StoreError::Corrupt("shard_state is empty".to_owned()))?;
    let (read, last): (i64, Option<String>) = (column(first, "read")?, column(first, "last")?);
    let Versioned { ownership_version, value: rows } = versioned(rows, "asset")?;
    for row in &rows {
        let lost: i64 = column(row, "lost")?;
        if lost > 0 {
            return Err(StoreError::Corrupt(format!(
                "INV-9: the chains of {lost} accounts do not lead to the time of a sum"
            )));
        }
    }
    let sums = rows.iter().map(sum_from_row).collect::<Result<_, _>>()?;
    Ok(Versioned { ownership_version, value: SumSlice { sums, next: last.filter(|_| read >= limit) } })
}

async fn begin_sum(
    pool: &PgPool,
    timeout: Duration,
) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, StoreError> {
    let mut transaction = pool.begin().await?;
    let settings = format!("SET LOCAL statement_timeout = {}; {SUM_SETTINGS}", timeout.as_millis().max(1));
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut *transaction).await?;
    Ok(transaction)
}

fn sum_from_row(row: &PgRow) -> Result<wire::AssetSum, StoreError> {
    let accounts: i64 = column(row, "accounts")?;
    Ok(wire::AssetSum {
        asset: column(row, "asset")?,
        posted: column(row, "posted")?,
        held: column(row, "held")?,
        accounts: u64::try_from(accounts).unwrap_or(0),
    })
}

const OWNERSHIP: &str = "SELECT s.ownership_version, o.slot, o.state, o.epoch, o.peer \
     FROM shardledger.shard_state s LEFT JOIN shardledger.slot_ownership o ON TRUE";

/// The version of the slots' ownership.
pub async fn ownership_version(pool: &PgPool) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT ownership_version FROM shardledger.shard_state").fetch_one(pool).await?)
}

/// All slots, with their version.
pub async fn ownership(pool: &PgPool) -> Result<Versioned<Ownership>, StoreError> {
    let rows = sqlx::query(OWNERSHIP).fetch_all(pool).await?;
    let Versioned { ownership_version, value: rows } = versioned(rows, "slot")?;
    Ok(Versioned { ownership_version, value: ownership::from_rows(&rows)? })
}

/// Drops the placeholder row that stands for an empty result.
fn versioned(mut rows: Vec<PgRow>, key: &str) -> Result<Versioned<Vec<PgRow>>, StoreError> {
    let first = rows.first().ok_or_else(|| StoreError::Corrupt("shard_state is empty".to_owned()))?;
    let ownership_version = column(first, "ownership_version")?;
    if first.try_get_raw(key)?.is_null() {
        rows.clear();
    }
    Ok(Versioned { ownership_version, value: rows })
}
