//! Sessions on the shard's database: those of the lane and the fold, and the pool for reads.
//!
//! The lane writes with a [`pg_session::Session`], which sends a batch as one message. It loads with a [`Session`], so that
//! it can load the next batch while one commits.
//!
//! The [`Gate`] judges every session before it is used. Every statement of the lane has a client-side deadline. When
//! the deadline passes, the connection is dropped, never reused. The server's statement time-out stays off for the
//! lane, because it would also interrupt a COMMIT.

use std::{future::Future, time::Duration};

use identity::Disagreements;
use shard_database::{
    Database, record,
    server::{Purpose, ServerFacts, ServerId},
};
use sqlx::{
    Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};

use super::StoreError;
use crate::{
    gate::{Acknowledged, Gate},
    hosts::Hosts,
};

pub struct Session {
    connection: PgConnection,
    server: ServerId,
    timeline: i64,
    statement_timeout: Duration,
}

impl Session {
    /// Opens a session for the lane or the fold, if the gate accepts it.
    pub async fn connect(
        hosts: &Hosts,
        gate: &Gate,
        purpose: Purpose,
        name: &str,
    ) -> Result<(Self, Database), StoreError> {
        let (config, acknowledged) = (hosts.config(), gate.acknowledged());
        let options = hosts.connect_options().application_name(name).options(LANE_SETTINGS);
        let limit = config.connect_timeout();
        let mut connection = within(limit, PgConnection::connect_with(&options)).await?;
        let (facts, database) = within(limit, look(&mut connection, &LANE_SETTINGS)).await?;
        gate.judge(purpose, &facts, &database, &LANE_SETTINGS, &acknowledged)?;
        // Only a stand-by has no timeline, and the gate refuses a stand-by.
        let (server, timeline) = (facts.id(), facts.timeline.unwrap_or_default());
        Ok((Self { connection, server, timeline, statement_timeout: config.statement_timeout() }, database))
    }

    /// The database that the session is connected to.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// The timeline of the session's server.
    pub fn timeline(&self) -> i64 {
        self.timeline
    }

    /// Runs statements on the connection under the session's deadline.
    pub async fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        within(self.statement_timeout, work(&mut self.connection)).await
    }

    pub async fn close(self) {
        // The server also notices a dropped socket; a slow close must not delay the shutdown.
        let _ = within(Duration::from_secs(1), self.connection.close()).await;
    }
}

/// Reads the facts of the server and the shard record of its database.
pub async fn look(
    connection: &mut PgConnection,
    asked_for: &[(&str, &str)],
) -> Result<(ServerFacts, Database), sqlx::Error> {
    let facts = ServerFacts::read(connection, asked_for).await?;
    Ok((facts, record::read(connection).await?))
}

/// The pool for reads. The gate judges each connection when it is opened.
pub fn read_pool(hosts: &Hosts, gate: &Gate) -> PgPool {
    pool(hosts, gate, Purpose::Reads, hosts.config().read_connections, read_options(hosts))
}

/// The pool for moves of slots. Their statements may take long.
pub fn move_pool(hosts: &Hosts, gate: &Gate) -> PgPool {
    let options = hosts.connect_options().application_name("shardledger-move").options(READ_SETTINGS);
    pool(hosts, gate, Purpose::Writes, MOVE_CONNECTIONS, options.options(MOVE_SETTINGS))
}

fn pool(hosts: &Hosts, gate: &Gate, purpose: Purpose, connections: u32, options: PgConnectOptions) -> PgPool {
    let (gate, accepted) = (gate.clone(), gate.clone());
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        // Connections stay open after `warm_up`, so that a burst of reads does not have to open any.
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(hosts.config().connect_timeout())
        // A connection opened before the database was accepted may lead to another server that is still running.
        .before_acquire(move |_, connection| {
            let is_current = accepted.accepted_since().is_none_or(|since| connection.age <= since.elapsed());
            Box::pin(async move { Ok(is_current) })
        })
        .after_connect(move |connection, _| {
            let gate = gate.clone();
            Box::pin(async move {
                let acknowledged: Acknowledged = gate.acknowledged();
                let (facts, database) = look(connection, &READ_SETTINGS).await?;
                let judged = gate.judge(purpose, &facts, &database, &READ_SETTINGS, &acknowledged);
                judged.map_err(|refused| sqlx::Error::Configuration(refused.into()))
            })
        })
        .connect_lazy_with(options);
    hosts.lead(&pool);
    pool
}

