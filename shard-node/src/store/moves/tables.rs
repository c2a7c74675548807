//! The statements of moves: on `slot_move`, and those that read, sum up and delete what moves.

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use shard_database::journal_columns;
use shard_map::{Slot, SlotRange};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Advance, CleanUp, MoveRow, SlotsChange};
use crate::{
    moves::{phase::Phase, scope::Part, sums::BookingsDigest},
    store::{StoreError, ownership::as_multirange, session::column},
};

macro_rules! move_columns {
    () => {
        "m.id, m.peer, m.phase, m.driver_epoch, m.progress, m.wishes, m.started_at_us, m.updated_at_us, \
         ARRAY(SELECT lower(r) FROM unnest(m.slots) AS r) AS firsts, ARRAY(SELECT upper(r) - 1 FROM unnest(m.slots) AS r) AS lasts"
    };
}

const LIST: &str =
    concat!("SELECT ", move_columns!(), " FROM shardledger.slot_move m ORDER BY m.started_at_us, m.id");
const GET: &str = concat!("SELECT ", move_columns!(), " FROM shardledger.slot_move m WHERE m.id = $1");

pub async fn list(connection: &mut PgConnection) -> Result<Vec<MoveRow>, StoreError> {
    sqlx::query(LIST).fetch_all(connection).await?.iter().map(from_row).collect()
}

const PHASES: &str = "SELECT phase, count(*) FROM shardledger.slot_move GROUP BY phase";

/// How many moves the shard has in each phase, by the code of the phase.
pub async fn count_by_phase(connection: &mut PgConnection) -> Result<Vec<(i16, i64)>, StoreError> {
    Ok(sqlx::query_as(PHASES).fetch_all(connection).await?)
}

pub async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<MoveRow>, StoreError> {
    sqlx::query(GET).bind(id).fetch_optional(connection).await?.as_ref().map(from_row).transpose()
}

fn from_row(row: &PgRow) -> Result<MoveRow, StoreError> {
    let id: Uuid = column(row, "id")?;
    let corrupt = |what: String| StoreError::Corrupt(format!("move {id}: {what}"));
    let phase: i16 = column(row, "phase")?;
    let slot =
        |slot: i32| u16::try_from(slot).ok().and_then(Slot::new).ok_or_else(|| corrupt(format!("slot {slot}")));
    let (firsts, lasts): (Vec<i32>, Vec<i32>) = (column(row, "firsts")?, column(row, "lasts")?);
    let mut slots = Vec::with_capacity(firsts.len());
    for (first, last) in firsts.into_iter().zip(lasts) {
        let range = SlotRange::new(slot(first)?, slot(last)?).map_err(|error| corrupt(error.to_string()))?;
        slots.push(range);
    }
    Ok(MoveRow {
        id,
        peer: column(row, "peer")?,
        slots,
        phase: Phase::from_code(phase).ok_or_else(|| corrupt(format!("phase {phase} is unknown to this version")))?,
        driver_epoch: column(row, "driver_epoch")?,
        progress: column(row, "progress")?,
        wishes: column(row, "wishes")?,
        started_at_us: column(row, "started_at_us")?,
        updated_at_us: column(row, "updated_at_us")?,
    })
}

const INSERT: &str = "INSERT INTO shardledger.slot_move (id, role, peer, slots, phase, driver_epoch, progress, wishes, started_at_us, \
       updated_at_us) VALUES ($1, $2, $3, $4::text::int4multirange, $5, $6, $7, $8, $9, $9)";

pub async fn insert(connection: &mut PgConnection, row: &MoveRow) -> Result<(), StoreError> {
    sqlx::query(INSERT)
        .bind(row.id)
        .bind(row.phase.role() as i16)
        .bind(&row.peer)
        .bind(as_multirange(&row.slots))
        .bind(row.phase.code())
        .bind(row.driver_epoch)
        .bind(&row.progress)
        .bind(&row.wishes)
        .bind(row.started_at_us)
        .execute(connection)
        .await?;
    Ok(())
}

