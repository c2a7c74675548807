//! A PostgreSQL server of the test's own, for tests that change whole servers (settings, encodings, stand-bys,
//! promotions) and for shards whose nodes the test itself starts.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    leash::Leashed,
    node::Folder,
    programs::{Service, free_port, postgres_programs, service_user},
    wait::until,
};

/// The services' role. It owns the databases created here and may create nothing itself.
const ROLE: &str = "shardledger";
const PATIENCE: Duration = Duration::from_secs(60);
/// The line of `postmaster.pid` with the port, counted from 0.
const PORT_LINE: usize = 3;

/// A running server. Dropping it stops the server.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    user: Option<Service>,
    data: PathBuf,
    port: u16,
    running: Option<Leashed>,
}

impl Postgres {
    /// Creates and starts a server in its own folder.
    pub async fn start(folder: &Folder, name: &str) -> anyhow::Result<Self> {
        let mut server = Self::new(folder, name)?;
        server.run(
            "initdb",
            &[
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--data-checksums",
                "--no-sync",
            ],
        )?;
        server.write_settings()?;
        server.start_again().await?;
        server.sql("postgres", &format!("CREATE ROLE {ROLE} LOGIN")).await?;
        Ok(server)
    }

    /// The server of this data folder, which another process started and stops. Dropping this value leaves it running.
    pub fn running_in(data: &Path) -> anyhow::Result<Self> {
        let path = data.join("postmaster.pid");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let port = text.lines().nth(PORT_LINE).and_then(|line| line.trim().parse().ok());
        let port = port.with_context(|| format!("{} has no port: {text:?}", path.display()))?;
        Ok(Self { programs: postgres_programs()?, user: service_user()?, data: data.to_owned(), port, running: None })
    }

    /// The folder of the server's data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Creates a stand-by that follows this server. It copies the files itself, because not every installation has
    /// `pg_basebackup`.
    pub async fn standby(&self, folder: &Folder, name: &str) -> anyhow::Result<Self> {
        let mut standby = Self::new(folder, name)?;
        let label = self.copy_data(&standby.data, false).await?;
        standby.write("backup_label", &label)?;
        standby.write("standby.signal", "")?;
        let primary = format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n", self.port);
        standby.write("postgresql.auto.conf", &primary)?;
        standby.write_settings()?;
        standby.start_again().await?;
        Ok(standby)
    }

    /// Copies the data of the running server to an empty folder, and returns the label that belongs to the copy. With `archived`, it waits
    /// until the log that the copy needs is archived.
    async fn copy_data(&self, to: &Path, archived: bool) -> anyhow::Result<String> {
        let mut backup = self.connect("postgres").await?;
        sqlx::query("SELECT pg_backup_start('copy', true)").execute(&mut backup).await?;
        let copied = Command::new("cp").arg("-a").arg(self.data.join(".")).arg(to).output()?;
        ensure!(copied.status.success(), "cp could not copy the data: {}", String::from_utf8_lossy(&copied.stderr));
        let stop = sqlx::query_scalar("SELECT labelfile FROM pg_backup_stop($1)").bind(archived);
        let label = stop.fetch_one(&mut backup).await?;
        backup.close().await?;
        std::fs::remove_file(to.join("postmaster.pid"))?;
        Ok(label)
    }

    // === backups ===

    /// Restarts the server with an archive of its log in the folder `name` beside its data.
    pub async fn archives(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let archive = self.folder_beside(name)?;
        self.set("archive_mode", "on").await?;
        self.set("archive_command", &format!("test ! -f {0}/%f && cp %p {0}/%f", archive.display())).await?;
        self.stop()?;
        self.start_again().await?;
        Ok(archive)
    }

    /// Takes a base backup into the folder `name` beside the data.
    pub async fn base_backup(&self, name: &str) -> anyhow::Result<PathBuf> {
        let backup = self.folder_beside(name)?;
        let label = self.copy_data(&backup, true).await?;
        self.write_into(&backup, "backup_label", &label)?;
        Ok(backup)
    }

    /// Names the present point of the log, and waits until the log up to it is archived.
    pub async fn restore_point(&self, name: &str) -> anyhow::Result<()> {
        let create = format!("SELECT pg_walfile_name(pg_create_restore_point('{name}'))");
        let file = self.ask("postgres", &create).await?;
        self.sql("postgres", "SELECT pg_switch_wal()").await?;
        let archived = format!("SELECT (last_archived_wal >= '{file}')::text FROM pg_stat_archiver");
        until("the log is archived", PATIENCE, async || {
            Ok((self.ask("postgres", &archived).await? == "true").then_some(()))
        })
        .await
    }