/// A statement of a move may take long. A driver that freezes within a transaction must not keep the next one out.
const MOVE_SETTINGS: [(&str, &str); 2] =
    [("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "10000")];
/// The driver, its sign of life, and the calls of two other drivers.
const MOVE_CONNECTIONS: u32 = 4;

/// Opens all connections of the pool. Call it after the database is accepted; before that the gate refuses each one.
pub async fn warm_up(pool: &PgPool) {
    let connections = (0..pool.options().get_max_connections()).map(|_| pool.acquire());
    // A connection that fails now is opened, and its error reported, when a read needs it.
    drop(futures_util::future::join_all(connections).await);
}

/// Connection options for reads.
pub fn read_options(hosts: &Hosts) -> PgConnectOptions {
    for_reads(hosts.connect_options(), hosts)
}

/// Adds the settings of [`read_options`].
fn for_reads(options: PgConnectOptions, hosts: &Hosts) -> PgConnectOptions {
    let statement_timeout = hosts.config().statement_timeout_ms.to_string();
    options
        .application_name("shardledger-reads")
        .options(READ_SETTINGS)
        .options([("statement_timeout", statement_timeout.as_str())])
}

/// Connects to the primary, and makes its host the one that every other session is opened to. `limit` is the time limit for each
/// host.
pub async fn connect_to_primary(hosts: &Hosts, limit: Duration, name: &str) -> Result<PgConnection, StoreError> {
    hosts.find(limit, |options| for_reads(options, hosts).application_name(name)).await
}

/// Opens the session that the lane writes with, under a name of this process. It must lead to `server`, whose database the gate has
/// judged.
pub async fn connect_writer(
    hosts: &Hosts,
    gate: &Gate,
    server: ServerId,
    name: &str,
) -> Result<pg_session::Session, StoreError> {
    let invalid = |error: pg_session::InvalidOptions| StoreError::Corrupt(format!("database.url {error}"));
    let options = hosts.session_options().map_err(invalid)?.application_name(name).options(LANE_SETTINGS);
    let limit = hosts.config().connect_timeout();
    let open = async {
        let mut session = pg_session::Session::connect(&options).await?;
        let facts = session.run(&ServerFacts::script(&LANE_SETTINGS), None).await?;
        Ok::<_, pg_session::Error>((session, facts))
    };
    let (session, answer) = match tokio::time::timeout(limit, open).await {
        Ok(opened) => opened?,
        Err(_) => return Err(StoreError::TimedOut(limit)),
    };
    let facts = answer.rows.first().map(|row| ServerFacts::from_texts(row)).transpose()?;
    let facts = facts.ok_or_else(|| StoreError::Corrupt("the server says nothing about itself".to_owned()))?;
    if facts.id() != server || !gate.serves(server) {
        return Err(StoreError::Superseded);
    }
    Disagreements::check(facts.disagreements(Purpose::Writes, &LANE_SETTINGS))?;
    Ok(session)
}

/// How the `application_name` of a session that a lane writes with begins. The rest tells the processes apart.
pub const WRITER: &str = "shardledger-lane";

/// The lane reads by index look-ups only; without statistics the planner might choose sorts or hash joins instead. A
/// frozen node must not hold the fence indefinitely: the server ends a transaction that idles for 30 seconds, and
/// within seconds a statement whose client is gone. Values are spelled as in `pg_settings`, because each one is read
/// back and compared.
const LANE_SETTINGS: [(&str, &str); 14] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    ("search_path", "pg_catalog"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "30000"),
    ("idle_session_timeout", "0"),
    ("client_connection_check_interval", "2000"),
    // A cancelled wait for a synchronous stand-by is told as a WARNING. It must not be suppressed.
    ("client_min_messages", "notice"),
];

/// Settings of read sessions. Reads must not depend on the defaults of the role or the database.
pub const READ_SETTINGS: [(&str, &str); 6] = [
    ("jit", "off"),
    ("search_path", "pg_catalog"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("lock_timeout", "0"),
    ("idle_session_timeout", "0"),
];

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StoreError::TimedOut(deadline)),
    }
}

/// Reads a column that must exist. A missing or mistyped column means another schema.
pub fn column<'r, T>(row: &'r sqlx::postgres::PgRow, name: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(row.try_get(name)?)
}
