//! Databases for tests of a single node, created on a cluster's PostgreSQL beside the shard's own.

use std::fs;

use anyhow::Context;
use ledger::Booking;
use shard_database::{journal, journal_columns};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::cluster::Cluster;

/// The services' role, which owns the databases created here.
const ROLE: &str = "shardledger";

/// Creates an empty database of the services' role on the first shard's PostgreSQL and returns its URL. It is removed
/// with the cluster.
pub async fn create(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let shard = cluster.status().shards.first().context("a cluster without shards")?;
    // The services' role may not create databases.
    let mut connection = PgConnection::connect(&superuser(cluster, 0)?).await?;
    let statement = format!("CREATE DATABASE \"{name}\" OWNER {ROLE}");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    let (server, _) = shard.dsn.rsplit_once('/').context("a DSN without a database")?;
    Ok(format!("{server}/{name}"))
}

/// The URL of a shard's PostgreSQL for the role that initdb created.
pub fn superuser(cluster: &Cluster, shard: usize) -> anyhow::Result<String> {
    let shard = cluster.status().shards.get(shard).context("no such shard")?;
    let path = cluster.data_dir().join("secrets").join(format!("{}.postgres.password", shard.id));
    let password = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("postgres://postgres:{}@127.0.0.1:{}/postgres", password.trim(), shard.postgres_port))
}

/// Opens a connection that finds the ledger's tables without naming their schema.
pub async fn connect(url: &str) -> anyhow::Result<PgConnection> {
    // The error of a malformed URL would contain the URL with its password.
    let options: PgConnectOptions = url.parse().map_err(|_| anyhow::anyhow!("the database's URL is malformed"))?;
    let connected = PgConnection::connect_with(&options.options([("search_path", "shardledger")])).await;
    connected.context("cannot connect to a shard's database")
}

/// Runs one or more SQL statements, which need not name the schema of the ledger's tables.
pub async fn run(url: &str, sql: &str) -> anyhow::Result<u64> {
    let mut connection = connect(url).await?;
    Ok(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?.rows_affected())
}

/// Runs a query that returns a number.
pub async fn number(url: &str, sql: &str) -> anyhow::Result<i64> {
    let mut connection = connect(url).await?;
    Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await?)
}

/// The bookings of a shard's journal with this id, in order.
pub async fn bookings(url: &str, id: Uuid) -> anyhow::Result<Vec<Booking>> {
    let mut connection = connect(url).await?;
    let rows =
        sqlx::query(concat!("SELECT ", journal_columns!(j), " FROM journal j WHERE j.id = $1 ORDER BY j.position"))
            .bind(id);
    let rows = rows.fetch_all(&mut connection).await?;
    Ok(rows.iter().map(journal::booking_from_row).collect::<Result<_, _>>()?)
}

/// Does `work` while a session like that of a frozen node's lane holds the fence: it has begun a COPY whose rows never
/// come. Returns what `work` returned, and whether the session was ended meanwhile.
pub async fn while_a_lane_is_frozen_within_copy<T>(
    url: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, bool)> {
    let options: PgConnectOptions = url.parse().map_err(|_| anyhow::anyhow!("the database's URL is malformed"))?;
    let mut frozen = PgConnection::connect_with(&options.application_name("shardledger-lane")).await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE shardledger.lane_fence IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut frozen)
        .await?;
    let copy = frozen.copy_in_raw("COPY shardledger.journal (position) FROM STDIN (FORMAT binary)").await?;
    let done = work.await?;
    let is_ended = copy
        .finish()
        .await
        .is_err_and(|error| error.as_database_error().is_none_or(|e| e.code().as_deref() == Some("57P01")));
    Ok((done, is_ended))
}
