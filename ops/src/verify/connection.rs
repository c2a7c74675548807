//! Connections to the shards' databases.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use shard_database::{DatabaseUrl, primary};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

use super::Target;
use crate::exit::Unreachable;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time-outs for serving are off: a statement waits while another shard is read. JIT compilation costs more than it
/// saves.
const SETTINGS: [(&str, &str); 3] =
    [("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0"), ("jit", "off")];

/// Opens a connection that the environment does not change, to the primary if the URL names several hosts.
pub async fn connect(target: &Target) -> anyhow::Result<PgConnection> {
    let unreachable = |reason: String| Unreachable { what: database_of(&target.shard), reason };
    let url =
        DatabaseUrl::new(&target.dsn).map_err(|error| anyhow::anyhow!("the DSN of {}: {error}", target.shard))?;
    let prepare = |options: PgConnectOptions| options.options(SETTINGS).application_name("shardctl-verify");
    if url.hosts().len() > 1 {
        let found = primary::find(&url, 0, CONNECT_TIMEOUT, prepare).await;
        return Ok(found.map_err(|error| unreachable(error.to_string()))?.connection);
    }
    let options = prepare(url.connect_options());
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?;
    Ok(connected.map_err(|error| unreachable(error.to_string()))?)
}

/// Opens a connection to each target, or to none.
pub async fn connect_all(targets: &[Target]) -> anyhow::Result<Vec<PgConnection>> {
    let (mut connections, mut failure) = (Vec::with_capacity(targets.len()), None);
    for connected in join_all(targets.iter().map(connect)).await {
        match connected {
            Ok(connection) => connections.push(connection),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        None => Ok(connections),
        Some(error) => {
            close_all(connections).await;
            Err(error)
        }
    }
}

/// Closes a connection whose work is done or has failed; an error while closing is ignored. PostgreSQL logs a connection
/// that ends without a termination message.
pub async fn close(connection: PgConnection) {
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await;
}

pub async fn close_all(connections: Vec<PgConnection>) {
    join_all(connections.into_iter().map(close)).await;
}

/// Runs the same work on each shard's connection, at the same time.
pub async fn on_each<T>(
    targets: &[Target],
    connections: &mut [PgConnection],
    work: impl AsyncFn(&mut PgConnection) -> sqlx::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let work = &work;
    let each = targets
        .iter()
        .zip(connections)
        .map(async |(target, connection)| work(connection).await.map_err(|error| broken(&target.shard, error)));
    try_join_all(each).await
}

/// Classifies an error: a database that stops answering is unreachable, any other error is a failure of the check.
pub fn broken(shard: &str, error: sqlx::Error) -> anyhow::Error {
    let what = database_of(shard);
    match error {
        sqlx::Error::Io(error) => Unreachable { what, reason: error.to_string() }.into(),
        error => anyhow::Error::new(error).context(what),
    }
}

fn database_of(shard: &str) -> String {
    format!("the database of {shard}")
}
