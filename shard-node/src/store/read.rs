//! Reads. Each read is one statement, so it sees one snapshot. The statement also reads the ownership of the slot, so
//! that a shard never answers for a slot it has given away.

use identity::Mark;
use ledger::{AccountId, Limit, outcome::NotOwner};
use sqlx::{PgPool, postgres::PgRow};

use super::{StoreError, columns::columns, ownership::SlotState, session::column, slot_column};

/// The result of a read that requires the shard to own the slot.
pub enum Owned<T> {
    Here(T),
    NotHere(NotOwner),
}

const ACCOUNT: &str = concat!(
    "SELECT o.state AS slot_state, o.epoch AS slot_epoch, o.peer AS slot_peer, ",
    columns!(a: account),
    " FROM (SELECT $2::int AS slot) AS wanted \
     LEFT JOIN shardledger.slot_ownership o ON o.slot = wanted.slot \
     LEFT JOIN shardledger.account a ON a.id = $1 AND a.slot = wanted.slot"
);

/// The account's row; `None` if the account does not exist.
pub async fn account(pool: &PgPool, id: &AccountId) -> Result<Owned<Option<PgRow>>, StoreError> {
    let slot = slot_column(id);
    let row = sqlx::query(ACCOUNT).bind(id.as_str()).bind(slot).fetch_one(pool).await?;
    if let Some(not_owner) = not_owner(&row, slot)? {
        return Ok(Owned::NotHere(not_owner));
    }
    let found: Option<&str> = column(&row, "id")?;
    let found = found.is_some();
    Ok(Owned::Here(found.then_some(row)))
}

fn not_owner(row: &PgRow, slot: i32) -> Result<Option<NotOwner>, StoreError> {
    let state: Option<i16> = column(row, "slot_state")?;
    if state == Some(SlotState::Owned as i16) {
        return Ok(None);
    }
    let epoch: Option<i64> = column(row, "slot_epoch")?;
    let peer: Option<&str> = column(row, "slot_peer")?;
    Ok(Some(NotOwner {
        slot: u16::try_from(slot).unwrap_or(0),
        state: state.and_then(|s| u8::try_from(s).ok()).unwrap_or(0),
        epoch: epoch.unwrap_or(0),
        owner: peer.unwrap_or_default().to_owned(),
    }))
}

/// One journal entry as the wire carries it.
pub fn entry_from_row(row: &PgRow) -> Result<wire::Entry, StoreError> {
    let kind: i16 = column(row, "kind")?;
    let transfer: Option<uuid::Uuid> = column(row, "transfer_id")?;
    let counterparty: Option<String> = column(row, "counterparty")?;
    Ok(wire::Entry {
        position: column(row, "position")?,
        version: column(row, "version")?,
        kind: u32::try_from(kind).unwrap_or(0),
        transfer_id: transfer.map(|id| bytes::Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default(),
        counterparty: counterparty.unwrap_or_default(),
        amount: column(row, "amount")?,
        posted: column(row, "posted")?,
        held: column(row, "held")?,
        created_at_us: column(row, "created_at_us")?,
        overdraft: Some(Limit::from_nullable(column(row, "overdraft")?).into()),
    })
}

const TRANSFERS: &str = concat!(
    "SELECT ",
    columns!(t: transfer),
    ", ",
    columns!(j: debit_after),
    " FROM shardledger.transfer t LEFT JOIN shardledger.journal j ON j.position = t.debit_position \
     WHERE t.id = $1 AND ($2 = '' OR t.debit = $2)"
);

pub async fn transfers(pool: &PgPool, id: uuid::Uuid, debit: &str) -> Result<Vec<PgRow>, StoreError> {
    Ok(sqlx::query(TRANSFERS).bind(id).bind(debit).fetch_all(pool).await?)
}

// A few rows are enough for a display; the total is in the transfer's own row.
const REVERSALS: &str = "SELECT reversal FROM shardledger.reversal WHERE original = $1 AND debit = $2 \
     ORDER BY created_at_us, reversal LIMIT 100";

/// The reversals of a transfer, the first hundred.
pub async fn reversals(pool: &PgPool, id: uuid::Uuid, debit: &str) -> Result<Vec<uuid::Uuid>, StoreError> {
    Ok(sqlx::query_scalar(REVERSALS).bind(id).bind(debit).fetch_all(pool).await?)
}

const HOLDS: &str = concat!(
    "SELECT ",
    columns!(h: hold),
    ", ",
    columns!(j: debit_after),
    " FROM shardledger.hold h LEFT JOIN shardledger.journal j ON j.position = h.debit_position \
     WHERE h.id = $1 AND ($2 = '' OR h.debit = $2)"
);

pub async fn holds(pool: &PgPool, id: uuid::Uuid, debit: &str) -> Result<Vec<PgRow>, StoreError> {
    Ok(sqlx::query(HOLDS).bind(id).bind(debit).fetch_all(pool).await?)
}

// Holds in slots that moved away are expired by the new owner.
const DUE_HOLDS: &str = "SELECT h.id, h.debit FROM shardledger.hold h JOIN shardledger.slot_ownership o ON o.slot = h.slot AND o.state = 1 \
     WHERE h.status = 1 AND h.capture_id IS NULL AND h.expires_at_us <= $1 ORDER BY h.expires_at_us LIMIT $2";

/// Holds whose time is over, as (id, debit), longest overdue first.
pub async fn due_holds(pool: &PgPool, now_us: i64, limit: i64) -> Result<Vec<(uuid::Uuid, String)>, StoreError> {
    Ok(sqlx::query_as(DUE_HOLDS).bind(now_us).bind(limit).fetch_all(pool).await?)
}

const REGISTERS: &str = concat!(
    "SELECT ",
    columns!(register),
    " FROM shardledger.register WHERE transfer_id = $1 AND ($2 = '' OR debit = $2)"
);

pub async fn registers(pool: &PgPool, id: uuid::Uuid, debit: &str) -> Result<Vec<PgRow>, StoreError> {
    Ok(sqlx::query(REGISTERS).bind(id).bind(debit).fetch_all(pool).await?)
}

const SHARD_MAP: &str = "SELECT text, version FROM shardledger.known_map";
const OFFER_SHARD_MAP: &str = "UPDATE shardledger.known_map SET text = $1, version = $2 WHERE version < $2";

/// The newest shard map this shard was given: its text and version.
pub async fn shard_map(pool: &PgPool) -> Result<(String, i64), StoreError> {
    Ok(sqlx::query_as(SHARD_MAP).fetch_one(pool).await?)
}

/// Stores a shard map if it is newer than the stored one.
pub async fn offer_shard_map(pool: &PgPool, text: &str, version: i64) -> Result<(), StoreError> {
    sqlx::query(OFFER_SHARD_MAP).bind(text).bind(version).execute(pool).await?;
    Ok(())
}

const MARK: &str = "SELECT incarnation, next_position FROM shardledger.shard_state";

/// The database's mark, without the timeline.
pub async fn mark(pool: &PgPool) -> Result<Mark, StoreError> {
    let (incarnation, position) = sqlx::query_as(MARK).fetch_one(pool).await?;
    Ok(Mark { incarnation, timeline: 0, position })
}

pub async fn ownership(pool: &PgPool) -> Result<super::ownership::Ownership, StoreError> {
    let rows = sqlx::query(super::ownership::SELECT).fetch_all(pool).await?;
    super::ownership::from_rows(&rows)
}
