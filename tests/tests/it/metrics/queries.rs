//! Tests of alerts and dashboards with the programs `prometheus` and `promtool`. Each alert must pass its test and have a runbook, and each
//! query must find its series in a live cluster. The programs are the machine's own, or those that `tests/prometheus.sh` unpacks for `make
//! test`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::Value;
use testkit::{
    client::Client,
    cluster::Cluster,
    leash::Leashed,
    node::Folder,
    programs::{free_port, in_path},
    wait::until,
};

use super::{Exposition, two_accounts};

/// Metrics that a cluster without keys and certificates does not serve. The reference is checked against one that has both.
const OF_KEYS_AND_TLS: [&str; 3] = [
    "shardledger_keys_last_reload_success",
    "shardledger_tls_last_reload_success",
    "shardledger_tls_certificate_not_after_seconds",
];

#[test]
fn every_alert_passes_its_test() -> anyhow::Result<()> {
    let Some(program) = program("promtool") else { return Ok(()) };
    promtool(&program, &["check", "rules", "alerts.yml"], "")?;
    promtool(&program, &["test", "rules", "alerts.test.yml"], "")?;
    let (alerts, tests) = (alert_names()?, read("ops/alerts.test.yml")?);
    for alert in alerts {
        ensure!(tests.contains(&format!("alertname=\"{alert}\"")), "ops/alerts.test.yml has no test of {alert}");
    }
    Ok(())
}

#[test]
fn every_alert_has_a_runbook() -> anyhow::Result<()> {
    let (rules, runbooks) = (read("ops/alerts.yml")?, read("docs/operations/alerts.md")?);
    let alerts = alert_names()?;
    for alert in &alerts {
        let section = runbooks.split(&format!("\n## {alert}\n")).nth(1);
        let section = section.with_context(|| format!("docs/operations/alerts.md has no section {alert}"))?;
        let section = section.split("\n## ").next().unwrap_or_default();
        for part in ["**Meaning.**", "**Look at**", "**Do.**"] {
            ensure!(section.contains(part), "the runbook of {alert} does not say {part}");
        }
        let link = format!("runbook_url: docs/operations/alerts.md#{}\n", alert.to_lowercase());
        ensure!(rules.contains(&link), "{alert} has no {link}");
    }
    let sections: Vec<_> = runbooks.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    ensure!(sections == alerts, "the runbooks are {sections:?}, and the alerts are {alerts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_finds_its_series() -> anyhow::Result<()> {
    let (alerts, panels) = (alert_expressions()?, panel_queries()?);
    let cluster = Cluster::start(2, 1).await?;
    two_accounts(&cluster).await?;
    let status = cluster.status();
    let routers: Vec<_> = status.routers.iter().map(|router| router.admin_url.clone()).collect();
    let nodes: Vec<_> = status.shards.iter().map(|shard| shard.node_admin_url.clone()).collect();

    let mut served = BTreeSet::from(["up".to_owned()]);
    for url in routers.iter().chain(&nodes) {
        for (name, family) in Exposition::fetch(url).await?.families {
            if family.kind == "histogram" {
                served.extend(["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")));
            }
            served.insert(name);
        }
    }
    for query in alerts.iter().chain(&panels) {
        for name in names_in(query) {
            ensure!(served.contains(&name) || OF_KEYS_AND_TLS.contains(&&*name), "no {name} is served: {query}");
        }
    }

    let Some(program) = program("prometheus") else { return cluster.finish().await };
    let folder = Folder::create()?;
    let prometheus =
        Prometheus::start(&program, &folder, &[("shardledger-router", routers), ("shardledger-node", nodes)]).await?;
    for query in &panels {
        let found = prometheus.query(query).await?;
        ensure!(!found.is_empty(), "a panel shows nothing: {query}");
    }
    for expression in &alerts {
        // A healthy cluster fires no alert.
        let found = prometheus.query(expression).await?;
        ensure!(found.is_empty(), "an alert of a healthy cluster: {expression}: {found:?}");
    }
    drop(prometheus);
    cluster.finish().await
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(repository(path)).with_context(|| path.to_owned())
}

fn alert_names() -> anyhow::Result<Vec<String>> {
    let names = read("ops/alerts.yml")?;
    let names: Vec<_> =
        names.lines().filter_map(|line| Some(line.trim().strip_prefix("- alert: ")?.to_owned())).collect();
    ensure!(!names.is_empty(), "ops/alerts.yml has no alert");
    Ok(names)
}

/// Each expression of `alerts.yml` is on one line.
fn alert_expressions() -> anyhow::Result<Vec<String>> {
    let rules = read("ops/alerts.yml")?;
    let found: Vec<_> =
        rules.lines().filter_map(|line| Some(line.trim().strip_prefix("expr: ")?.to_owned())).collect();
    ensure!(found.len() == alert_names()?.len(), "an alert has no expression on the line `expr: …`");
    Ok(found)
}

/// The queries of all panels, with what Grafana would put in place of its variables.
fn panel_queries() -> anyhow::Result<Vec<String>> {
    let mut queries = Vec::new();
    for file in std::fs::read_dir(repository("ops/dashboards"))? {
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file?.path())?)?;
        let panels = dashboard["panels"].as_array().with_context(|| format!("expected panels in {dashboard}"))?;
        for target in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
            let query = target["expr"].as_str().with_context(|| format!("no query: {target}"))?;
            queries.push(query.replace("$__rate_interval", "1m").replace("$shard", ".*"));
        }
    }
    ensure!(queries.len() > 10, "only {} queries", queries.len());
    Ok(queries)
}

/// The metrics that a query names.
fn names_in(query: &str) -> Vec<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '"');
    words
        .filter(|word| *word == "up" || word.starts_with("shardledger_") || word.starts_with("process_"))
        .map(ToOwned::to_owned)
        .collect()
}

/// The variable that names the folder of the two programs.
const BIN_VARIABLE: &str = "SHARDLEDGER_PROMETHEUS_BIN";
const PATIENCE: Duration = Duration::from_secs(60);

/// The path of a file in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Finds a program. Returns `None` and prints the reason if this machine does not have it. The caller then skips its test.
pub fn program(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(BIN_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let found = named.map(|folder| folder.join(name)).filter(|path| path.is_file()).or_else(|| in_path(name));
    if found.is_none() {
        eprintln!("SKIPPED: this machine has no {name} (Debian: apt-get install prometheus, or run `make test`)");
    }
    found
}

/// Runs promtool with this standard input. It must find nothing.
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
        let address = format!("127.0.0.1:{}", free_port()?);
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
        expect!(answer["status"] == "success", "{query}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }
}
