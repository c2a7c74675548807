//! `shard-node accept`: the operator declares that the database, in its present state, is the shard.
//!
//! It is needed when the database was moved into another PostgreSQL or copied within one, and when it lacks something that was
//! acknowledged. Both begin a new incarnation, so that every holder of an older mark can tell the two apart.

use std::time::{Duration, Instant};

use certificates::Mutual;
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
        "{holder} remembers that the shard had reached {acknowledged}, but the database is at {found}: what was acknowledged in between is \
         missing. Restore the newest backup or promote another stand-by; to continue without it, add --accept-loss. Nothing was changed"
    )]
    Loss { holder: String, acknowledged: Mark, found: Mark },
    #[error(
        "{silent}. What these shards remember decides whether the database lacks something: start their nodes and try again, or use --wait SECONDS. To go on \
         without asking them, add --accept-loss. Nothing was changed"
    )]
    NotAsked { silent: String },
    #[error(
        "a node of this shard serves another database, which may hold more: stop that node before you accept this one. Nothing was changed"
    )]
    ServedElsewhere,
    #[error("the shard map in the database cannot be read: {0}")]
    Map(#[from] shard_map::MapError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// What [`accept`] found or did.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The database is in its last known state; there is nothing to accept.
    Nothing,
    Incarnation {
        mark: Mark,
        lost: Option<Mark>,
        silent: Vec<String>,
    },
}

/// Accepts the database. With `accept_loss` it also accepts a database that lacks what other shards remember. Waits for
/// the other shards' answers for at most `patience`.
pub async fn accept(
    connection: &mut PgConnection,
    gate: &Gate,
    accept_loss: bool,
    patience: Duration,
    tls: Option<&Mutual>,
) -> Result<Accepted, AcceptError> {
    let facts = ServerFacts::read(connection, &READ_SETTINGS).await?;
    let refused = |found| Disagreements::check(found).map_err(AcceptError::Refused);
    refused(facts.disagreements(Purpose::Writes, &READ_SETTINGS))?;
    let Database::Shard(record) = database::read(connection).await? else { return Err(AcceptError::Uninitialised) };
    refused(record.compare(gate.expected()))?;
    let latest = Instant::now() + patience;
    let Remembered { mark: acknowledged, holder, silent, serves } = loop {
        let remembered = what_others_remember(connection, &record, tls).await?;
        if remembered.silent.is_empty() || Instant::now() >= latest {
            break remembered;
        }
        tokio::time::sleep(crate::ASK_AGAIN).await;
    };
    let timeline = facts.timeline.unwrap_or(record.timeline);
    let found = record.mark_on(timeline);
    let lost = found.is_behind(acknowledged).then_some(acknowledged);
    if lost.is_some() && !accept_loss {
        return Err(AcceptError::Loss { holder, acknowledged, found });
    }
    let moved = facts.system_identifier != record.system_identifier || facts.database_oid != record.database_oid;
    if moved && serves {
        return Err(AcceptError::ServedElsewhere);
    }
    // A loss that only routers know of is not visible here. `accept_loss` says that the operator has read the
    // routers' refusal.
    if lost.is_none() && !moved && (serves || !accept_loss) {
        // A shard that did not answer may remember a higher mark.
        if !serves && !silent.is_empty() {
            return Err(AcceptError::NotAsked { silent: silent.join("; ") });
        }
        return Ok(Accepted::Nothing);
    }
    let reason = match (moved, lost) {
        (true, None) => "moved into another database",
        (true, Some(_)) => "moved into another database, with a loss",
        (false, _) => "accepted with a loss",
    };
    let mark = database::begin_incarnation(connection, &record, acknowledged, facts.id(), timeline, reason).await?;
    Ok(Accepted::Incarnation { mark, lost, silent })
}

/// What the other shards, and a node of this shard, report about this shard.
#[derive(Debug, Default)]
struct Remembered {
    /// The highest reported mark of this shard.
    mark: Mark,
    /// The shard or node that reported the mark.
    holder: String,
    /// The shards that did not answer or do not serve.
    silent: Vec<String>,
    /// Whether a node of this shard serves.
    serves: bool,
}

/// Asks the nodes of all shards for the marks of this shard. A node of this shard that refuses its database is asked
/// too, because it knows the routers' marks.
async fn what_others_remember(
    connection: &mut PgConnection,
    record: &ShardRecord,
    tls: Option<&Mutual>,
) -> Result<Remembered, AcceptError> {
    let text: String = sqlx::query_scalar("SELECT text FROM shardledger.known_map").fetch_one(connection).await?;
    let map = ShardMap::parse(&text)?;
    let mut remembered = Remembered::default();
    for other in &map.shards {
        let is_this = other.id == record.identity.shard;
        match peers::ask(other, &map, &format!("accept of shard {}", record.identity.shard), tls).await {
            // The node of this shard serves, so the database contains everything it has acknowledged.
            Ok(answer) if is_this && answer.identified.refused.is_empty() => {
                remembered.serves = answer.identified.reads.is_some_and(|reads| reads.works);
            }
            // The other shard's node refuses its own database, so its marks may come from a wrong database.
            Ok(answer)
                if !is_this && (!answer.identified.refused.is_empty() || answer.identified.identity.is_none()) =>
            {
                remembered.silent.push(format!("shard {} does not serve", other.id));
            }
            Ok(answer) => {
                let own = |mark: &&wire::ShardMark| mark.shard_number == u32::from(record.identity.number);
                if let Some(mark) = answer.identified.marks.iter().find(own).and_then(|mark| mark.mark) {
                    let merged = remembered.mark.merged(mark.into());
                    if merged != remembered.mark {
                        let name = if is_this { "the node of shard" } else { "shard" };
                        remembered.mark = merged;
                        remembered.holder = format!("{name} {}", other.id);
                    }
                }
            }
            Err(_) if is_this => {}
            Err(no_answer) => remembered.silent.push(no_answer.to_string()),
        }
    }
    Ok(remembered)
}
