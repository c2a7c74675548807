//! The other side of the comparison: a PL/pgSQL transfer function, driven by pgbench.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};
use shard_database::DatabaseUrl;
use sqlx::{Connection, PgConnection};

use crate::cluster::environment;

const SCHEMA: &str = include_str!("../../../sql/baseline.sql");
const UNIFORM: &str = include_str!("../../../sql/pgbench_transfer_uniform.sql");
const HOT: &str = include_str!("../../../sql/pgbench_transfer_hot.sql");

/// Settings that decide what a commit costs, shown with the result.
const SETTINGS: &str = "
    SELECT name, setting || coalesce(unit, '') FROM pg_settings
    WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size',
                   'checkpoint_timeout', 'data_checksums')
    ORDER BY name";

/// Which transfers pgbench sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    Uniform,
    Hot,
}

/// A database with the function in it, and the client beside it.
pub struct Baseline {
    pgbench: PathBuf,
    /// Where the scripts are.
    folder: PathBuf,
    dsn: Dsn,
    url: String,
}

impl Baseline {
    /// Installs the function and writes the scripts.
    pub async fn prepare(dsn: &str, bin_dir: &Path, folder: &Path) -> anyhow::Result<Self> {
        let beside_server = bin_dir.join("pgbench");
        let pgbench = if beside_server.is_file() { beside_server } else { PathBuf::from("pgbench") };
        let mut connection = connect(dsn).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await.context("installing the PL/pgSQL transfer function")?;
        connection.close().await?;
        for script in [Script::Uniform, Script::Hot] {
            std::fs::write(folder.join(script.file()), script.text())?;
        }
        Ok(Self { pgbench, folder: folder.to_owned(), dsn: Dsn::parse(dsn)?, url: dsn.to_owned() })
    }

    /// The settings of the server, by name.
    pub async fn settings(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut connection = connect(&self.url).await?;
        let settings = sqlx::query_as(SETTINGS).fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(settings)
    }

    /// Transfers a second, one commit each.
    pub async fn measure(&self, script: Script, clients: u16, seconds: u32, seed: u64) -> anyhow::Result<f64> {
        let mut pgbench = Command::new(&self.pgbench);
        // Variables of libpq in the operator's shell may name another database than the measured one.
        environment::clean(&mut pgbench);
        pgbench
            .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
            .arg(format!("--client={clients}"))
            .arg(format!("--time={seconds}"))
            .arg(format!("--random-seed={seed}"))
            .arg("--file")
            .arg(self.folder.join(script.file()))
            .env("PGHOST", &self.dsn.host)
            .env("PGPORT", &self.dsn.port)
            .env("PGUSER", &self.dsn.user)
            .env("PGPASSWORD", &self.dsn.password)
            .env("PGDATABASE", &self.dsn.database);
        let output = tokio::process::Command::from(pgbench)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("running {} (it comes with PostgreSQL)", self.pgbench.display()))?;
        let (text, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("pgbench failed: {complaints}");
        }
        transactions_per_s(&text).with_context(|| format!("pgbench's report: {text}"))
    }
}

pub async fn connect(dsn: &str) -> anyhow::Result<PgConnection> {
    let url = DatabaseUrl::new(dsn).map_err(|error| anyhow::anyhow!("the cluster's DSN: {error}"))?;
    Ok(PgConnection::connect_with(&url.connect_options()).await?)
}

fn transactions_per_s(report: &str) -> anyhow::Result<f64> {
    let line = report.lines().find_map(|line| line.strip_prefix("tps = ")).context("no line with tps")?;
    let number = line.split_ascii_whitespace().next().unwrap_or_default();
    let rate: f64 = number.parse()?;
    let failed = report.lines().find_map(|line| line.strip_prefix("number of failed transactions: "));
    ensure!(failed.is_none_or(|failed| failed.starts_with("0 ")), "transactions failed");
    Ok(rate)
}

// === impl Script ===

impl Script {
    fn file(self) -> &'static str {
        match self {
            Self::Uniform => "pgbench_transfer_uniform.sql",
            Self::Hot => "pgbench_transfer_hot.sql",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Uniform => UNIFORM,
            Self::Hot => HOT,
        }
    }
}

/// A DSN in parts, for the environment: on a command line everyone on the machine could read the password.
#[derive(Debug, PartialEq, Eq)]
struct Dsn {
    user: String,
    password: String,
    host: String,
    port: String,
    database: String,
}

impl Dsn {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let parts = || {
            let (credentials, place) = text.strip_prefix("postgres://")?.rsplit_once('@')?;
            let (user, password) = credentials.split_once(':')?;
            let (server, database) = place.split_once('/')?;
            let (host, port) = server.rsplit_once(':')?;
            let [user, password, host, port, database] = [user, password, host, port, database].map(str::to_owned);
            Some(Self { user, password, host, port, database })
        };
        parts().context("the cluster's DSN is not of the form postgres://USER:PASSWORD@HOST:PORT/DATABASE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pgbenchs_report_is_read() {
        let report = "number of transactions actually processed: 9\nnumber of failed transactions: 0 (0.000%)\n\
                      latency average = 1.2 ms\ntps = 1234.567890 (without initial connection time)\n";
        assert_eq!(transactions_per_s(report).unwrap(), 1_234.567_89);
        assert!(transactions_per_s(&report.replace("transactions: 0", "transactions: 3")).is_err());
        assert!(transactions_per_s("").is_err());
    }

    #[test]
    fn a_dsn_has_parts() {
        let dsn = Dsn::parse("postgres://shardledger:secret@127.0.0.1:5510/ledger").unwrap();
        assert_eq!((dsn.user.as_str(), dsn.port.as_str(), dsn.database.as_str()), ("shardledger", "5510", "ledger"));
        assert!(Dsn::parse("postgres://127.0.0.1/ledger").is_err());
    }
}
