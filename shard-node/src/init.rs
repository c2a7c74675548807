//! `shard-node init`: makes an empty database a shard, once, on an operator's word.
//!
//! Serving never does this by itself: a node that finds an empty database where its shard should be must not begin a new
//! ledger there.

use shard_map::ShardMap;
use sqlx::PgConnection;

use crate::store::{migrations, ownership, shard_state};

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

/// Migrates, and claims at epoch 1 the slots that the map gives to `shard_id`. Only the first call claims.
pub async fn init(connection: &mut PgConnection, shard_id: &str, map: &ShardMap) -> Result<Initialised, InitError> {
    migrations::run(connection).await?;
    let shard =
        map.shards.iter().find(|s| s.id == shard_id).ok_or_else(|| InitError::NotInMap(shard_id.to_owned()))?;
    let number = i32::from(shard.number);
    if let Some((found, found_number)) = shard_state::identity(connection).await? {
        if found == shard_id && found_number == number {
            return Ok(Initialised::Already);
        }
        let wanted = shard_id.to_owned();
        return Err(InitError::OtherShard { found, found_number, wanted, wanted_number: number });
    }
    let slots: Vec<i32> =
        shard.slots.iter().flat_map(|range| range.slots()).map(|slot| slot.index().into()).collect();
    let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
    shard_state::initialise(&mut transaction, shard, map).await?;
    let claimed = slots.len();
    ownership::claim(&mut transaction, slots).await?;
    transaction.commit().await?;
    Ok(Initialised::Now { slots: claimed })
}
