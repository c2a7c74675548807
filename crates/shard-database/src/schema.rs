//! The migrations, and which of them a database has.
//!
//! Migrations only go forward; each one carries the schema version that it produces. The version is a column of
//! `shard_state`, which every write compares (ADR 9). A migration therefore locks out writers of the previous
//! version, and a node that is too old stops with a message. No program migrates on its own: `shard-node init`
//! creates a new database, and `shard-node migrate` updates an old one.

use sqlx::{Connection, PgConnection};

/// One step from a schema version to the next.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The schema version that the migration produces.
    pub version: i32,
    pub title: &'static str,
    /// The locks it takes and the work done under them; `migrate --dry-run` prints them.
    pub locks: &'static [TableLock],
    sql: &'static str,
}

/// A lock that a migration holds on a table until its transaction ends.
#[derive(Debug, Clone, Copy)]
pub struct TableLock {
    pub table: &'static str,
    pub mode: &'static str,
    pub work: Work,
}

/// The work done under a lock; it determines how long the lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Only the catalogue changes: milliseconds at any size.
    Catalogue,
    /// Every row is read once, to check a constraint or to build an index.
    Scan,
}

/// The assumed speed of reading a table: the sequential speed of a slow disk.
pub const SCAN_BYTES_PER_SECOND: i64 = 100 * 1024 * 1024;

/// Every migration, in order.
pub const MIGRATIONS: [Migration; 6] = [
    Migration {
        version: 1,
        title: "journal, accounts, sagas",
        locks: &[],
        sql: include_str!("../../../migrations/0001_ledger.sql"),
    },
    Migration {
        version: 2,
        title: "holds and reversals",
        locks: &[TableLock { table: "journal", mode: "SHARE", work: Work::Scan }],
        sql: include_str!("../../../migrations/0002_holds_and_reversals.sql"),
    },
    Migration {
        version: 3,
        title: "moves of slots",
        locks: &[TableLock { table: "journal", mode: "ACCESS EXCLUSIVE", work: Work::Catalogue }],
        sql: include_str!("../../../migrations/0003_slot_moves.sql"),
    },
    Migration {
        version: 4,
        title: "the beginning of a timeline",
        locks: &[TableLock { table: "shard_identity", mode: "ACCESS EXCLUSIVE", work: Work::Catalogue }],
        sql: include_str!("../../../migrations/0004_timeline_began.sql"),
    },
    Migration {
        version: 5,
        title: "names of API keys",
        locks: &[TableLock { table: "journal", mode: "ACCESS EXCLUSIVE", work: Work::Catalogue }],
        sql: include_str!("../../../migrations/0005_key_names.sql"),
    },
    Migration {
        version: 6,
        title: "erasure of metadata",
        locks: &[TableLock { table: "journal", mode: "ACCESS EXCLUSIVE", work: Work::Scan }],
        sql: include_str!("../../../migrations/0006_erasure.sql"),
    },
];

/// The schema version that this program reads and writes.
pub const VERSION: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

const SET_VERSION: &str = "UPDATE shardledger.shard_state SET schema_version = $2 WHERE schema_version = $1";
/// Writers wait for this lock; after it their fence finds another schema version.
const LOCK_OUT_WRITERS: &str = "LOCK TABLE shardledger.lane_fence IN EXCLUSIVE MODE";
const TABLE_BYTES: &str =
    "SELECT COALESCE(pg_catalog.pg_total_relation_size(pg_catalog.to_regclass('shardledger.' || $1)), 0)";

/// The migrations that a database of this version lacks.
pub fn pending(version: i32) -> impl Iterator<Item = &'static Migration> {
    MIGRATIONS.iter().filter(move |migration| migration.version > version)
}

/// Applies every migration to an empty database, in the caller's transaction. The caller then writes the rows that
/// make it a shard.
pub async fn create(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    for migration in &MIGRATIONS {
        sqlx::raw_sql(migration.sql).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Applies one migration to a database of the previous version, in its own transaction.
///
/// # Errors
/// `RowNotFound` if the database has another version, because another program migrated it.
pub async fn apply(connection: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(LOCK_OUT_WRITERS).execute(&mut *transaction).await?;
    sqlx::raw_sql(migration.sql).execute(&mut *transaction).await?;
    let updated = sqlx::query(SET_VERSION)
        .bind(migration.version - 1)
        .bind(migration.version)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    if updated != 1 {
        return Err(sqlx::Error::RowNotFound);
    }
    transaction.commit().await
}

/// The size of a table with its indexes and TOAST data; 0 if the table does not exist.
pub async fn table_bytes(connection: &mut PgConnection, table: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(TABLE_BYTES).bind(table).fetch_one(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_1_without_a_gap() {
        assert!(MIGRATIONS.iter().map(|migration| migration.version).eq(1..=VERSION));
        assert_eq!(pending(0).count(), MIGRATIONS.len());
        assert_eq!(pending(VERSION).count(), 0);
    }

    #[test]
    fn every_object_is_made_in_the_schema() {
        for migration in &MIGRATIONS {
            for line in migration.sql.lines().map(str::trim_start) {
                let makes = ["CREATE TABLE ", "ALTER TABLE ", "CREATE TYPE ", "ALTER TYPE "];
                if let Some(rest) = makes.iter().find_map(|verb| line.strip_prefix(verb)) {
                    assert!(rest.starts_with("shardledger."), "{}: {line}", migration.title);
                }
                if let Some((_, table)) = line.split_once(" ON ").filter(|_| line.starts_with("CREATE INDEX")) {
                    assert!(table.starts_with("shardledger."), "{}: {line}", migration.title);
                }
            }
        }
    }
}
