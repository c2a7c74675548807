//! What a target writes of the bookings that come: rows of accounts, holds and sagas, and scales of assets.

use std::collections::HashMap;

use ledger::{Account, Booking, Hold, HoldKey, TransferId, TransferKey, fold, hold::CaptureInFlight};
use shard_database::journal::slot_column;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::{
    moves::{
        error::MoveError,
        incoming::{Changes, HoldChanges, Incoming},
        progress::Progress,
    },
    store::{StoreError, account, session::column},
};

/// Applies the bookings of a page, which are in the journal already, in the caller's transaction.
///
/// # Errors
/// When a booking does not continue a row, or the database does not answer.
pub async fn apply(
    connection: &mut PgConnection,
    incoming: &mut Incoming,
    progress: &Progress,
    bookings: &[Booking],
) -> Result<(), MoveError> {
    let ids = incoming.accounts_of(bookings);
    let ids: Vec<&str> = ids.iter().map(ledger::AccountId::as_str).collect();
    let accounts = account::load_from(connection, &ids).await?;
    let holds = incoming.holds_of(progress, bookings);
    let holds = if holds.is_empty() { HashMap::new() } else { load_holds(connection, &holds).await? };
    let Changes { opened, updated, begun, ended, holds } = incoming.apply(progress, bookings, accounts, holds)?;
    insert_accounts(connection, &opened).await?;
    update_accounts(connection, &updated).await?;
    if !begun.is_empty() {
        insert_sagas(connection, &begun).await?;
    }
    if !ended.is_empty() {
        delete_sagas(connection, &ended).await?;
    }
    Ok(write_holds(connection, &holds).await?)
}

// === sagas ===

/// Writes the rows of sagas that are under way, by the positions of their first bookings.
pub async fn insert_sagas(connection: &mut PgConnection, positions: &[i64]) -> Result<(), StoreError> {
    const INSERT: &str = "INSERT INTO shardledger.saga (position) SELECT position FROM unnest($1::int8[]) AS new(position) \
         ON CONFLICT DO NOTHING";
    sqlx::query(INSERT).bind(positions).execute(connection).await?;
    Ok(())
}

async fn delete_sagas(connection: &mut PgConnection, ended: &[TransferKey]) -> Result<(), StoreError> {
    const DELETE: &str = "DELETE FROM shardledger.saga s USING shardledger.journal j, \
           unnest($1::uuid[], $2::text[]) AS ended(id, payer) \
         WHERE j.id = ended.id AND j.payer = ended.payer AND j.role = 1 AND s.position = j.position";
    let (ids, payers): (Vec<Uuid>, Vec<&str>) = ended.iter().map(|key| (key.id.0, key.debit.as_str())).unzip();
    sqlx::query(DELETE).bind(ids).bind(payers).execute(connection).await?;
    Ok(())
}

/// Writes the scales of assets that are new here. A scale that differs stops the move.
pub async fn insert_scales(connection: &mut PgConnection, scales: &[wire::AssetScale]) -> Result<(), MoveError> {
    const INSERT: &str =
        "INSERT INTO shardledger.asset_scale (asset, scale) VALUES ($1, $2) ON CONFLICT (asset) DO NOTHING";
    const SCALE: &str = "SELECT scale::int4 FROM shardledger.asset_scale WHERE asset = $1";
    for wire::AssetScale { asset, scale } in scales {
        let wanted = i16::try_from(*scale).unwrap_or(i16::MAX);
        sqlx::query(INSERT).bind(asset).bind(wanted).execute(&mut *connection).await?;
        let there: i32 = sqlx::query_scalar(SCALE).bind(asset).fetch_one(&mut *connection).await?;
        if there != i32::from(wanted) {
            let what = format!("asset {asset} has {there} decimals here and {wanted} at the source");
            return Err(MoveError::Differs(what));
        }
    }
    Ok(())
}

// === accounts ===

const INSERT_ACCOUNTS: &str = "INSERT INTO shardledger.account (id, slot, asset, status, posted, held, overdraft, max_balance, version, head, opened, \
       metadata, created_at_us, updated_at_us) \
     SELECT * FROM unnest($1::text[], $2::int4[], $3::text[], $4::int2[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::int8[], \
       $10::int8[], $11::int8[], $12::text[], $13::int8[], $14::int8[])";
const UPDATE_ACCOUNTS: &str = "UPDATE shardledger.account AS a \
     SET status = u.status, posted = u.posted, held = u.held, overdraft = u.overdraft, max_balance = u.max_balance, version = u.version, \
       head = u.head, metadata = u.metadata, updated_at_us = u.updated_at_us \
     FROM unnest($1::text[], $2::int2[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::text[], $10::int8[]) \
       AS u(id, status, posted, held, overdraft, max_balance, version, head, metadata, updated_at_us) \
     WHERE a.id = u.id AND a.version < u.version";

async fn insert_accounts(connection: &mut PgConnection, accounts: &[Account]) -> Result<(), StoreError> {
    if accounts.is_empty() {
        return Ok(());
    }
    let slot = |account: &Account| i32::from(slot_column(&account.id));
    sqlx::query(INSERT_ACCOUNTS)
        .bind(accounts.iter().map(|a| a.id.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(slot).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.asset.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| i16::from(a.status.code())).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.posted).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.held).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.overdraft.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.max_balance.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.version).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.head.0).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.opened.0).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.metadata.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.created_at_us).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.updated_at_us).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

