//! The databases that are checked: the connections to them, and the check that they belong to all shards of one cluster.

use std::{collections::HashMap, time::Duration};

use futures_util::future::{join_all, try_join_all};
use shard_database::{Database, DatabaseUrl, primary, record};
use shard_map::ClusterId;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

use super::Target;
use crate::exit::Unreachable;

/// Identifies a database independently of the address that leads to it.
const PLACE: &str = "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), d.oid::int8 \
     FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";

/// The identity of a database, as the database reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PlacedIdentity {
    identity: Option<(ClusterId, String, u16)>,
    /// PostgreSQL's system identifier and the OID of the database.
    place: (i64, i64),
}

/// Returns the number of each target's shard.
///
/// # Errors
/// A database belongs to another shard than its target names. The error names every such target.
pub async fn check_identities(targets: &[Target]) -> anyhow::Result<Vec<u16>> {
    let found = try_join_all(targets.iter().map(look)).await?;
    let faults = compare(targets, &found);
    anyhow::ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(found.into_iter().filter_map(|found| found.identity).map(|(.., number)| number).collect())
}

async fn look(target: &Target) -> anyhow::Result<PlacedIdentity> {
    let mut opened = connect(target).await?;
    let found = read(&mut opened).await.map_err(|error| broken(&target.shard, error));
    close(opened).await;
    found
}

async fn read(connection: &mut PgConnection) -> sqlx::Result<PlacedIdentity> {
    let identity = match record::read(&mut *connection).await? {
        Database::Uninitialised => None,
        Database::Shard(record) => {
            let identity = record.identity;
            Some((identity.cluster, identity.shard, identity.number))
        }
    };
    Ok(PlacedIdentity { identity, place: sqlx::query_as(PLACE).fetch_one(connection).await? })
}

fn compare(targets: &[Target], found: &[PlacedIdentity]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut places: HashMap<(i64, i64), &str> = HashMap::new();
    let mut numbers: HashMap<u16, &str> = HashMap::new();
    let mut cluster: Option<(&ClusterId, &str)> = None;
    for (Target { shard, .. }, PlacedIdentity { identity, place }) in targets.iter().zip(found) {
        if let Some(other) = places.insert(*place, shard) {
            faults.push(format!("the databases given for {other} and {shard} are one and the same"));
            continue;
        }
        let Some((own_cluster, own_shard, number)) = identity else {
            faults.push(format!("the database given for {shard} holds no shard: it was never initialised"));
            continue;
        };
        if own_shard != shard {
            faults.push(format!("the database given for {shard} is {own_shard}"));
            continue;
        }
        match cluster {
            None => cluster = Some((own_cluster, shard)),
            Some((expected, of)) if expected != own_cluster => faults.push(format!(
                "the database of {of} is of cluster {expected}, that of {shard} of cluster {own_cluster}"
            )),
            Some(_) => {}
        }
        if let Some(other) = numbers.insert(*number, shard) {
            faults.push(format!("the databases of {other} and {shard} both have shard number {number}"));
        }
    }
    faults
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The settings of a connection. The time-outs for serving are off, because a statement waits while another shard is read. JIT is off,
/// because the compilation costs more than it saves.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_with_a_wrong_database_is_named() {
        let (own, other) = (ClusterId::generate(), ClusterId::generate());
        let found = |cluster: ClusterId, shard: &str, number: u16, place: i64| PlacedIdentity {
            identity: Some((cluster, shard.to_owned(), number)),
            place: (place, 5),
        };
        let clusters = format!("the database of s0 is of cluster {own}, that of s1 of cluster {other}");
        for (second, fault) in [
            (found(own, "s1", 1, 2), ""),
            (found(own, "s2", 2, 2), "the database given for s1 is s2"),
            (found(own, "s0", 0, 1), "the databases given for s0 and s1 are one and the same"),
            (found(other, "s1", 1, 2), clusters.as_str()),
            (found(own, "s1", 0, 2), "the databases of s0 and s1 both have shard number 0"),
            (
                PlacedIdentity { identity: None, place: (2, 5) },
                "the database given for s1 holds no shard: it was never initialised",
            ),
        ] {
            let targets = ["s0", "s1"].map(|shard| Target { shard: shard.to_owned(), dsn: String::new() });
            assert_eq!(compare(&targets, &[found(own, "s0", 0, 1), second]).join("; "), fault);
        }
    }
}
