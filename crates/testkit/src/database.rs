//! Statements on the databases of shards, databases for tests of a single node, and SQL that derives tables of transfers, registers and
//! holds from a shard's journal. These tables leave out slots that the shard does not own, because a move of slots leaves copies behind.
//! Tests put them into statements for [`number`]: `SELECT count(*) FROM {TRANSFERS} WHERE …`.

use std::fs;

use anyhow::Context;
use ledger::Booking;
use shard_database::{journal, journal_columns};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::cluster::Cluster;

/// The services' role, which owns the databases created here.
const ROLE: &str = "shardledger";

/// Creates an empty database of the services' role on the first shard's PostgreSQL and returns its URL. The database is removed with the
/// cluster.
pub async fn create(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let shard = cluster.status().shards.first().context("a cluster without shards")?;
    // The services' role cannot create databases.
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

/// Runs a query that returns texts.
pub async fn texts(url: &str, sql: &str) -> anyhow::Result<Vec<String>> {
    let mut connection = connect(url).await?;
    Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await?)
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

/// Does `work` while a session like that of a frozen node's lane holds the fence. The session has begun a COPY whose rows never come.
/// Returns what `work` returned, and whether another session ended this one meanwhile.
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

/// Transfers. The columns are `id`, `debit`, `credit`, `amount`, `cross_shard`, `reversed`, and `status` (1 pending, 2 posted, 3 rejected).
pub const TRANSFERS: &str = "(SELECT f.id, f.payer AS debit, f.payee AS credit, f.amount, \
       f.kind IN (13, 14) OR f.cross_shard IS TRUE AS cross_shard, \
       coalesce((SELECT sum(r.amount) FROM journal r \
                 WHERE r.reverses = f.id AND r.payee = f.payer AND r.kind IN (11, 31)), 0)::int8 AS reversed, \
       (CASE WHEN f.kind = 11 OR s.kind = 21 THEN 2 WHEN f.kind = 12 OR s.kind IS NOT NULL THEN 3 ELSE 1 END)::int2 AS status \
     FROM journal f LEFT JOIN journal s ON s.id = f.id AND s.payer = f.payer AND s.role = 2 \
     WHERE f.role = 1 AND f.payer_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) transfer";

/// Registers of sagas. The columns are `id`, `debit`, `credit`, `amount` and `credited`.
pub const REGISTERS: &str = "(SELECT id, payer AS debit, payee AS credit, amount, kind = 31 AS credited \
     FROM journal WHERE role = 3 AND payee_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) register";

/// Holds. The columns are `id`, `debit`, `captured`, `capture_id`, `expires_at_us`, `ended_at_us`, and `status` (1 held, 2 captured, 3
/// released, 4 expired, 5 rejected).
pub const HOLDS: &str = "(SELECT f.id, f.payer AS debit, coalesce(e.captured, o.captured, 0) AS captured, o.capture_id, \
       f.expires_at_us, e.at_us AS ended_at_us, \
       (CASE WHEN f.kind = 42 THEN 5 WHEN e.kind = 51 THEN 2 WHEN e.kind = 52 THEN 3 WHEN e.kind = 53 THEN 4 ELSE 1 END)::int2 \
         AS status \
     FROM journal f LEFT JOIN journal e ON e.id = f.id AND e.payer = f.payer AND e.role = 5 \
       LEFT JOIN hold o ON o.id = f.id AND o.payer = f.payer \
     WHERE f.role = 4 AND f.payer_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) hold";

/// The newest balance of every client account, folded or not. The columns are `id` and `posted`. Ids that begin with `@` belong to the
/// shard itself and are left out.
pub const BALANCES: &str = "(SELECT DISTINCT ON (id) id, posted FROM ( \
         SELECT payer AS id, payer_version AS version, payer_posted AS posted FROM journal \
         WHERE payer_version IS NOT NULL AND payer_slot IN (SELECT slot FROM slot_ownership WHERE state = 1) \
         UNION ALL \
         SELECT payee, payee_version, payee_posted FROM journal \
         WHERE payee_version IS NOT NULL AND payee_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) leg \
       WHERE id NOT LIKE '@%' ORDER BY id, version DESC) balance";