/// Serialises the transactions that begin a move and those that clean up after one.
const LOCK: &str = "LOCK TABLE shardledger.slot_move IN SHARE ROW EXCLUSIVE MODE";

pub async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query(LOCK).execute(connection).await?;
    Ok(())
}

/// Waits until no transaction of a lane is under way, and keeps further ones out until the end of the transaction.
pub async fn lock_out_lane(connection: &mut PgConnection) -> Result<(), StoreError> {
    const LOCK_OUT: &str = "LOCK TABLE shardledger.lane_fence IN SHARE ROW EXCLUSIVE MODE";
    sqlx::query(LOCK_OUT).execute(connection).await?;
    Ok(())
}

/// Tells lanes and nodes that `slot_ownership` has changed.
pub async fn count_ownership_change(connection: &mut PgConnection) -> Result<(), StoreError> {
    const COUNT: &str = "UPDATE shardledger.shard_state SET ownership_version = ownership_version + 1";
    sqlx::query(COUNT).execute(connection).await?;
    Ok(())
}

/// The position up to which the projections are written.
pub async fn folded_position(connection: &mut PgConnection) -> Result<i64, StoreError> {
    const FOLDED: &str = "SELECT folded_position FROM shardledger.fold_state";
    Ok(sqlx::query_scalar(FOLDED).fetch_one(connection).await?)
}

const CLAIM: &str = concat!(
    "UPDATE shardledger.slot_move AS m SET driver_epoch = m.driver_epoch + 1, updated_at_us = $2 \
     WHERE m.id = $1 RETURNING ",
    move_columns!()
);

/// Raises the driver epoch: every driver before this one fails at its next step.
pub async fn claim(connection: &mut PgConnection, id: Uuid, now_us: i64) -> Result<Option<MoveRow>, StoreError> {
    sqlx::query(CLAIM).bind(id).bind(now_us).fetch_optional(connection).await?.as_ref().map(from_row).transpose()
}

const TOUCH: &str = "UPDATE shardledger.slot_move SET updated_at_us = $3 WHERE id = $1 AND driver_epoch = $2";

/// Notes that the driver is alive.
pub async fn touch(
    connection: &mut PgConnection,
    id: Uuid,
    driver_epoch: i64,
    now_us: i64,
) -> Result<(), StoreError> {
    sqlx::query(TOUCH).bind(id).bind(driver_epoch).bind(now_us).execute(connection).await?;
    Ok(())
}

const SET_EPOCH: &str = "UPDATE shardledger.slot_move SET driver_epoch = $2 WHERE id = $1 AND driver_epoch < $2";

/// Stores the epoch of a new driver at the source.
pub async fn set_epoch(connection: &mut PgConnection, id: Uuid, driver_epoch: i64) -> Result<(), StoreError> {
    sqlx::query(SET_EPOCH).bind(id).bind(driver_epoch).execute(connection).await?;
    Ok(())
}

const SET_WISHES: &str = "UPDATE shardledger.slot_move SET wishes = $2 WHERE id = $1";

pub async fn set_wishes(connection: &mut PgConnection, id: Uuid, wishes: &str) -> Result<(), StoreError> {
    sqlx::query(SET_WISHES).bind(id).bind(wishes).execute(connection).await?;
    Ok(())
}

const ADVANCE: &str = "SELECT shardledger.advance_move($1, $2, $3, $4, $5, $6)";

/// Changes phase and progress, if the row has the phase, the driver epoch and the progress that the caller believes.
///
/// # Errors
/// A statement error with the code `SL003` if it is not.
pub async fn advance(
    connection: &mut PgConnection,
    Advance { row, to, progress }: Advance<'_>,
) -> Result<(), StoreError> {
    sqlx::query(ADVANCE)
        .bind(row.id)
        .bind(row.phase.code())
        .bind(row.driver_epoch)
        .bind(&row.progress)
        .bind(to.code())
        .bind(progress)
        .execute(connection)
        .await?;
    Ok(())
}

