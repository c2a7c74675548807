//! The stand-by of a shard's server: copied from a primary that is shut down, or rebuilt from one that runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use shard_database::DatabaseUrl;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::{
    database::{SUPERUSER, run, superuser_password, write_owned, write_settings},
    server::{ServiceUser, create_owned},
    stopped_server,
};
use crate::cluster::{
    description::{Description, ServerPlace, ShardPlace},
    layout::Layout,
    process,
};

/// The programs that write to the draft of a stand-by.
pub const COPYING_PROGRAMS: [&str; 2] = ["pg_basebackup", "cp"];
/// PostgreSQL starts as a stand-by while this file is there, and removes it when it is promoted.
const SIGNAL: &str = "standby.signal";
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a promotion may take, in seconds.
const PROMOTION_S: i32 = 60;

/// Makes a stand-by by copying the folder of a server that is shut down.
pub fn copy(primary: &Path, standby: &Path, user: Option<&ServiceUser>) -> anyhow::Result<()> {
    let draft = draft(standby)?;
    let copied = Command::new("cp").arg("-a").arg(primary).arg(&draft).output().context("cannot run cp")?;
    ensure!(
        copied.status.success(),
        "{} was not copied: {}",
        primary.display(),
        String::from_utf8_lossy(&copied.stderr).trim()
    );
    write_owned(&draft.join(SIGNAL), "", user)?;
    Ok(fs::rename(&draft, standby)?)
}

/// Whether the installation has the program that [`rebuild`] runs.
pub fn can_rebuild(description: &Description) -> anyhow::Result<()> {
    let program = base_backup(description);
    ensure!(program.is_file(), "{} is missing: install PostgreSQL's client programs", program.display());
    Ok(())
}

/// Makes a stand-by by copying a primary that runs. A stand-by whose copy is complete stays unchanged. No other program may write to the
/// draft meanwhile.
pub fn rebuild(
    layout: &Layout,
    description: &Description,
    shard: &ShardPlace,
    primary: &ServerPlace,
    standby: &ServerPlace,
) -> anyhow::Result<()> {
    let user = description.postgres.user.as_ref();
    if stopped_server::control_file(&standby.folder).exists() {
        return write_settings(layout, description, shard);
    }
    let draft = draft(&standby.folder)?;
    create_owned(&draft, 0o700, user)?;
    let mut backup = Command::new(base_backup(description));
    process::clean_environment(&mut backup);
    backup
        .args(["--host", "127.0.0.1", "--username", SUPERUSER, "--port", &primary.port.to_string()])
        // Without a slot the copy never counts as a synchronous stand-by; `wal_keep_size` keeps the log that it needs.
        .args(["--wal-method", "stream", "--no-slot", "--checkpoint", "fast", "--no-password", "--pgdata"])
        .arg(&draft)
        .env("PGPASSWORD", superuser_password(layout, shard)?);
    run(backup, &draft, user, "")?;
    write_owned(&draft.join(SIGNAL), "", user)?;
    fs::rename(&draft, &standby.folder)?;
    // The copied settings are those of the primary.
    write_settings(layout, description, shard)
}

fn base_backup(description: &Description) -> PathBuf {
    description.postgres.bin_dir.join("pg_basebackup")
}

/// The folder in which a stand-by is made.
pub fn draft_of(standby: &Path) -> PathBuf {
    standby.with_added_extension("new")
}

/// The folder in which a stand-by is made, without what an interrupted attempt left.
fn draft(standby: &Path) -> anyhow::Result<PathBuf> {
    let draft = draft_of(standby);
    if draft.exists() {
        fs::remove_dir_all(&draft).with_context(|| format!("cannot remove {}", draft.display()))?;
    }
    Ok(draft)
}

/// The role of a server of a shard, as the server reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationRole {
    pub is_standby: bool,
    /// Whether the server is a stand-by that receives the log of a primary.
    pub is_streaming: bool,
    /// The position up to which the server has written or received the log, in bytes since the beginning of the log.
    pub at_byte: u64,
}

/// Asks one server of a shard, as the superuser.
pub async fn ask(layout: &Layout, shard: &ShardPlace, server: &ServerPlace) -> anyhow::Result<ReplicationRole> {
    const ROLE: &str = "SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
         pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
                         ELSE pg_current_wal_lsn() END, '0/0')::int8";
    let asked = async {
        let mut connection = connect(layout, shard, server).await?;
        let (is_standby, is_streaming, at_byte): (bool, bool, i64) =
            sqlx::query_as(ROLE).fetch_one(&mut connection).await?;
        connection.close().await?;
        anyhow::Ok(ReplicationRole { is_standby, is_streaming, at_byte: u64::try_from(at_byte)? })
    };
    timeout(PATIENCE, asked).await.context("it does not answer")?
}

/// Promotes a stand-by, and waits until it is a primary. A primary stays a primary.
pub async fn promote(layout: &Layout, shard: &ShardPlace, server: &ServerPlace) -> anyhow::Result<()> {
    let mut connection = connect(layout, shard, server).await?;
    let is_standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut connection).await?;
    if is_standby {
        let promoted: bool =
            sqlx::query_scalar("SELECT pg_promote(true, $1)").bind(PROMOTION_S).fetch_one(&mut connection).await?;
        ensure!(promoted, "{} was not promoted within {PROMOTION_S} s: see its log", server.name);
    }
    Ok(connection.close().await?)
}

async fn connect(layout: &Layout, shard: &ShardPlace, server: &ServerPlace) -> anyhow::Result<PgConnection> {
    let password = superuser_password(layout, shard)?;
    let url: DatabaseUrl = format!("postgres://{SUPERUSER}:{password}@127.0.0.1:{}/postgres", server.port).parse()?;
    let connected = timeout(PATIENCE, PgConnection::connect_with(&url.connect_options())).await;
    connected.context("it does not answer")?.with_context(|| format!("{} at port {}", server.name, server.port))
}
