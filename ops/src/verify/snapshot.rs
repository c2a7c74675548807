//! A snapshot of one shard's database.

use std::time::Duration;

use futures_util::future::join_all;
use shard_database::DatabaseUrl;
use sqlx::{Connection, PgConnection, Row};

use super::{Target, report::ShardSize};
use crate::exit::Unreachable;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Whole tables are aggregated and joined, so memory is used instead of disk. The time-outs for serving are off,
/// because one shard's snapshot waits while another one is read. JIT compilation costs more than it saves.
const SETTINGS: [(&str, &str); 4] =
    [("work_mem", "128MB"), ("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0"), ("jit", "off")];

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// The first statement that reads data fixes the snapshot.
const FIX: &str = "SELECT FROM shardledger.shard_state";
const SIZE: &str = "SELECT (SELECT count(*) FROM shardledger.account) AS accounts, (SELECT count(*) FROM shardledger.journal) AS entries,
                           (SELECT count(*) FROM shardledger.transfer) AS transfers, (SELECT count(*) FROM shardledger.register) AS registers";

/// A read-only transaction that sees the shard as of its beginning. End it with [`Snapshot::close_all`].
pub struct Snapshot {
    pub shard: String,
    pub connection: PgConnection,
}

impl Snapshot {
    pub async fn take(target: &Target) -> anyhow::Result<Self> {
        let mut connection = connect(target).await?;
        match Self::begin(&mut connection).await {
            Ok(()) => Ok(Self { shard: target.shard.clone(), connection }),
            Err(error) => {
                roll_back_and_close(connection).await;
                Err(broken(&target.shard, error))
            }
        }
    }

    /// Takes a snapshot of each target, or of none.
    pub async fn take_all(targets: &[Target]) -> anyhow::Result<Vec<Self>> {
        let (mut taken, mut failure) = (Vec::with_capacity(targets.len()), None);
        for snapshot in join_all(targets.iter().map(Self::take)).await {
            match snapshot {
                Ok(snapshot) => taken.push(snapshot),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            None => Ok(taken),
            Some(error) => {
                Self::close_all(&mut taken).await;
                Err(error)
            }
        }
    }

    async fn begin(connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(BEGIN).execute(&mut *connection).await?;
        sqlx::query(FIX).execute(connection).await?;
        Ok(())
    }

    /// Ends the transactions and connections. An open snapshot holds back vacuum, and PostgreSQL logs a connection
    /// that ends without a termination message.
    pub async fn close_all(snapshots: &mut Vec<Self>) {
        join_all(snapshots.drain(..).map(|snapshot| roll_back_and_close(snapshot.connection))).await;
    }

    pub async fn size(&mut self) -> sqlx::Result<ShardSize> {
        let row = sqlx::query(SIZE).fetch_one(&mut self.connection).await?;
        Ok(ShardSize {
            id: self.shard.clone(),
            accounts: row.try_get("accounts")?,
            entries: row.try_get("entries")?,
            transfers: row.try_get("transfers")?,
            registers: row.try_get("registers")?,
        })
    }
}

/// Opens a connection that the environment does not change.
pub async fn connect(target: &Target) -> anyhow::Result<PgConnection> {
    let unreachable = |reason: String| Unreachable { what: database_of(&target.shard), reason };
    let url =
        DatabaseUrl::new(&target.dsn).map_err(|error| anyhow::anyhow!("the DSN of {}: {error}", target.shard))?;
    let options = url.connect_options().options(SETTINGS).application_name("shardctl-verify");
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?;
    Ok(connected.map_err(|error| unreachable(error.to_string()))?)
}

/// Closes a connection whose work is done or has failed; an error while closing is ignored.
pub async fn close(connection: PgConnection) {
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, connection.close()).await;
}

async fn roll_back_and_close(mut connection: PgConnection) {
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, sqlx::query("ROLLBACK").execute(&mut connection)).await;
    close(connection).await;
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