/// The same as a statement of a script.
pub fn advance_statement(Advance { row, to, progress }: Advance<'_>) -> String {
    format!(
        "SELECT shardledger.advance_move('{}', {}::int2, {}, {}, {}::int2, {}); ",
        row.id,
        row.phase.code(),
        row.driver_epoch,
        literal(&row.progress),
        to.code(),
        literal(progress)
    )
}

/// A text as a literal of a script.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A statement that changes the state of slots and the ownership version.
pub fn change_slots_statement(change: &SlotsChange<'_>) -> String {
    let SlotsChange { slots, from, to, epoch, peer, .. } = change;
    let (from, to) = (*from as i16, *to as i16);
    format!(
        "SELECT shardledger.change_slots('{}', {from}::int2, {to}::int2, {epoch}, {}); ",
        as_multirange(slots),
        literal(peer)
    )
}

// === what is relevant ===

/// A condition on a row `j` of the journal: a slot of the set owns it, or has a leg in it (`docs/adr/0010`). The server looks a slot up
/// in a hash table; a multirange of many ranges would be searched for each row.
pub fn relevant(slots: &[SlotRange]) -> String {
    let slots = as_array(slots);
    format!(
        "((j.role <> 3 AND j.payer_slot = ANY('{slots}'::int2[])) \
          OR ((j.role = 3 OR j.payee_version IS NOT NULL) AND j.payee_slot = ANY('{slots}'::int2[])))"
    )
}

/// A condition on a row `j` of the journal: a slot of the set owns it.
fn owned_by(slots: &[SlotRange]) -> String {
    format!("(CASE WHEN j.role = 3 THEN j.payee_slot ELSE j.payer_slot END) = ANY('{}'::int2[])", as_array(slots))
}

/// Slots in PostgreSQL's text form of an `int2[]`.
fn as_array(slots: &[SlotRange]) -> String {
    let slots: Vec<String> =
        slots.iter().copied().flat_map(SlotRange::slots).map(|slot| slot.index().to_string()).collect();
    format!("{{{}}}", slots.join(","))
}

/// The position at which a page of a part of the journal ends that has so many rows; `None` if the part ends before.
pub async fn page_end(connection: &mut PgConnection, part: Part, rows: i64) -> Result<Option<i64>, StoreError> {
    const PAGE_END: &str = "SELECT position FROM shardledger.journal WHERE position > $1 AND position <= $2 \
         ORDER BY position OFFSET $3 LIMIT 1";
    let end = sqlx::query_scalar(PAGE_END).bind(part.after).bind(part.last).bind(rows - 1);
    Ok(end.fetch_optional(connection).await?)
}

/// The highest position in a part of the journal, if the part has one.
pub async fn highest(connection: &mut PgConnection, part: Part) -> Result<Option<i64>, StoreError> {
    const HIGHEST: &str = "SELECT position FROM shardledger.journal WHERE position > $1 AND position <= $2 \
         ORDER BY position DESC LIMIT 1";
    Ok(sqlx::query_scalar(HIGHEST).bind(part.after).bind(part.last).fetch_optional(connection).await?)
}

const ALL_COLUMNS: &str = concat!(journal_columns!(core), ", ", journal_columns!(extra));

/// The relevant bookings after a position, up to another, in binary COPY format.
pub async fn copy_bookings_out(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    after: i64,
    to: i64,
) -> Result<Bytes, StoreError> {
    let query = format!(
        "COPY (SELECT {} FROM shardledger.journal j WHERE j.position > {after} AND j.position <= {to} AND {} \
         ORDER BY j.position) TO STDOUT (FORMAT binary)",
        journal_columns!(j),
        relevant(slots)
    );
    copy_out(connection, query).await
}

const ACCOUNT_COLUMNS: &str = "id, slot, asset, status, posted, held, overdraft, max_balance, version, head, opened, metadata, created_at_us, \
     updated_at_us";

