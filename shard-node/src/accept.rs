//! `shard-node accept`: an operator's word that the database as it is now is the shard from here on.
//!
//! Needed when the database was moved into another PostgreSQL, and when it lacks something that was acknowledged. Either begins a
//! new incarnation, so that everybody who remembers the former one can tell.

use identity::{Disagreements, Mark};
use shard_database::{
    Database,
    record::{self as database, ShardRecord},
    server::{Purpose, ServerFacts},
};
use shard_map::ShardMap;
use sqlx::PgConnection;

use crate::{gate::Gate, peers, store::session::READ_SETTINGS};

#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the database holds no shard: there is nothing to accept")]
    Uninitialised,
    #[error("the database cannot be this shard: {0}")]
    Refused(Disagreements),
    #[error(
        "{holder} remembers that the shard had come to {acknowledged}, and the database is at {found}: what was acknowledged in between is \
         not there. Restore the newest backup or promote another stand-by; to go on without it, add --accept-loss. Nothing was changed"
    )]
    Loss { holder: String, acknowledged: Mark, found: Mark },
    #[error("the shard map in the database cannot be read: {0}")]
    Map(#[from] shard_map::MapError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What [`accept`] found or did.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The database is the shard as it was left.
    Nothing,
    Incarnation {
        mark: Mark,
        lost: Option<Mark>,
        silent: Vec<String>,
    },
}

/// Accepts the database. With `accept_loss`, also one that lacks what others remember.
pub async fn accept(connection: &mut PgConnection, gate: &Gate, accept_loss: bool) -> Result<Accepted, AcceptError> {
    let facts = ServerFacts::read(connection, &READ_SETTINGS).await?;
    let refused = |found| Disagreements::check(found).map_err(AcceptError::Refused);
    refused(facts.disagreements(Purpose::Writes, &READ_SETTINGS))?;
    let Database::Shard(record) = database::read(connection).await? else { return Err(AcceptError::Uninitialised) };
    refused(record.compare(gate.expected()))?;
    let (acknowledged, holder, silent) = what_others_remember(connection, &record).await?;
    let timeline = facts.timeline.unwrap_or(record.timeline);
    let found = Mark { timeline, ..record.mark() };
    let lost = found.is_behind(acknowledged).then_some(acknowledged);
    if lost.is_some() && !accept_loss {
        return Err(AcceptError::Loss { holder, acknowledged, found });
    }
    let moved = facts.system_identifier != record.system_identifier;
    // What only routers remember may not be known here: the operator has read it in their refusal, and says so.
    if lost.is_none() && !moved && !accept_loss {
        return Ok(Accepted::Nothing);
    }
    let reason = match (moved, lost) {
        (true, None) => "moved into another PostgreSQL",
        (true, Some(_)) => "moved into another PostgreSQL, with a loss",
        (false, _) => "accepted with a loss",
    };
    let server = (facts.system_identifier, timeline);
    let mark = database::begin_incarnation(connection, &record, acknowledged, server, reason).await?;
    Ok(Accepted::Incarnation { mark, lost, silent })
}

/// The highest mark of this shard that another shard holds, who holds it, and the shards that did not answer. A node of this shard
/// that runs and refuses the database is asked as well: it knows what routers remember.
async fn what_others_remember(
    connection: &mut PgConnection,
    record: &ShardRecord,
) -> Result<(Mark, String, Vec<String>), AcceptError> {
    let text: String = sqlx::query_scalar("SELECT text FROM shardledger.known_map").fetch_one(connection).await?;
    let map = ShardMap::parse(&text)?;
    let (mut highest, mut holder, mut silent) = (Mark::default(), String::new(), Vec::new());
    for other in &map.shards {
        let is_this = other.id == record.identity.shard;
        match peers::ask(other, &map, &format!("accept of shard {}", record.identity.shard)).await {
            // It serves: what it has acknowledged is in the database.
            Ok(answer) if is_this && answer.identified.refused.is_empty() => {}
            // It does not serve its own shard: what it says of this one may be of another database.
            Ok(answer)
                if !is_this && (!answer.identified.refused.is_empty() || answer.identified.identity.is_none()) =>
            {
                silent.push(format!("shard {} does not serve", other.id));
            }
            Ok(answer) => {
                let own = |mark: &&wire::ShardMark| mark.shard_number == u32::from(record.identity.number);
                if let Some(mark) = answer.identified.marks.iter().find(own).and_then(|mark| mark.mark) {
                    let merged = highest.merged(mark.into());
                    if merged != highest {
                        let name = if is_this { "the node of shard" } else { "shard" };
                        (highest, holder) = (merged, format!("{name} {}", other.id));
                    }
                }
            }
            Err(_) if is_this => {}
            Err(no_answer) => silent.push(no_answer.to_string()),
        }
    }
    Ok((highest, holder, silent))
}
