//! `shard-node migrate` brings a shard's database to the schema version of this program, when an operator orders it.

use std::time::Instant;

use identity::{Disagreements, Expected};
use shard_database::{
    Database, record as database,
    schema::{self, Migration, SCAN_BYTES_PER_SECOND, Work},
    server::{Purpose, ServerFacts},
};
use sqlx::PgConnection;

use crate::store::session::READ_SETTINGS;

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("the database is not migrated: {0}")]
    Refused(Disagreements),
    #[error("another program migrated the database in the meantime; this one changed nothing")]
    Overtaken,
    #[error("migration {version} ({title}) failed and changed nothing: {reason}")]
    Failed { version: i32, title: &'static str, reason: sqlx::Error },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// The migrations that the database lacks; `None` if it is uninitialised. Fails unless the database is the expected
/// shard and no newer than this program.
pub async fn pending(
    connection: &mut PgConnection,
    expected: &Expected,
) -> Result<Option<Vec<&'static Migration>>, MigrateError> {
    let facts = ServerFacts::read(connection, &READ_SETTINGS).await?;
    let mut wrong = facts.disagreements(Purpose::Writes, &READ_SETTINGS);
    let Database::Shard(record) = database::read(connection).await? else { return Ok(None) };
    wrong.extend(expected.compare(&record.identity, "database.url"));
    let version = record.state.schema_version;
    if version > schema::VERSION {
        wrong.extend(database::compare_schema(version));
    }
    Disagreements::check(wrong).map_err(MigrateError::Refused)?;
    Ok(Some(schema::pending(version).collect()))
}

/// Describes what a migration locks and for how long, estimated from the present size of the tables.
pub async fn describe(connection: &mut PgConnection, migration: &Migration) -> Result<Vec<String>, MigrateError> {
    let mut lines = vec![format!("migration {}: {}", migration.version, migration.title)];
    lines.push(
        "  lane_fence: SHARE ROW EXCLUSIVE: writes wait until the migration ends, and nodes of the former version stop then"
            .to_owned(),
    );
    for lock in migration.locks {
        let bytes = schema::table_bytes(connection, lock.table).await?;
        let mib = bytes / (1024 * 1024);
        let time = match lock.work {
            Work::Catalogue => "only the catalogue changes: milliseconds".to_owned(),
            Work::Scan => format!("every row is read: about {} s at 100 MiB/s", bytes / SCAN_BYTES_PER_SECOND + 1),
        };
        lines.push(format!("  {}: {}, {mib} MiB: {time}", lock.table, lock.mode));
    }
    Ok(lines)
}

/// Applies one migration and reports how long it took.
pub async fn apply(connection: &mut PgConnection, migration: &Migration) -> Result<String, MigrateError> {
    let begun = Instant::now();
    match schema::apply(connection, migration).await {
        Ok(()) => {}
        Err(sqlx::Error::RowNotFound) => return Err(MigrateError::Overtaken),
        Err(reason) => {
            return Err(MigrateError::Failed { version: migration.version, title: migration.title, reason });
        }
    }
    Ok(format!("migration {} ({}) applied in {} ms", migration.version, migration.title, begun.elapsed().as_millis()))
}