/// Rows of accounts after an id, in binary COPY format. An account id needs no escape.
pub async fn copy_accounts_out(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    after: &str,
    limit: u32,
) -> Result<Bytes, StoreError> {
    let query = format!(
        "COPY (SELECT {ACCOUNT_COLUMNS} FROM shardledger.account WHERE id > {} AND slot <@ '{}'::int4multirange \
         ORDER BY id LIMIT {limit}) TO STDOUT (FORMAT binary)",
        literal(after),
        as_multirange(slots)
    );
    copy_out(connection, query).await
}

const HOLD_COLUMNS: &str =
    "id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, expires_at_us";

/// Rows of open holds, in binary COPY format.
pub async fn copy_holds_out(connection: &mut PgConnection, slots: &[SlotRange]) -> Result<Bytes, StoreError> {
    let query = format!(
        "COPY (SELECT {HOLD_COLUMNS} FROM shardledger.hold WHERE payer_slot <@ '{}'::int4multirange) TO STDOUT (FORMAT binary)",
        as_multirange(slots)
    );
    copy_out(connection, query).await
}

async fn copy_out(connection: &mut PgConnection, query: String) -> Result<Bytes, StoreError> {
    let mut stream = connection.copy_out_raw(&query).await?;
    let mut payload = BytesMut::new();
    while let Some(chunk) = stream.try_next().await? {
        payload.extend_from_slice(&chunk);
    }
    Ok(payload.freeze())
}

const STAGE: &str = "CREATE TEMPORARY TABLE IF NOT EXISTS moved (LIKE shardledger.journal) ON COMMIT DELETE ROWS";
const INSERT_STAGED: &str = concat!(
    "INSERT INTO shardledger.journal (",
    journal_columns!(core),
    ", ",
    journal_columns!(extra),
    ") SELECT ",
    journal_columns!(core),
    ", ",
    journal_columns!(extra),
    " FROM pg_temp.moved ON CONFLICT (position) DO NOTHING"
);
// An erasure may have reached one of two copies. If either copy is erased, erase both.
const SHARE_ERASURES: [&str; 2] = [
    "UPDATE shardledger.journal j SET metadata = '-' FROM pg_temp.moved m \
     WHERE j.position = m.position AND m.metadata = '-' AND j.metadata <> '-'",
    "UPDATE pg_temp.moved m SET metadata = '-' FROM shardledger.journal j \
     WHERE j.position = m.position AND j.metadata = '-' AND m.metadata <> '-'",
];
// Both tables have the same columns in the same order. `metadata` may differ only because the lane has just erased one side.
const DIFFERENT: &str = "SELECT m.position FROM pg_temp.moved m JOIN shardledger.journal j ON j.position = m.position \
     WHERE ROW(m.*) IS DISTINCT FROM ROW(j.*) \
       AND (to_jsonb(m) - 'metadata' <> to_jsonb(j) - 'metadata' \
         OR (m.metadata IS DISTINCT FROM j.metadata AND m.metadata IS DISTINCT FROM '-' AND j.metadata IS DISTINCT FROM '-')) LIMIT 1";

/// Carries out the erasures among the bookings that have come.
pub async fn apply_erasures(connection: &mut PgConnection, after: i64, to: i64) -> Result<(), StoreError> {
    const APPLY: &str = "SELECT shardledger.apply_erasures($1, $2)";
    sqlx::query(APPLY).bind(after).bind(to).execute(connection).await?;
    Ok(())
}

/// Begins the transaction of a page of bookings.
pub const BEGIN_PAGE: &str = "BEGIN; SAVEPOINT direct";
/// The same for a page whose commit need not wait for the disk.
pub const BEGIN_LAST_PAGE: &str = "BEGIN; SET LOCAL synchronous_commit = off; SAVEPOINT direct";

