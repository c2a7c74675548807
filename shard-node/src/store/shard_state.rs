//! `shard_state`: who this shard is, how far its journal has come, and which version of slot ownership is in force.

use ledger::Position;
use sqlx::PgConnection;

use super::{
    StoreError,
    session::{Session, column},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardState {
    pub shard_id: String,
    pub shard_number: u16,
    pub next_position: Position,
    pub ownership_version: i64,
}

const SELECT: &str = "SELECT shard_id, shard_number, next_position, ownership_version FROM shard_state";

pub async fn load(session: &mut Session) -> Result<Option<ShardState>, StoreError> {
    let row = session.run(async |c| sqlx::query(SELECT).fetch_optional(c).await).await?;
    row.map(|row| {
        let number: i32 = column(&row, "shard_number")?;
        Ok(ShardState {
            shard_id: column(&row, "shard_id")?,
            shard_number: u16::try_from(number)
                .map_err(|_| StoreError::Corrupt(format!("shard_state.shard_number is {number}")))?,
            next_position: Position(column(&row, "next_position")?),
            ownership_version: column(&row, "ownership_version")?,
        })
    })
    .transpose()
}

const IDENTITY: &str = "SELECT shard_id, shard_number FROM shard_state";

/// Which shard the database is, as (id, number). `None`: it was never initialised.
pub async fn identity(connection: &mut PgConnection) -> Result<Option<(String, i32)>, sqlx::Error> {
    sqlx::query_as(IDENTITY).fetch_optional(connection).await
}

const INSERT: &str = "INSERT INTO shard_state (shard_id, shard_number, next_position, ownership_version, shard_map, \
     shard_map_version) VALUES ($1, $2, $3, 1, $4, $5)";

/// Makes the database this shard. The one-row constraint makes a second initialiser fail.
pub async fn initialise(
    connection: &mut PgConnection,
    shard: &shard_map::Shard,
    map: &shard_map::ShardMap,
) -> Result<(), sqlx::Error> {
    sqlx::query(INSERT)
        .bind(&shard.id)
        .bind(i32::from(shard.number))
        .bind(Position::first_of(shard.number).0)
        .bind(map.to_toml())
        .bind(i64::try_from(map.version).unwrap_or(i64::MAX))
        .execute(connection)
        .await?;
    Ok(())
}

/// Begins the write transaction and passes the fence, in one round trip.
///
/// The compare-and-set locks the row until COMMIT, so a second writer (another node on the shard, or the backend of a
/// commit whose answer was lost) is waited for, and then found out: it has moved `next_position`.
pub async fn begin_fenced(session: &mut Session, from: &ShardState, next: Position) -> Result<(), StoreError> {
    let script = format!(
        "BEGIN; UPDATE shard_state SET next_position = {} WHERE next_position = {} AND ownership_version = {}",
        next.0, from.next_position.0, from.ownership_version
    );
    if session.run_script(script).await? == 1 { Ok(()) } else { Err(StoreError::Fenced) }
}

// SHARE conflicts with the ROW EXCLUSIVE lock that every writer holds until its transaction has ended.
const AWAIT_WRITERS: &str = "BEGIN; LOCK TABLE shard_state IN SHARE MODE; COMMIT";

/// For a batch that writes nothing: is what it was decided on still so?
///
/// Whoever is in the middle of a COMMIT is waited for first. It may be the earlier sending of an operation of this batch,
/// and "no such account, nothing stored" must not be followed by its effect. Compared with the compare-and-set of a batch
/// that writes, the table lock leaves nothing to be flushed.
pub async fn check_unchanged(session: &mut Session, state: &ShardState) -> Result<(), StoreError> {
    session.run_script(AWAIT_WRITERS.to_owned()).await?;
    match load(session).await? {
        Some(now) if now == *state => Ok(()),
        _ => Err(StoreError::Fenced),
    }
}
