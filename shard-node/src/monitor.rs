//! The monitor looks at the database once a second. It checks that the database is still the shard and that reads
//! work, and measures the server's clock.

use std::{sync::Arc, time::Duration};

use identity::{Marks, time::OtherClock};
use shard_database::{
    Database,
    record::{self, remember_server},
    server::{Purpose, ServerFacts},
};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{NodeClock, steady_us},
    gate::{Acknowledged, Gate},
    hosts::Hosts,
    role::NodeRole,
    store::{
        StoreError, evidence,
        session::{READ_SETTINGS, WRITER, connect_to_primary, look},
    },
};

const EVERY: Duration = Duration::from_secs(1);
/// A look that takes longer counts as failed, so that readiness reflects an outage quickly.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time limit for each of several hosts. It leaves time for the look itself.
const HOST_PATIENCE: Duration = Duration::from_millis(1500);
/// Number of looks on one connection.
const CONNECT_EVERY: u32 = 5;
/// Number of looks between two removals of outdated marks.
const PRUNE_EVERY: u32 = 15;

/// Whether another node of the shard has a session that writes. Sessions of other roles are not told apart.
const OTHER_WRITERS: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a \
     WHERE pg_catalog.starts_with(a.application_name, $1) AND a.application_name <> $2 AND a.datname = current_database() AND a.usename = CURRENT_USER)";

pub struct Monitor {
    pub hosts: Hosts,
    pub pool: PgPool,
    pub gate: Gate,
    pub role: NodeRole,
    pub clock: Arc<NodeClock>,
}

impl Monitor {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut looks = 0_u32;
        let mut stored = Marks::default();
        // The monitor has its own connection: the pool has none to a refused database, and the monitor must notice
        // when the refusal ends.
        let mut connection = None;
        while shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            // Connect again every few looks: the address may lead to another server while connections to the former
            // one stay open, or another host may be the primary. If that fails, the old connection shows whether the
            // database still answers.
            if looks.is_multiple_of(CONNECT_EVERY)
                && let Ok(Ok(new)) = timeout(PATIENCE, self.connect()).await
            {
                connection = Some(new);
            }
            let looked = timeout(PATIENCE, self.look_once(&mut connection)).await;
            // An I/O error means that the server is unreachable, so writes fail too, and so does a shard without a
            // primary. Any other error may concern only this connection.
            let is_unreachable =
                matches!(looked, Ok(Err(StoreError::Database(sqlx::Error::Io(_)) | StoreError::NoPrimary(_))));
            let looked = match looked {
                Ok(looked) => looked.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer from the shard's database within {} s", PATIENCE.as_secs())),
            };
            if looked.is_err() {
                connection = None;
            }
            self.gate.set_unreachable(looked.clone().err().filter(|_| is_unreachable));
            self.gate.set_reads(match looked {
                Ok(()) => self.pool_works().await,
                Err(cause) => Err(cause),
            });
            self.clock.compare();
            looks = looks.wrapping_add(1);
            // A follower writes nothing.
            if self.gate.closed().is_none() && self.role.is_active() {
                let kept = timeout(PATIENCE, self.keep_marks(&mut stored, looks.is_multiple_of(PRUNE_EVERY))).await;
                if let Ok(Err(error)) = kept {
                    tracing::debug!(%error, "marks of other shards could not be stored; trying again");
                }
            }
        }
    }

    /// One look. The gate judges the result; an error means that the look itself failed.
    async fn look_once(&self, kept: &mut Option<PgConnection>) -> Result<(), StoreError> {
        let acknowledged = self.gate.acknowledged();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let asked_us = steady_us();
        let (facts, database) = look(&mut connection, &READ_SETTINGS).await?;
        self.clock.measured(OtherClock::measured("PostgreSQL", asked_us, facts.clock_us, steady_us()));
        let database = note_timeline(&self.gate, &mut connection, &facts, database, &acknowledged).await?;
        self.gate.decide(&facts, &database, &READ_SETTINGS, &acknowledged)?;
        self.look_for_active_nodes(&mut connection).await?;
        *kept = Some(connection);
        Ok(())
    }

    /// Looks for other nodes of the shard that act, which decides this node's role.
    pub async fn look_for_active_nodes(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        let others =
            sqlx::query_scalar(OTHER_WRITERS).bind(WRITER).bind(self.role.writer()).fetch_one(connection).await?;
        self.role.looked(others);
        Ok(())
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let limit = if self.hosts.are_several() { HOST_PATIENCE } else { PATIENCE };
        connect_to_primary(&self.hosts, limit, "shardledger-monitor").await
    }

    async fn pool_works(&self) -> Result<(), String> {
        match timeout(PATIENCE, self.pool.acquire()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => {
                Err("no connection to the shard's database became free in time: the \
                 server's max_connections, or the role's CONNECTION LIMIT, may be reached"
                    .to_owned())
            }
            Ok(Err(error)) => Err(error.to_string()),
        }
    }

    /// Stores the marks of other shards that routers reported since the last call.
    async fn keep_marks(&self, stored: &mut Marks, prune: bool) -> Result<(), StoreError> {
        let peers = self.gate.peers();
        let news: Marks = peers.iter().filter(|(number, mark)| stored.of(*number) != *mark).collect();
        if !news.is_empty() {
            evidence::store_marks(&self.pool, &news).await?;
            *stored = peers;
        }
        if prune { evidence::prune_marks(&self.pool).await } else { Ok(()) }
    }
}

/// Records a timeline that was not seen before with the position at which it begins, and returns the database as it is afterwards. Call it
/// before the gate decides about the server: until the gate accepts a server, no lane writes on it, so that the position is the one with
/// which the server was promoted or restored.
pub async fn note_timeline(
    gate: &Gate,
    connection: &mut PgConnection,
    facts: &ServerFacts,
    database: Database,
    acknowledged: &Acknowledged,
) -> Result<Database, sqlx::Error> {
    let (Database::Shard(record), Some(timeline)) = (&database, facts.timeline) else { return Ok(database) };
    let is_wanted = gate.judge(Purpose::Writes, facts, &database, &READ_SETTINGS, acknowledged).is_ok();
    if timeline == record.timeline || !is_wanted {
        return Ok(database);
    }
    tracing::warn!(
        from = record.timeline,
        to = timeline,
        "the database was promoted and has all that was acknowledged"
    );
    // A commit that has to be confirmed by a stand-by waits while there is none, and the look with it: reads would be refused. If
    // the row is lost with this server, the next primary has a higher timeline, which is recorded then.
    let mut transaction = connection.begin().await?;
    sqlx::query("SET LOCAL synchronous_commit = local").execute(&mut *transaction).await?;
    remember_server(&mut transaction, facts.id(), timeline).await?;
    transaction.commit().await?;
    record::read(connection).await
}