/// Writes bookings that are in binary COPY format, in a transaction that begins with [`BEGIN_PAGE`] or [`BEGIN_LAST_PAGE`]. Bookings
/// that are here already must be the same. Returns how many came.
pub async fn copy_bookings_in(connection: &mut PgConnection, rows: Bytes) -> Result<u64, StoreError> {
    // A booking between a slot of this move and one of an earlier move is here already. Most pages have none.
    let query = format!("COPY shardledger.journal ({ALL_COLUMNS}) FROM STDIN (FORMAT binary)");
    match copy_in(connection, &query, rows.clone()).await {
        Ok(came) => return Ok(came),
        Err(error) if error.is_duplicate() => {
            sqlx::query("ROLLBACK TO SAVEPOINT direct").execute(&mut *connection).await?;
        }
        Err(error) => return Err(error),
    }
    sqlx::query(STAGE).execute(&mut *connection).await?;
    let query = format!("COPY pg_temp.moved ({ALL_COLUMNS}) FROM STDIN (FORMAT binary)");
    let came = copy_in(connection, &query, rows).await?;
    let new = sqlx::query(INSERT_STAGED).execute(&mut *connection).await?.rows_affected();
    if new < came {
        for share in SHARE_ERASURES {
            sqlx::query(share).execute(&mut *connection).await?;
        }
        let different: Option<i64> = sqlx::query_scalar(DIFFERENT).fetch_optional(&mut *connection).await?;
        if let Some(position) = different {
            let what = format!("booking {position} is here with another content than at the source of the move");
            return Err(StoreError::Corrupt(what));
        }
    }
    Ok(came)
}

pub async fn copy_accounts_in(connection: &mut PgConnection, rows: Bytes) -> Result<u64, StoreError> {
    let query = format!("COPY shardledger.account ({ACCOUNT_COLUMNS}) FROM STDIN (FORMAT binary)");
    copy_in(connection, &query, rows).await
}

pub async fn copy_holds_in(connection: &mut PgConnection, rows: Bytes) -> Result<u64, StoreError> {
    let query = format!("COPY shardledger.hold ({HOLD_COLUMNS}) FROM STDIN (FORMAT binary)");
    copy_in(connection, &query, rows).await
}

async fn copy_in(connection: &mut PgConnection, query: &str, rows: Bytes) -> Result<u64, StoreError> {
    let mut copy = connection.copy_in_raw(query).await?;
    if let Err(error) = copy.send(rows).await {
        // The server's own error says more.
        copy.abort("the rows could not be sent").await?;
        return Err(error.into());
    }
    Ok(copy.finish().await?)
}

/// The waypoints of bookings that were copied.
pub async fn insert_waypoints(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    after: i64,
    to: i64,
) -> Result<(), StoreError> {
    let slots = as_array(slots);
    let of = |party: &str| {
        format!(
            "SELECT j.{party}, j.{party}_version, j.position, j.at_us FROM shardledger.journal j \
             WHERE j.position > {after} AND j.position <= {to} AND j.{party}_version % {} = 0 \
               AND j.{party}_slot = ANY('{slots}'::int2[])",
            ledger::fold::WAYPOINT_INTERVAL
        )
    };
    let statement = format!(
        "INSERT INTO shardledger.waypoint (account, version, position, at_us) {} UNION ALL {} ON CONFLICT DO NOTHING",
        of("payer"),
        of("payee")
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

/// The relevant bookings between two positions.
pub async fn bookings(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    after: i64,
    to: i64,
) -> Result<Vec<ledger::Booking>, StoreError> {
    let query = format!(
        "SELECT {} FROM shardledger.journal j WHERE j.position > {after} AND j.position <= {to} AND {} ORDER BY j.position",
        journal_columns!(j),
        relevant(slots)
    );
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(connection).await?;
    rows.iter().map(|row| shard_database::journal::booking_from_row(row).map_err(StoreError::from)).collect()
}

// === sums and digests ===

/// Sums up the accounts of each slot. `account` may be behind the journal: the newest leg beyond the folded position replaces a row.
/// The statement uses one snapshot.
pub async fn slot_sums(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    own: Part,
) -> Result<Vec<wire::SlotSum>, StoreError> {
    let query = format!(
        "{} SELECT slot, asset, count(*)::int8 AS accounts, sum(posted)::text AS posted, sum(held)::text AS held, \
           sum(('x' || substr(md5(concat_ws('|', id, asset, version, posted, held, head, opened)), 1, 16))::bit(64)::int8)::text AS digest \
         FROM state GROUP BY slot, asset ORDER BY slot, asset",
        states(slots, own)
    );
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let slot: i32 = column(row, "slot")?;
            Ok(wire::SlotSum {
                slot: u32::try_from(slot).unwrap_or(u32::MAX),
                asset: column(row, "asset")?,
                accounts: column(row, "accounts")?,
                posted: column(row, "posted")?,
                held: column(row, "held")?,
                digest: column(row, "digest")?,
            })
        })
        .collect()
}

