//! Checks that the given databases belong to one cluster and that each is the database of its shard. This runs before
//! all other checks: the books of two clusters, or of one shard twice, prove nothing.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use shard_database::{Database, record};
use shard_map::ClusterId;
use sqlx::PgConnection;

use super::{Target, connection};

/// Identifies a database independently of the address that leads to it.
const PLACE: &str = "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), d.oid::int8 \
     FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";

/// What a database says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    identity: Option<(ClusterId, String, u16)>,
    /// PostgreSQL's system identifier and the OID of the database.
    place: (i64, i64),
}

/// Returns the number of each target's shard.
///
/// # Errors
/// Names every target whose database is not the one it was given for.
pub async fn check(targets: &[Target]) -> anyhow::Result<Vec<u16>> {
    let found = try_join_all(targets.iter().map(look)).await?;
    let faults = compare(targets, &found);
    anyhow::ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(found.into_iter().filter_map(|found| found.identity).map(|(.., number)| number).collect())
}

async fn look(target: &Target) -> anyhow::Result<Found> {
    let mut opened = connection::connect(target).await?;
    let found = read(&mut opened).await.map_err(|error| connection::broken(&target.shard, error));
    connection::close(opened).await;
    found
}

async fn read(connection: &mut PgConnection) -> sqlx::Result<Found> {
    let identity = match record::read(&mut *connection).await? {
        Database::Uninitialised => None,
        Database::Shard(record) => {
            let identity = record.identity;
            Some((identity.cluster, identity.shard, identity.number))
        }
    };
    Ok(Found { identity, place: sqlx::query_as(PLACE).fetch_one(connection).await? })
}

fn compare(targets: &[Target], found: &[Found]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut places: HashMap<(i64, i64), &str> = HashMap::new();
    let mut numbers: HashMap<u16, &str> = HashMap::new();
    let mut cluster: Option<(&ClusterId, &str)> = None;
    for (Target { shard, .. }, Found { identity, place }) in targets.iter().zip(found) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_with_a_wrong_database_is_named() {
        let (own, other) = (ClusterId::generate(), ClusterId::generate());
        let found = |cluster: ClusterId, shard: &str, number: u16, place: i64| Found {
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
                Found { identity: None, place: (2, 5) },
                "the database given for s1 holds no shard: it was never initialised",
            ),
        ] {
            let targets = ["s0", "s1"].map(|shard| Target { shard: shard.to_owned(), dsn: String::new() });
            assert_eq!(compare(&targets, &[found(own, "s0", 0, 1), second]).join("; "), fault);
        }
    }
}