    /// Puts a base backup in the place of the stopped server's data, and starts it at a named point of the archived log.
    pub async fn restore(&mut self, backup: &Path, archive: &Path, point: &str) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "the server must be stopped before it is restored");
        std::fs::rename(&self.data, self.data.with_extension("before-the-restore"))?;
        std::fs::rename(backup, &self.data)?;
        self.write("recovery.signal", "")?;
        let mut settings = std::fs::read_to_string(self.data.join("postgresql.auto.conf"))?;
        let archive = archive.display();
        // The restored server archives nothing: its timeline has another archive.
        settings.push_str(&format!(
            "restore_command = 'cp {archive}/%f %p'\nrecovery_target_name = '{point}'\nrecovery_target_action = 'promote'\n\
             archive_mode = 'off'\n"
        ));
        self.write("postgresql.auto.conf", &settings)?;
        self.start_again().await?;
        until("the restored server is a primary", PATIENCE, async || {
            Ok((self.ask("postgres", "SELECT pg_is_in_recovery()::text").await? == "false").then_some(()))
        })
        .await
    }

    fn folder_beside(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.data.with_file_name(name);
        std::fs::create_dir(&folder)?;
        self.own(&folder)?;
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(folder)
    }

    fn own(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(user) = self.user {
            chown(path, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    }

    /// Writes a file in the server's data folder.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        self.write_into(&self.data, name, text)
    }

    fn write_into(&self, folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        self.own(&path)
    }

    fn new(folder: &Folder, name: &str) -> anyhow::Result<Self> {
        let user = service_user()?;
        let data = folder.path().join(name);
        std::fs::create_dir(&data)?;
        if let Some(user) = user {
            chown(&data, Some(user.uid), Some(user.gid))?;
        }
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&data, permissions)?;
        Ok(Self { programs: postgres_programs()?, user, data, port: free_port()?, running: None })
    }

    fn write_settings(&self) -> anyhow::Result<()> {
        let mut file = File::options().append(true).open(self.data.join("postgresql.conf"))?;
        write!(
            file,
            "\nlisten_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nshared_buffers = 32MB\n\
             max_connections = 64\ntimezone = 'UTC'\n",
            self.port
        )?;
        Ok(())
    }

    /// Starts a stopped server.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.program("postgres");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let running = self.running.insert(Leashed::spawn(command)?);
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        until("PostgreSQL takes connections", PATIENCE, async || {
            if let Some(status) = running.ended()? {
                return Ok(Some(Err(status)));
            }
            Ok(Some(Ok(PgConnection::connect(&url).await?.close().await?)))
        })
        .await?
        .map_err(|status| anyhow::anyhow!("PostgreSQL ended by itself ({status})"))
        .with_context(|| std::fs::read_to_string(self.log_path()).unwrap_or_default())
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The URL of a database of this server, for the services.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates an empty database of the services' role; `how` is appended to `CREATE DATABASE`.
    pub async fn create_database(&self, name: &str, how: &str) -> anyhow::Result<String> {
        self.sql("postgres", &format!("CREATE DATABASE \"{name}\" OWNER {ROLE} {how}")).await?;
        Ok(self.url(name))
    }

    /// Runs SQL as the superuser.
    pub async fn sql(&self, database: &str, sql: &str) -> anyhow::Result<()> {
        let mut connection = self.connect(database).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await
            .with_context(|| sql.to_owned())?;
        Ok(connection.close().await?)
    }

    /// Runs a query as the superuser and returns the text of its result.
    pub async fn ask(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let mut connection = self.connect(database).await?;
        let answer = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await;
        answer.with_context(|| sql.to_owned())
    }

    async fn connect(&self, database: &str) -> anyhow::Result<PgConnection> {
        let url = format!("postgres://postgres@127.0.0.1:{}/{database}", self.port);
        Ok(PgConnection::connect(&url).await?)
    }

    /// Changes a setting of the server, as an operator does.
    pub async fn set(&self, setting: &str, value: &str) -> anyhow::Result<()> {
        self.sql("postgres", &format!("ALTER SYSTEM SET {setting} = '{value}'")).await?;
        self.sql("postgres", "SELECT pg_reload_conf()").await
    }

    /// From now on, the services' role may connect with TLS only, and the server shows this certificate.
    pub async fn encrypts(&self, certificate: &Path, key: &Path) -> anyhow::Result<()> {
        self.write("server.pem", &std::fs::read_to_string(certificate)?)?;
        self.write("server.key", &std::fs::read_to_string(key)?)?;
        let secret = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.data.join("server.key"), secret)?;
        let rules = format!(
            "hostssl all {ROLE} 127.0.0.1/32 trust\nhost all {ROLE} 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 trust\n"
        );
        self.write("pg_hba.conf", &rules)?;
        self.set("ssl_cert_file", "server.pem").await?;
        self.set("ssl_key_file", "server.key").await?;
        self.set("ssl", "on").await
    }

    pub async fn reset(&self, setting: &str) -> anyhow::Result<()> {
        self.sql("postgres", &format!("ALTER SYSTEM RESET {setting}")).await?;
        self.sql("postgres", "SELECT pg_reload_conf()").await
    }

    /// Copies a database. Sessions connected to it are terminated.
    pub async fn copy(&self, database: &str, copy: &str) -> anyhow::Result<()> {
        self.alone(database, &format!("CREATE DATABASE \"{copy}\" OWNER {ROLE} TEMPLATE \"{database}\"")).await?;
        self.sql("postgres", &format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS true")).await
    }

    /// Renames this database to `aside`, and gives its name to the database `other`.
    pub async fn swap(&self, database: &str, aside: &str, other: &str) -> anyhow::Result<()> {
        self.alone(database, &format!("ALTER DATABASE \"{database}\" RENAME TO \"{aside}\"")).await?;
        self.sql("postgres", &format!("ALTER DATABASE \"{aside}\" ALLOW_CONNECTIONS true")).await?;
        self.sql("postgres", &format!("ALTER DATABASE \"{other}\" RENAME TO \"{database}\"")).await
    }

    /// Runs SQL while the database accepts no connections and no session is connected to it.
    async fn alone(&self, database: &str, sql: &str) -> anyhow::Result<()> {
        self.sql("postgres", &format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS false")).await?;
        let terminate =
            format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'");
        until("no session is connected to the database", PATIENCE, async || {
            self.sql("postgres", &terminate).await?;
            self.sql("postgres", sql).await.map(Some)
        })
        .await
    }

    // === stand-bys and promotion ===

    /// Waits until the stand-by has everything that `primary` has.
    pub async fn has_caught_up(&self, primary: &Self) -> anyhow::Result<()> {
        let written = primary.ask("postgres", "SELECT pg_current_wal_flush_lsn()::text").await?;
        let replayed = format!("SELECT (pg_last_wal_replay_lsn() >= '{written}')::text");
        until("the stand-by has everything", PATIENCE, async || {
            Ok((self.ask("postgres", &replayed).await? == "true").then_some(()))
        })
        .await
    }

    /// Cuts the stand-by off from its primary.
    pub async fn stops_following(&self) -> anyhow::Result<()> {
        self.set("primary_conninfo", "").await?;
        let receivers = "SELECT count(*)::text FROM pg_stat_wal_receiver";
        until("the stand-by is cut off", PATIENCE, async || {
            Ok((self.ask("postgres", receivers).await? == "0").then_some(()))
        })
        .await
    }

    pub async fn follows(&self, primary: &Self) -> anyhow::Result<()> {
        self.set("primary_conninfo", &format!("host=127.0.0.1 port={} user=postgres", primary.port)).await
    }

    pub async fn promote(&self) -> anyhow::Result<()> {
        ensure!(self.ask("postgres", "SELECT pg_promote()::text").await? == "true", "the stand-by was not promoted");
        Ok(())
    }

    /// Makes each commit wait until a stand-by has it, and waits until a stand-by is there.
    pub async fn replicates_synchronously(&self) -> anyhow::Result<()> {
        self.set("synchronous_standby_names", "*").await?;
        let synchronous = "SELECT count(*)::text FROM pg_stat_replication WHERE sync_state = 'sync'";
        until("a stand-by is synchronous", PATIENCE, async || {
            Ok((self.ask("postgres", synchronous).await? == "1").then_some(()))
        })
        .await
    }

    /// Sends `kill -9` to the postmaster. Its other processes end by themselves.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let running = self.running.take().context("the server does not run")?;
        running.process().kill().await?;
        let port = self.port;
        until("the killed server has left its port", PATIENCE, async || {
            Ok(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(()))
        })
        .await
    }

    /// Stops the server and keeps its data.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.run("pg_ctl", &["stop", "--mode=fast", "--wait"])?;
        self.running = None;
        Ok(())
    }

    // === programs ===

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.arg("-D").arg(&self.data).current_dir(&self.data).env("LC_ALL", "C");
        if let Some(Service { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.program(name).args(arguments).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The server is shut down in an orderly way, because the kernel would keep the shared memory of a killed server. Dropping `running`
        // kills a server that does not end.
        if self.running.is_some() {
            let _ = self.run("pg_ctl", &["stop", "--mode=immediate", "--wait"]);
        }
    }
}