/// Sums over the open holds of the slots.
pub async fn holds_sum(connection: &mut PgConnection, slots: &[SlotRange]) -> Result<wire::HoldsSum, StoreError> {
    const HOLDS: &str = "SELECT count(*)::int8 AS count, coalesce(sum(amount), 0)::text AS amount, coalesce(sum(captured), 0)::text AS captured, \
           coalesce(sum(capture_amount), 0)::text AS in_flight, coalesce(sum(expires_at_us), 0)::text AS expiry \
         FROM shardledger.hold WHERE payer_slot <@ (SELECT $1::text::int4multirange)";
    let row = sqlx::query(HOLDS).bind(as_multirange(slots)).fetch_one(connection).await?;
    Ok(wire::HoldsSum {
        count: column(&row, "count")?,
        amount: column(&row, "amount")?,
        captured: column(&row, "captured")?,
        in_flight: column(&row, "in_flight")?,
        expiry: column(&row, "expiry")?,
    })
}

/// The scales of the assets that accounts of the shard use.
pub async fn scales(connection: &mut PgConnection) -> Result<Vec<wire::AssetScale>, StoreError> {
    let scales = shard_database::record::asset_scales(connection).await?;
    Ok(scales.into_iter().map(|(asset, scale)| wire::AssetScale { asset, scale }).collect())
}

/// The state of each account of one slot, in the order of ids.
pub async fn account_states(
    connection: &mut PgConnection,
    slot: SlotRange,
    own: Part,
) -> Result<Vec<wire::AccountState>, StoreError> {
    let query =
        format!("{} SELECT id, asset, version, posted, held, head FROM state ORDER BY id", states(&[slot], own));
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(wire::AccountState {
                id: column(row, "id")?,
                asset: column(row, "asset")?,
                version: column(row, "version")?,
                posted: column(row, "posted")?,
                held: column(row, "held")?,
                head: column(row, "head")?,
            })
        })
        .collect()
}

fn states(slots: &[SlotRange], own: Part) -> String {
    let slots = as_multirange(slots);
    let legs = |party: &str| {
        format!(
            "SELECT j.{party} AS id, j.{party}_version AS version, j.{party}_posted AS posted, j.{party}_held AS held, j.position AS head \
             FROM shardledger.journal j \
             WHERE j.position > (SELECT f.folded_position FROM shardledger.fold_state f) AND j.position <= {} \
               AND j.{party}_version IS NOT NULL AND j.{party}_slot::int4 <@ '{slots}'::int4multirange",
            own.last
        )
    };
    format!(
        "WITH legs AS ({} UNION ALL {}), \
         newest AS (SELECT DISTINCT ON (id) id, version, posted, held, head FROM legs ORDER BY id, version DESC), \
         state AS (SELECT a.id, a.slot, a.asset, a.opened, coalesce(n.version, a.version) AS version, coalesce(n.posted, a.posted) AS posted, \
             coalesce(n.held, a.held) AS held, coalesce(n.head, a.head) AS head \
           FROM shardledger.account a LEFT JOIN newest n ON n.id = a.id AND n.version > a.version \
           WHERE a.slot <@ '{slots}'::int4multirange)",
        legs("payer"),
        legs("payee")
    )
}

