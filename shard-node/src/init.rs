//! `shard-node init`: makes an empty database a shard, once, on an operator's word.
//!
//! Serving never does this by itself: a node that finds an empty database where its shard should be must not begin a new
//! ledger there.

use ledger::Position;
use shard_map::ShardMap;
use sqlx::PgConnection;

use crate::store::migrations;

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("the shard map has no shard {0:?}")]
    NotInMap(String),
    #[error(
        "the database belongs to shard {found:?} (number {found_number}), not to {wanted:?} (number {wanted_number})"
    )]
    OtherShard { found: String, found_number: i32, wanted: String, wanted_number: i32 },
    #[error(transparent)]
    Migration(#[from] migrations::MigrationError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What [`init`] found or did.
#[derive(Debug, PartialEq, Eq)]
pub enum Initialised {
    Now { slots: usize },
    Already,
}

const EXISTING: &str = "SELECT shard_id, shard_number FROM shard_state";
const INSERT_STATE: &str = "INSERT INTO shard_state (shard_id, shard_number, next_position, ownership_version, shard_map, \
     shard_map_version) VALUES ($1, $2, $3, 1, $4, $5)";
const CLAIM_SLOTS: &str =
    "INSERT INTO slot_ownership (slot, state, epoch) SELECT slot, 1, 1 FROM unnest($1::int[]) AS s(slot)";

/// Migrates, and claims at epoch 1 the slots that the map gives to `shard_id`. Only the first call claims.
pub async fn init(connection: &mut PgConnection, shard_id: &str, map: &ShardMap) -> Result<Initialised, InitError> {
    migrations::run(connection).await?;
    let shard =
        map.shards.iter().find(|s| s.id == shard_id).ok_or_else(|| InitError::NotInMap(shard_id.to_owned()))?;
    let number = i32::from(shard.number);
    let existing: Option<(String, i32)> = sqlx::query_as(EXISTING).fetch_optional(&mut *connection).await?;
    if let Some((found, found_number)) = existing {
        if found == shard_id && found_number == number {
            return Ok(Initialised::Already);
        }
        let wanted = shard_id.to_owned();
        return Err(InitError::OtherShard { found, found_number, wanted, wanted_number: number });
    }
    let slots: Vec<i32> =
        shard.slots.iter().flat_map(|range| range.slots()).map(|slot| slot.index().into()).collect();
    let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
    // The one-row constraint makes a second initialiser fail here.
    sqlx::query(INSERT_STATE)
        .bind(shard_id)
        .bind(number)
        .bind(Position::first_of(shard.number).0)
        .bind(map.to_toml())
        .bind(i64::try_from(map.version).unwrap_or(i64::MAX))
        .execute(&mut *transaction)
        .await?;
    let claimed = slots.len();
    sqlx::query(CLAIM_SLOTS).bind(slots).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Initialised::Now { slots: claimed })
}
