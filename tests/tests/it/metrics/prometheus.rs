//! Prometheus and its promtool: those of the machine, or those that `tests/prometheus.sh` has unpacked for `make test`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::Value;
use testkit::{client::Client, leash::Leashed, node::Folder, ports, programs::in_path, wait::until};

/// Names the folder of the two programs.
const BIN_VARIABLE: &str = "SHARDLEDGER_PROMETHEUS_BIN";
const PATIENCE: Duration = Duration::from_secs(60);

/// The files of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// `None` if this machine has no such program: the caller then skips its test, and the reason is printed.
pub fn program(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(BIN_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let found = named.map(|folder| folder.join(name)).filter(|path| path.is_file()).or_else(|| in_path(name));
    if found.is_none() {
        eprintln!("SKIPPED: this machine has no {name} (Debian: apt-get install prometheus, or run `make test`)");
    }
    found
}

/// Runs promtool, which must find nothing to complain about. `input` is its standard input.
pub fn promtool(program: &Path, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(repository("ops"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool {}:\n{said}", arguments.join(" "));
    Ok(())
}

/// A running Prometheus.
pub struct Prometheus {
    url: String,
    client: Client,
    _running: Leashed,
}

impl Prometheus {
    /// Reads the metrics of these admin listeners once a second, and waits until it has read each twice.
    pub async fn start(program: &Path, folder: &Folder, jobs: &[(&str, Vec<String>)]) -> anyhow::Result<Self> {
        let mut config = "global:\n  scrape_interval: 1s\nscrape_configs:\n".to_owned();
        for (job, targets) in jobs {
            let targets: Vec<_> = targets.iter().map(|url| url.trim_start_matches("http://")).collect();
            config += &format!("- job_name: {job}\n  static_configs:\n  - targets: {targets:?}\n");
        }
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config)?;
        let address = format!("127.0.0.1:{}", ports::free()?);
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("prometheus.log"))?);
        let running = Leashed::spawn(command)?;
        let started = Self { url: format!("http://{address}"), client: Client::new(Vec::new()), _running: running };
        let targets: usize = jobs.iter().map(|(_, targets)| targets.len()).sum();
        until("Prometheus has read every target twice", PATIENCE, async || {
            let read = started.query("count(count_over_time(up[1m]) >= 2 and up == 1)").await.unwrap_or_default();
            Ok(read.first().is_some_and(|sample| sample["value"][1] == targets.to_string().as_str()).then_some(()))
        })
        .await
        .with_context(|| std::fs::read_to_string(folder.path().join("prometheus.log")).unwrap_or_default())?;
        Ok(started)
    }

    /// The samples that the query finds now.
    pub async fn query(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let url = format!("{}/api/v1/query?query={encoded}", self.url);
        let answer = self.client.request(Method::GET, &url, None).await?.json()?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }
}