/// Order-independent sums over the relevant bookings between two positions, and their in-transit shares by asset.
pub async fn bookings_digest(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    after: i64,
    to: i64,
) -> Result<(BookingsDigest, Vec<(String, i128)>), StoreError> {
    let query = format!(
        "SELECT count(*)::int8 AS count, coalesce(sum(j.position), 0)::text AS positions, coalesce(sum(j.amount), 0)::text AS amounts, \
           coalesce(sum(j.at_us), 0)::text AS times, \
           coalesce(sum(j.kind::numeric + coalesce(j.payer_posted, 0)::numeric + coalesce(j.payee_posted, 0)::numeric), 0)::text AS balances, \
           coalesce(sum(hashtextextended(j.ordered_by, j.position)), 0)::text AS names \
         FROM shardledger.journal j WHERE j.position > {after} AND j.position <= {to} AND {}",
        relevant(slots)
    );
    let row = sqlx::query(AssertSqlSafe(query)).fetch_one(&mut *connection).await?;
    let digest = BookingsDigest {
        count: column(&row, "count")?,
        positions: number(&row, "positions")?,
        amounts: number(&row, "amounts")?,
        times: number(&row, "times")?,
        balances: number(&row, "balances")?,
        names: number(&row, "names")?,
    };
    // Kinds 13, 22 and 31 change the in-transit account.
    let query = format!(
        "SELECT j.asset, sum(CASE j.kind WHEN 13 THEN j.amount ELSE -j.amount END)::text AS shares \
         FROM shardledger.journal j WHERE j.position > {after} AND j.position <= {to} AND j.kind IN (13, 22, 31) AND {} GROUP BY j.asset",
        owned_by(slots)
    );
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(connection).await?;
    let shares = rows.iter().map(|row| Ok((column(row, "asset")?, number(row, "shares")?)));
    Ok((digest, shares.collect::<Result<_, StoreError>>()?))
}

fn number(row: &PgRow, name: &str) -> Result<i128, StoreError> {
    let text: &str = column(row, name)?;
    text.parse().map_err(|_| StoreError::Corrupt(format!("{name}: {text:?} is no number of 128 bits")))
}

// === clean-up ===

/// Rows of accounts that one transaction deletes.
const DELETED_AT_ONCE: u32 = 5_000;

