//! `shard_state`: the row that every write compares and advances (`docs/adr/0001`).

use ledger::Position;
use shard_database::{ShardState, record};

use super::{StoreError, session::Session};

pub async fn load(session: &mut Session) -> Result<ShardState, StoreError> {
    let state = session.run(async |c| record::read_state(c).await).await?;
    state.ok_or_else(|| StoreError::Corrupt("shardledger.shard_state has no row".to_owned()))
}

/// Begins the write transaction and passes the fence, in one round trip.
///
/// The compare-and-set locks the row until COMMIT, so this transaction waits for a second writer: another node of the
/// shard, or the backend of a commit whose answer was lost. The comparison then fails, because that writer has
/// advanced `next_position`. After a migration or a new incarnation it fails on their columns.
pub async fn begin_fenced(session: &mut Session, from: &ShardState, next: Position) -> Result<(), StoreError> {
    let ShardState { next_position, ownership_version, incarnation, schema_version } = from;
    let script = format!(
        "BEGIN; UPDATE shardledger.shard_state SET next_position = {} WHERE next_position = {next_position} AND \
         ownership_version = {ownership_version} AND incarnation = {incarnation} AND schema_version = {schema_version}",
        next.0
    );
    if session.run_script(script).await? == 1 { Ok(()) } else { Err(StoreError::Fenced) }
}

/// Commits a transaction that changes nothing, to find out whether the database takes writes.
pub async fn probe(session: &mut Session, state: &ShardState) -> Result<(), StoreError> {
    begin_fenced(session, state, Position(state.next_position)).await?;
    session.commit(String::new()).await
}

// SHARE conflicts with the ROW EXCLUSIVE lock that every writer holds until its transaction has ended.
const AWAIT_WRITERS: &str = "BEGIN; LOCK TABLE shardledger.shard_state IN SHARE MODE; COMMIT";

/// For a batch that writes nothing: fails if the state it was decided on has changed.
///
/// A writer in the middle of a COMMIT is waited for first. That writer may be an earlier attempt at an operation of
/// this batch, and the answer "no such account, nothing stored" must not be followed by the operation's effect.
/// Unlike the compare-and-set of a writing batch, the table lock requires no flush to disk.
pub async fn check_unchanged(session: &mut Session, state: &ShardState) -> Result<(), StoreError> {
    session.run_script(AWAIT_WRITERS.to_owned()).await?;
    if load(session).await? == *state { Ok(()) } else { Err(StoreError::Fenced) }
}
