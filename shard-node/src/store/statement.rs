//! `journal`, read along an account's chain: from a waypoint or from the account's head, backwards.
//!
//! A walk reads at most [`WAYPOINT_INTERVAL`] bookings more than requested, however long the history is. One statement finds
//! the waypoint and walks the chain, so that the caller waits for the database once. Waypoints that the fold has not
//! written yet come from the tail: they have higher versions than all that are in the database.

use std::collections::HashMap;

use ledger::{Account, AccountId, Booking, Limit, Position, fold::WAYPOINT_INTERVAL};
use shard_database::{journal::booking_from_row, journal_columns};
use sqlx::PgPool;

use super::{StoreError, Waypoint, session::column};

/// The version and the previous position of the account `$1` in a booking `j`.
macro_rules! leg {
    (version) => {
        "CASE WHEN j.payer = $1 AND j.payer_version IS NOT NULL THEN j.payer_version ELSE j.payee_version END"
    };
    (previous) => {
        "CASE WHEN j.payer = $1 AND j.payer_version IS NOT NULL THEN j.payer_previous ELSE j.payee_previous END"
    };
}

// Waypoints above the version of the account as read belong to later bookings.
const BY_VERSION: &str = concat!(
    "WITH RECURSIVE walk AS ( \
       SELECT j.position, ",
    leg!(version),
    " AS version, ",
    leg!(previous),
    " AS previous, 1 AS step FROM shardledger.journal j WHERE j.position = coalesce( \
         (SELECT w.position FROM shardledger.waypoint w WHERE w.account = $1 AND w.version >= $4 AND w.version <= $2 \
          ORDER BY w.version LIMIT 1), $3) \
       UNION ALL \
       SELECT j.position, ",
    leg!(version),
    ", ",
    leg!(previous),
    ", walk.step + 1 FROM walk JOIN shardledger.journal j ON j.position = walk.previous \
       WHERE walk.version > $5 AND walk.step < $6) \
     SELECT ",
    journal_columns!(j),
    " FROM walk JOIN shardledger.journal j ON j.position = walk.position WHERE walk.version <= $4 ORDER BY walk.version DESC"
);

/// The bookings of the account's versions `first` to `last`, newest first. `unfolded`: the account's waypoints that are not
/// in the database yet.
pub async fn bookings(
    pool: &PgPool,
    account: &Account,
    unfolded: &[Waypoint],
    first: i64,
    last: i64,
) -> Result<Vec<Booking>, StoreError> {
    let entrance = unfolded
        .iter()
        .find(|waypoint| (last..=account.version).contains(&waypoint.version))
        .map_or(account.head, |waypoint| waypoint.position);
    let rows = sqlx::query(BY_VERSION)
        .bind(account.id.as_str())
        .bind(account.version)
        .bind(entrance.0)
        .bind(last)
        .bind(first)
        .bind(steps(last - first + 1))
        .fetch_all(pool)
        .await?;
    rows.iter().map(|row| booking_from_row(row).map_err(StoreError::from)).collect()
}

const BY_TIME: &str = concat!(
    "WITH RECURSIVE walk AS ( \
       SELECT j.position, j.at_us, ",
    leg!(version),
    " AS version, ",
    leg!(previous),
    " AS previous, 1 AS step FROM shardledger.journal j WHERE j.position = coalesce( \
         (SELECT w.position FROM shardledger.waypoint w WHERE w.account = $1 AND w.at_us > $4 AND w.version <= $2 \
          ORDER BY w.at_us, w.version LIMIT 1), $3) \
       UNION ALL \
       SELECT j.position, j.at_us, ",
    leg!(version),
    ", ",
    leg!(previous),
    ", walk.step + 1 FROM walk JOIN shardledger.journal j ON j.position = walk.previous \
       WHERE walk.at_us > $4 AND walk.step < $5) \
     SELECT ",
    journal_columns!(j),
    " FROM walk JOIN shardledger.journal j ON j.position = walk.position WHERE walk.at_us <= $4 ORDER BY walk.version DESC LIMIT 1"
);

/// The newest booking of the account at or before a time. Times never decrease along a chain, so the first waypoint after
/// the time is near.
pub async fn booking_at(
    pool: &PgPool,
    account: &Account,
    unfolded: &[Waypoint],
    at_us: i64,
) -> Result<Option<Booking>, StoreError> {
    let entrance: Position = unfolded
        .iter()
        .find(|waypoint| waypoint.at_us > at_us && waypoint.version <= account.version)
        .map_or(account.head, |waypoint| waypoint.position);
    let row = sqlx::query(BY_TIME)
        .bind(account.id.as_str())
        .bind(account.version)
        .bind(entrance.0)
        .bind(at_us)
        .bind(steps(1))
        .fetch_optional(pool)
        .await?;
    Ok(row.as_ref().map(booking_from_row).transpose()?)
}