impl CleanUp<'_> {
    /// Begins a transaction in which no other move of the shard begins or goes on.
    async fn begin<'c>(
        &self,
        connection: &'c mut PgConnection,
    ) -> Result<sqlx::Transaction<'c, Postgres>, StoreError> {
        const STILL_DRIVEN: &str =
            "SELECT EXISTS (SELECT FROM shardledger.slot_move WHERE id = $1 AND phase = $2 AND driver_epoch = $3)";
        const STILL_THERE: &str = "SELECT count(*) FROM shardledger.slot_ownership \
             WHERE slot <@ (SELECT $1::text::int4multirange) AND state = $2 AND epoch = $3";
        let mut transaction = sqlx::Connection::begin(connection).await?;
        lock(&mut transaction).await?;
        let is_driven: bool = sqlx::query_scalar(STILL_DRIVEN)
            .bind(self.row.id)
            .bind(self.row.phase.code())
            .bind(self.row.driver_epoch)
            .fetch_one(&mut *transaction)
            .await?;
        let there: i64 = sqlx::query_scalar(STILL_THERE)
            .bind(as_multirange(&self.row.slots))
            .bind(self.state as i16)
            .bind(self.epoch)
            .fetch_one(&mut *transaction)
            .await?;
        let count: i64 = self.row.slots.iter().map(|range| i64::from(range.len())).sum();
        if !is_driven || there != count {
            return Err(StoreError::Fenced);
        }
        Ok(transaction)
    }

    /// Deletes the rows of accounts, holds, sagas and waypoints, in small transactions.
    pub async fn delete_projections(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let slots = as_multirange(&self.row.slots);
        let mut transaction = self.begin(connection).await?;
        const SAGAS: &str = "DELETE FROM shardledger.saga s USING shardledger.journal j \
             WHERE j.position = s.position AND j.payer_slot::int4 <@ (SELECT $1::text::int4multirange)";
        const HOLDS: &str = "DELETE FROM shardledger.hold WHERE payer_slot <@ (SELECT $1::text::int4multirange)";
        sqlx::query(SAGAS).bind(&slots).execute(&mut *transaction).await?;
        sqlx::query(HOLDS).bind(&slots).execute(&mut *transaction).await?;
        transaction.commit().await?;
        loop {
            let mut transaction = self.begin(connection).await?;
            let delete = format!(
                "WITH gone AS (DELETE FROM shardledger.account WHERE id IN (SELECT id FROM shardledger.account \
                   WHERE slot <@ '{slots}'::int4multirange LIMIT {DELETED_AT_ONCE}) RETURNING id), \
                 waypoints AS (DELETE FROM shardledger.waypoint w USING gone WHERE w.account = gone.id) \
                 SELECT count(*)::int8 AS gone FROM gone"
            );
            let row = sqlx::query(AssertSqlSafe(delete)).fetch_one(&mut *transaction).await?;
            let gone: i64 = row.try_get("gone")?;
            transaction.commit().await?;
            if gone == 0 {
                return Ok(());
            }
        }
    }

    /// Deletes what a copy left that was given up halfway: waypoints whose accounts have not come, and sagas whose first bookings have not
    /// come. No other move may be coming in.
    pub async fn delete_lone_rows(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        const WAYPOINTS: &str = "DELETE FROM shardledger.waypoint w \
             WHERE NOT EXISTS (SELECT FROM shardledger.account a WHERE a.id = w.account)";
        const SAGAS: &str = "DELETE FROM shardledger.saga s \
             WHERE NOT EXISTS (SELECT FROM shardledger.journal j WHERE j.position = s.position)";
        let mut transaction = self.begin(connection).await?;
        sqlx::query(WAYPOINTS).execute(&mut *transaction).await?;
        sqlx::query(SAGAS).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Deletes the bookings between two positions that are relevant to the slots of the move, and to no slot that the shard owns, receives or can take
    /// back. Writes the progress in the same transaction.
    pub async fn delete_bookings(
        &self,
        connection: &mut PgConnection,
        (after, to): (i64, i64),
        progress: impl FnOnce(u64) -> (Phase, String) + Send,
    ) -> Result<(Phase, String), StoreError> {
        let mut transaction = self.begin(connection).await?;
        let kept = kept_slots(&mut transaction, self.row).await?;
        let delete = format!(
            "DELETE FROM shardledger.journal j WHERE j.position > {after} AND j.position <= {to} AND {} AND NOT {}",
            relevant(&self.row.slots),
            relevant(&kept)
        );
        let deleted = sqlx::query(AssertSqlSafe(delete)).execute(&mut *transaction).await?.rows_affected();
        let (phase, text) = progress(deleted);
        advance(&mut transaction, Advance { row: self.row, to: phase, progress: &text }).await?;
        transaction.commit().await?;
        Ok((phase, text))
    }
}

/// The slots whose rows a clean-up must keep: all that the shard owns, receives, or can still take back.
async fn kept_slots(connection: &mut PgConnection, row: &MoveRow) -> Result<Vec<SlotRange>, StoreError> {
    const KEPT: &str = "SELECT slot FROM shardledger.slot_ownership \
         WHERE state IN (1, 3) AND NOT slot <@ (SELECT $1::text::int4multirange)";
    let slots: Vec<i32> =
        sqlx::query_scalar(KEPT).bind(as_multirange(&row.slots)).fetch_all(&mut *connection).await?;
    let owned = slots.into_iter().filter_map(|slot| Slot::new(u16::try_from(slot).ok()?));
    let open = list(connection).await?.into_iter().filter(|other| other.phase.is_open() && other.id != row.id);
    let open: Vec<SlotRange> = open.flat_map(|other| other.slots).collect();
    let is_own = |slot: &Slot| row.slots.iter().any(|range| range.contains(*slot));
    let all = owned.chain(open.into_iter().flat_map(SlotRange::slots)).filter(|slot| !is_own(slot));
    let all: std::collections::BTreeSet<Slot> = all.collect();
    Ok(shard_map::merge_slots(all))
}
