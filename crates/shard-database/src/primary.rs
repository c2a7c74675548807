//! Looks for the primary among the hosts of a URL.
//!
//! A failover changes which host is the primary, and a former primary may come back beside the new one. Of several, the one that
//! is furthest is taken: by incarnation, then by PostgreSQL's timeline, then by position. Whether it may be used is not
//! decided here.

use std::{fmt, future::Future, time::Duration};

use futures_util::future::join_all;
use identity::Mark;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;

use crate::{
    address::DatabaseUrl,
    record::{self, Database},
    server::ServerFacts,
};

/// The primary, and a connection to it.
#[derive(Debug)]
pub struct Primary {
    /// The index of the host in [`DatabaseUrl::hosts`].
    pub host: usize,
    pub connection: PgConnection,
}

/// No host of the URL is a primary at present. Lists each host with what was found there.
#[derive(Debug, thiserror::Error)]
#[error("no host of the URL is a primary: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct NoPrimary(Vec<Seen>);

/// A host that is no primary.
#[derive(Debug)]
struct Seen {
    host: String,
    what: String,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.host, self.what)
    }
}

/// How far a primary is. A database that does not belong to the server that it records is behind every other one: it is a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_original: bool,
    incarnation: i64,
    timeline: i64,
    position: i64,
}

impl Rank {
    fn of(facts: &ServerFacts, database: &Database) -> Self {
        let timeline = facts.timeline.unwrap_or_default();
        match database {
            Database::Uninitialised => Self { is_original: false, incarnation: 0, timeline, position: 0 },
            Database::Shard(record) => {
                let Mark { incarnation, position, .. } = record.mark();
                let is_original = record.system_identifier == facts.system_identifier;
                Self { is_original, incarnation, timeline, position }
            }
        }
    }
}

/// Asks every host at once, each for at most `limit`, and returns the primary that is furthest. Between equals, `preferred` is
/// taken, and then the earlier host of the URL. `prepare` adds the settings of the session.
///
/// # Errors
/// No host is a primary, or none answers.
pub async fn find(
    url: &DatabaseUrl,
    preferred: usize,
    limit: Duration,
    prepare: impl Fn(PgConnectOptions) -> PgConnectOptions,
) -> Result<Primary, NoPrimary> {
    let asked = url.hosts().iter().map(|host| ask(limit, prepare(host.connect_options())));
    let (mut best, mut others) = (None::<(Rank, Primary)>, Vec::new());
    for (index, (host, answer)) in url.hosts().iter().zip(join_all(asked).await).enumerate() {
        match answer {
            Ok((rank, connection)) => {
                let found = Primary { host: index, connection };
                let (better, worse) = match best.take() {
                    None => ((rank, found), None),
                    Some(first) if is_better(rank, index == preferred, first.0) => ((rank, found), Some(first.1)),
                    Some(first) => (first, Some(found)),
                };
                best = Some(better);
                if let Some(worse) = worse {
                    close(worse.connection, limit).await;
                }
            }
            Err(what) => others.push(Seen { host: host.name().to_owned(), what }),
        }
    }
    best.map(|(_, primary)| primary).ok_or(NoPrimary(others))
}

fn is_better(rank: Rank, is_preferred: bool, than: Rank) -> bool {
    rank > than || (rank == than && is_preferred)
}

/// Connects to one host. The error says in words what was found in place of a primary.
async fn ask(limit: Duration, options: PgConnectOptions) -> Result<(Rank, PgConnection), String> {
    let asked = async {
        let mut connection = PgConnection::connect_with(&options).await?;
        let facts = ServerFacts::read(&mut connection, &[]).await?;
        let rank =
            if facts.is_standby { None } else { Some(Rank::of(&facts, &record::read(&mut connection).await?)) };
        Ok::<_, sqlx::Error>((rank, connection))
    };
    match within(limit, asked).await? {
        (Some(rank), connection) => Ok((rank, connection)),
        (None, connection) => {
            close(connection, limit).await;
            Err("a stand-by".to_owned())
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

/// PostgreSQL logs a connection that ends without a termination message.
async fn close(connection: PgConnection, limit: Duration) {
    let _ = timeout(limit, connection.close()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(is_original: bool, incarnation: i64, timeline: i64, position: i64) -> Rank {
        Rank { is_original, incarnation, timeline, position }
    }

    #[test]
    fn the_primary_that_is_furthest_is_taken() {
        let former = rank(true, 1, 1, 500);
        for (other, better) in [
            (rank(true, 1, 2, 400), true),
            (rank(true, 2, 1, 400), true),
            (rank(true, 1, 1, 501), true),
            (rank(true, 1, 1, 499), false),
            (rank(false, 9, 9, 900), false),
            (rank(false, 0, 1, 0), false),
        ] {
            for preferred in [false, true] {
                assert_eq!(is_better(other, preferred, former), better, "{other:?}");
            }
        }
        assert!(is_better(former, true, former) && !is_better(former, false, former));
    }
}
