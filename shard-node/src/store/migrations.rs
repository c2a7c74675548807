//! Migrations: forward only, run at start under PostgreSQL's advisory lock, refused by a binary older than the schema.

use sqlx::{PgConnection, migrate::Migrator};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error(
        "the database has migration {0}, which this shard-node does not know: it was written by a newer version. \
         Run that version or a later one; nothing was changed."
    )]
    NewerSchema(i64),
    #[error("migration failed: {0}")]
    Failed(sqlx::migrate::MigrateError),
}

/// Brings the schema to this binary's version. Safe to run from several nodes at once.
pub async fn run(connection: &mut PgConnection) -> Result<(), MigrationError> {
    MIGRATOR.run(connection).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::VersionMissing(version) => MigrationError::NewerSchema(version),
        other => MigrationError::Failed(other),
    })
}