/// The version, previous position or other column of the leg of account `w.id` in a booking `j`.
macro_rules! leg_of_wanted {
    ($column:literal) => {
        concat!(
            "CASE WHEN j.payer = w.id AND j.payer_version IS NOT NULL THEN j.payer_",
            $column,
            " ELSE j.payee_",
            $column,
            " END AS ",
            $column
        )
    };
}
macro_rules! wanted_legs {
    ($step:literal) => {
        concat!(
            "SELECT j.position, j.at_us, ",
            $crate::store::statement::leg_of_wanted!("version"),
            ", ",
            $crate::store::statement::leg_of_wanted!("previous"),
            ", ",
            $crate::store::statement::leg_of_wanted!("posted"),
            ", ",
            $crate::store::statement::leg_of_wanted!("held"),
            ", ",
            $crate::store::statement::leg_of_wanted!("overdraft"),
            ", ",
            $step,
            " AS step "
        )
    };
}
/// The walk of one account `w` (`id`, `version`, `entrance`) to its newest leg at or before the time `$4`, in at most `$5` steps. The anchor
/// may be restricted by a condition.
macro_rules! walk_to_time {
    ($condition:literal) => {
        concat!(
            "WITH RECURSIVE walk AS ( ",
            $crate::store::statement::wanted_legs!("1"),
            "FROM shardledger.journal j WHERE j.position = coalesce( \
               (SELECT p.position FROM shardledger.waypoint p WHERE p.account = w.id AND p.at_us > $4 AND p.version <= w.version \
                ORDER BY p.at_us, p.version LIMIT 1), w.entrance)",
            $condition,
            " UNION ALL ",
            $crate::store::statement::wanted_legs!("walk.step + 1"),
            "FROM walk JOIN shardledger.journal j ON j.position = walk.previous WHERE walk.at_us > $4 AND walk.step < $5) \
             SELECT walk.version, walk.posted, walk.held, walk.overdraft, walk.at_us FROM walk WHERE walk.at_us <= $4 LIMIT 1"
        )
    };
}
pub(super) use {leg_of_wanted, walk_to_time, wanted_legs};

const LEGS_AT: &str = concat!(
    "SELECT w.id, f.version, f.posted, f.held, f.overdraft, f.at_us \
     FROM unnest($1::text[], $2::int8[], $3::int8[]) AS w(id, version, entrance) CROSS JOIN LATERAL (",
    walk_to_time!(""),
    ") f"
);

/// An account's newest leg at or before a time.
#[derive(Debug, Clone, Copy)]
pub struct LegAt {
    pub version: i64,
    pub posted: i64,
    pub held: i64,
    pub overdraft: Limit,
    pub at_us: i64,
}

/// The newest legs of these accounts at or before a time, in one statement. `entrances`: of some of the accounts, the first waypoint after the
/// time that is not in the database yet.
pub async fn legs_at(
    pool: &PgPool,
    accounts: &[&Account],
    entrances: &HashMap<AccountId, Position>,
    at_us: i64,
) -> Result<HashMap<AccountId, LegAt>, StoreError> {
    let ids: Vec<&str> = accounts.iter().map(|account| account.id.as_str()).collect();
    let versions: Vec<i64> = accounts.iter().map(|account| account.version).collect();
    let entrances: Vec<i64> =
        accounts.iter().map(|account| entrances.get(&account.id).unwrap_or(&account.head).0).collect();
    let rows = sqlx::query(LEGS_AT)
        .bind(ids)
        .bind(versions)
        .bind(entrances)
        .bind(at_us)
        .bind(steps(1))
        .fetch_all(pool)
        .await?;
    let legs = rows.iter().map(|row| {
        let id = AccountId::any(column(row, "id")?).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        let overdraft = Limit::from_nullable(column(row, "overdraft")?);
        let (posted, held) = (column(row, "posted")?, column(row, "held")?);
        Ok((id, LegAt { version: column(row, "version")?, posted, held, overdraft, at_us: column(row, "at_us")? }))
    });
    legs.collect()
}

/// The most that a walk to `wanted` bookings can take.
pub(super) fn steps(wanted: i64) -> i32 {
    i32::try_from(wanted.saturating_add(WAYPOINT_INTERVAL)).unwrap_or(i32::MAX)
}
