//! Reads for clients and routers. Each read is one statement, so it sees one snapshot. The statement also reads the
//! ownership of the slot, so that a shard never answers for a slot it has given away, and the highest position, so that the
//! caller notices bookings of another node of the shard.

use std::sync::Arc;

use identity::Mark;
use ledger::{Account, AccountId, Position, outcome::NotOwner};
use shard_database::{ShardState, account::account_from_row, account_columns, journal::slot_column, record};
use sqlx::{PgPool, postgres::PgRow};

use super::{
    StoreError,
    ownership::{Ownership, SlotState},
    session::column,
};

/// Where a node reads what clients and routers ask for.
#[derive(Debug, Clone)]
pub enum Readable {
    Database(PgPool),
    /// It answers what routers need to send and to finish transfers, and reads of one account, transfer or hold.
    #[cfg(any(test, feature = "simulation"))]
    Memory(super::memory::Database),
}

impl Readable {
    /// The connections to the database.
    ///
    /// # Errors
    /// In memory, where there are none.
    pub fn pool(&self) -> Result<&PgPool, StoreError> {
        match self {
            Self::Database(pool) => Ok(pool),
            #[cfg(any(test, feature = "simulation"))]
            Self::Memory(_) => Err(StoreError::NotOpen),
        }
    }

    /// How many reads for clients may go on at once. One connection stays free for the routers' own queries: due sagas, ownership, status.
    pub fn turns(&self) -> usize {
        match self {
            Self::Database(pool) => {
                let turns = pool.options().get_max_connections().saturating_sub(1).max(1);
                usize::try_from(turns).unwrap_or(1)
            }
            #[cfg(any(test, feature = "simulation"))]
            Self::Memory(_) => 1,
        }
    }
}

/// The result of a read that requires the shard to own the slot.
pub enum Owned<T> {
    Here(T),
    NotHere(NotOwner),
}

/// The highest position of the shard's own range (NULL: nothing was ever booked), and the folded position.
macro_rules! highest {
    () => {
        concat!(
            "(SELECT ",
            shard_database::highest_position!(),
            " FROM shardledger.shard_identity i) AS highest, \
             (SELECT f.folded_position FROM shardledger.fold_state f) AS folded"
        )
    };
}
pub(super) use highest;

/// How far the snapshot of a read reached.
#[derive(Debug, Clone, Copy)]
pub struct Reached {
    /// The end of the journal.
    pub highest: Position,
    /// The end of the projections.
    pub folded: Position,
}

impl Reached {
    pub(super) fn from_row(row: &PgRow) -> Result<Self, StoreError> {
        let highest = column::<Option<i64>>(row, "highest")?;
        Ok(Self { highest: Position(highest.unwrap_or(0)), folded: Position(column(row, "folded")?) })
    }
}

const ACCOUNT: &str = concat!(
    "SELECT ",
    account_columns!(),
    ", o.state AS slot_state, o.epoch AS slot_epoch, o.peer AS slot_peer, ",
    highest!(),
    " FROM (SELECT $2::int AS slot) AS wanted \
     LEFT JOIN shardledger.slot_ownership o ON o.slot = wanted.slot \
     LEFT JOIN shardledger.account a ON a.id = $1 AND a.slot = wanted.slot"
);

/// The account's row, which the tail may be ahead of, and how far its snapshot reached.
pub async fn account(from: &Readable, id: &AccountId) -> Result<Owned<(Option<Account>, Reached)>, StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_account(id).await;
    }
    let pool = from.pool()?;
    let slot = i32::from(slot_column(id));
    let row = sqlx::query(ACCOUNT).bind(id.as_str()).bind(slot).fetch_one(pool).await?;
    if let Some(not_owner) = not_owner(&row, slot)? {
        return Ok(Owned::NotHere(not_owner));
    }
    let reached = Reached::from_row(&row)?;
    let is_there = column::<Option<&str>>(&row, "id")?.is_some();
    let account = if is_there { Some(account_from_row(&row)?) } else { None };
    Ok(Owned::Here((account, reached)))
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

// Holds in slots that moved away are expired by the new owner.
const DUE_HOLDS: &str = "SELECT h.id, h.payer FROM shardledger.hold h \
     JOIN shardledger.slot_ownership o ON o.slot = h.payer_slot AND o.state = 1 \
     WHERE h.capture_id IS NULL AND h.expires_at_us <= $1 ORDER BY h.expires_at_us LIMIT $2";

/// Holds whose time is over, as (id, payer), longest overdue first.
pub async fn due_holds(from: &Readable, now_us: i64, limit: i64) -> Result<Vec<(uuid::Uuid, String)>, StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.due_holds(now_us, limit);
    }
    let pool = from.pool()?;
    Ok(sqlx::query_as(DUE_HOLDS).bind(now_us).bind(limit).fetch_all(pool).await?)
}

const OVERDUE_HOLDS: &str = "SELECT count(*), min(due.expires_at_us) FROM (SELECT h.expires_at_us FROM shardledger.hold h \
     JOIN shardledger.slot_ownership o ON o.slot = h.payer_slot AND o.state = 1 \
     WHERE h.capture_id IS NULL AND h.expires_at_us <= $1 ORDER BY h.expires_at_us LIMIT $2) AS due";

/// How many holds should have expired by `before_us`, counted up to `limit`, and when the oldest of them should have.
pub async fn overdue_holds(pool: &PgPool, before_us: i64, limit: i64) -> Result<(i64, Option<i64>), StoreError> {
    Ok(sqlx::query_as(OVERDUE_HOLDS).bind(before_us).bind(limit).fetch_one(pool).await?)
}

const SHARD_MAP: &str = "SELECT text, version FROM shardledger.known_map";
const OFFER_SHARD_MAP: &str = "UPDATE shardledger.known_map SET text = $1, version = $2 WHERE version < $2";

/// The newest shard map this shard was given: its text and version.
pub async fn shard_map(from: &Readable) -> Result<(String, i64), StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_map();
    }
    let pool = from.pool()?;
    Ok(sqlx::query_as(SHARD_MAP).fetch_one(pool).await?)
}

/// Stores a shard map if it is newer than the stored one.
pub async fn offer_shard_map(to: &Readable, text: &str, version: i64) -> Result<(), StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = to {
        return database.offer_map(text, version);
    }
    sqlx::query(OFFER_SHARD_MAP).bind(text).bind(version).execute(to.pool()?).await?;
    Ok(())
}

/// The database's mark, without the timeline.
pub async fn mark(from: &Readable) -> Result<Mark, StoreError> {
    let of =
        |state: ShardState| Mark { incarnation: state.incarnation, position: state.next_position, ..Mark::default() };
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_state().map(of);
    }
    let pool = from.pool()?;
    let state = record::read_state(&mut *pool.acquire().await?).await?;
    state.map(of).ok_or_else(|| StoreError::Corrupt("shardledger.shard_state has no row".to_owned()))
}

pub async fn ownership(from: &Readable) -> Result<Arc<Ownership>, StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_ownership();
    }
    let rows = sqlx::query(super::ownership::SELECT).fetch_all(from.pool()?).await?;
    super::ownership::from_rows(&rows).map(Arc::new)
}
