//! The baseline of the comparison: a PL/pgSQL transfer function that pgbench calls.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use shard_database::DatabaseUrl;
use sqlx::{Connection, PgConnection};

use super::tally::{Latency, Tally};
use crate::cluster::process;

const SCHEMA: &str = include_str!("../../sql/baseline.sql");
const UNIFORM: &str = include_str!("../../sql/pgbench_transfer_uniform.sql");
const HOT: &str = include_str!("../../sql/pgbench_transfer_hot.sql");

/// Accounts that the schema makes and the scripts use.
const ACCOUNTS: usize = 100_000;
const LATENCY_LOG: &str = "pgbench_latency";

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

/// A database that contains the function, and the client that calls it.
pub struct Baseline {
    pgbench: PathBuf,
    /// The folder of the scripts.
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

    /// Makes this number of accounts in place of the usual 100,000.
    pub async fn grow(&mut self, accounts: usize) -> anyhow::Result<()> {
        let mut connection = connect(&self.url).await?;
        let first = ACCOUNTS + 1;
        sqlx::query("INSERT INTO baseline.account SELECT id, 0, NULL, 0 FROM generate_series($1, $2) AS id")
            .bind(first as i64)
            .bind(accounts as i64)
            .execute(&mut connection)
            .await?;
        sqlx::query("ANALYZE baseline.account").execute(&mut connection).await?;
        connection.close().await?;
        for script in [Script::Uniform, Script::Hot] {
            std::fs::write(self.folder.join(script.file()), script.text_for(accounts))?;
        }
        Ok(())
    }

    /// Measures the latency of one transfer at a time.
    pub async fn measure_latency(&self, seconds: u32, seed: u64) -> anyhow::Result<(f64, Latency)> {
        let prefix = self.folder.join(LATENCY_LOG);
        let per_s = self.run(Script::Uniform, 1, seconds, seed, Some(&prefix)).await?;
        let mut tally = Tally::new()?;
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LATENCY_LOG)) {
                record_latencies(&std::fs::read_to_string(&path)?, &mut tally);
                std::fs::remove_file(&path)?;
            }
        }
        ensure!(tally.requests > 0, "pgbench logged no transfer");
        Ok((per_s, tally.latency()))
    }

    /// Measures transfers a second. Each transfer is one commit.
    pub async fn measure(&self, script: Script, clients: u16, seconds: u32, seed: u64) -> anyhow::Result<f64> {
        self.run(script, clients, seconds, seed, None).await
    }

    async fn run(
        &self,
        script: Script,
        clients: u16,
        seconds: u32,
        seed: u64,
        log: Option<&Path>,
    ) -> anyhow::Result<f64> {
        let mut pgbench = Command::new(&self.pgbench);
        // Variables of libpq in the operator's shell may name another database than the measured one.
        process::clean_environment(&mut pgbench);
        pgbench
            .args(["--no-vacuum", "--protocol=prepared"])
            // Each thread needs at least one client.
            .arg(format!("--jobs={}", clients.min(2)))
            .arg(format!("--client={clients}"))
            .arg(format!("--time={seconds}"))
            .arg(format!("--random-seed={seed}"))
            .arg("--file")
            .arg(self.folder.join(script.file()))
            .args(log.map(|prefix| format!("--log-prefix={}", prefix.display())))
            .args(log.map(|_| "--log"))
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

/// The settings of a server, by name.
pub async fn settings(dsn: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut connection = connect(dsn).await?;
    let settings = sqlx::query_as(SETTINGS).fetch_all(&mut connection).await?;
    connection.close().await?;
    Ok(settings)
}

pub async fn connect(dsn: &str) -> anyhow::Result<PgConnection> {
    let url = DatabaseUrl::new(dsn).map_err(|error| anyhow::anyhow!("the cluster's DSN: {error}"))?;
    Ok(PgConnection::connect_with(&url.connect_options()).await?)
}

/// Each line of pgbench's log is one transaction; the third word is its latency in microseconds.
fn record_latencies(log: &str, tally: &mut Tally) {
    let latencies = log.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
    latencies.for_each(|us| tally.record(Duration::from_micros(us)));
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

    /// The script for another number of accounts.
    fn text_for(self, accounts: usize) -> String {
        self.text()
            .replace(&format!(", {ACCOUNTS})"), &format!(", {accounts})"))
            .replace(&format!(", {})", ACCOUNTS - 1), &format!(", {})", accounts - 1))
    }

    fn text(self) -> &'static str {
        match self {
            Self::Uniform => UNIFORM,
            Self::Hot => HOT,
        }
    }
}

/// A DSN in parts, which are passed in the environment. Every user of the machine can read the password on a command line.
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
    fn latencies_are_read_from_pgbenchs_log() {
        let mut tally = Tally::new().unwrap();
        record_latencies("0 1 800 0 1700000000 5\n0 2 1200 0 1700000000 905\n", &mut tally);
        assert_eq!((tally.requests, tally.latency().max), (2, 1_200));
    }

    #[test]
    fn the_scripts_can_use_more_accounts() {
        let uniform = Script::Uniform.text_for(10_000_000);
        assert!(
            uniform.contains("debit random(1, 10000000)") && uniform.contains("other random(1, 9999999)"),
            "{uniform}"
        );
        assert!(Script::Hot.text_for(10_000_000).contains("other random(2, 10000000)"));
        assert_eq!(Script::Uniform.text_for(ACCOUNTS), Script::Uniform.text());
    }

    #[test]
    fn a_dsn_has_parts() {
        let dsn = Dsn::parse("postgres://shardledger:secret@127.0.0.1:5510/ledger").unwrap();
        assert_eq!((dsn.user.as_str(), dsn.port.as_str(), dsn.database.as_str()), ("shardledger", "5510", "ledger"));
        assert!(Dsn::parse("postgres://127.0.0.1/ledger").is_err());
    }
}