async fn update_accounts(connection: &mut PgConnection, accounts: &[Account]) -> Result<(), StoreError> {
    if accounts.is_empty() {
        return Ok(());
    }
    let updated = sqlx::query(UPDATE_ACCOUNTS)
        .bind(accounts.iter().map(|a| a.id.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| i16::from(a.status.code())).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.posted).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.held).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.overdraft.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.max_balance.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.version).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.head.0).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.metadata.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.updated_at_us).collect::<Vec<_>>())
        .execute(connection)
        .await?
        .rows_affected();
    if updated != accounts.len() as u64 {
        let what = format!("{} of {} rows of accounts were updated", updated, accounts.len());
        return Err(StoreError::Corrupt(what));
    }
    Ok(())
}

async fn load_holds(connection: &mut PgConnection, keys: &[HoldKey]) -> Result<HashMap<HoldKey, Hold>, StoreError> {
    const HOLDS: &str = concat!(
        "SELECT ",
        shard_database::journal_columns!(j),
        ", h.captured AS open_captured, h.capture_id, h.capture_amount \
         FROM unnest($1::uuid[], $2::text[]) AS wanted(id, payer) \
         JOIN shardledger.hold h ON h.id = wanted.id AND h.payer = wanted.payer \
         JOIN shardledger.journal j ON j.position = h.position"
    );
    let (ids, payers): (Vec<Uuid>, Vec<&str>) = keys.iter().map(|key| (key.id.0, key.debit.as_str())).unzip();
    let rows = sqlx::query(HOLDS).bind(ids).bind(payers).fetch_all(connection).await?;
    let mut holds = HashMap::with_capacity(rows.len());
    for row in &rows {
        let first = shard_database::journal::booking_from_row(row)?;
        let Some(key) = first.key() else { continue };
        let in_flight = match column::<Option<Uuid>>(row, "capture_id")? {
            Some(id) => Some(CaptureInFlight { capture: TransferId(id), amount: row.try_get("capture_amount")? }),
            None => None,
        };
        let placed = fold::place_hold(&first)?;
        holds.insert(key, Hold { captured: column(row, "open_captured")?, in_flight, ..placed });
    }
    Ok(holds)
}

/// Writes one statement for each kind of change.
async fn write_holds(
    connection: &mut PgConnection,
    HoldChanges { placed, changed, ended }: &HoldChanges,
) -> Result<(), StoreError> {
    const INSERT: &str = "INSERT INTO shardledger.hold (id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, \
           expires_at_us) \
         SELECT id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, expires_at_us \
         FROM unnest($1::uuid[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::int8[], $7::uuid[], $8::int8[], $9::int8[]) \
           AS new(id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, expires_at_us)";
    const CHANGE: &str = "SELECT count(shardledger.change_hold(id, payer, captured, capture_id, capture_amount)) \
         FROM unnest($1::uuid[], $2::text[], $3::int8[], $4::uuid[], $5::int8[]) AS new(id, payer, captured, capture_id, capture_amount)";
    const END: &str =
        "SELECT count(shardledger.end_hold(id, payer)) FROM unnest($1::uuid[], $2::text[]) AS ended(id, payer)";
    if !placed.is_empty() {
        sqlx::query(INSERT)
            .bind(placed.iter().map(|(key, ..)| key.id.0).collect::<Vec<_>>())
            .bind(placed.iter().map(|(key, ..)| key.debit.as_str()).collect::<Vec<_>>())
            .bind(placed.iter().map(|(key, ..)| i32::from(slot_column(&key.debit))).collect::<Vec<_>>())
            .bind(placed.iter().map(|(_, position, _)| position.0).collect::<Vec<_>>())
            .bind(placed.iter().map(|(.., hold)| hold.amount).collect::<Vec<_>>())
            .bind(placed.iter().map(|(.., hold)| hold.captured).collect::<Vec<_>>())
            .bind(placed.iter().map(|(.., hold)| in_flight_id(hold)).collect::<Vec<_>>())
            .bind(placed.iter().map(|(.., hold)| in_flight_amount(hold)).collect::<Vec<_>>())
            .bind(placed.iter().map(|(.., hold)| hold.expires_at_us).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
    }
    if !changed.is_empty() {
        sqlx::query(CHANGE)
            .bind(changed.iter().map(|(key, _)| key.id.0).collect::<Vec<_>>())
            .bind(changed.iter().map(|(key, _)| key.debit.as_str()).collect::<Vec<_>>())
            .bind(changed.iter().map(|(_, hold)| hold.captured).collect::<Vec<_>>())
            .bind(changed.iter().map(|(_, hold)| in_flight_id(hold)).collect::<Vec<_>>())
            .bind(changed.iter().map(|(_, hold)| in_flight_amount(hold)).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
    }
    if !ended.is_empty() {
        sqlx::query(END)
            .bind(ended.iter().map(|key| key.id.0).collect::<Vec<_>>())
            .bind(ended.iter().map(|key| key.debit.as_str()).collect::<Vec<_>>())
            .execute(connection)
            .await?;
    }
    Ok(())
}

fn in_flight_id(hold: &Hold) -> Option<Uuid> {
    hold.in_flight.map(|capture| capture.capture.0)
}

fn in_flight_amount(hold: &Hold) -> i64 {
    hold.in_flight.map_or(0, |capture| capture.amount)
}
