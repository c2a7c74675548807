//! Clusters that exist only for a measurement.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http::Method;

use super::{
    baseline::connect,
    machine::{Memory, Spent},
};
use crate::{
    cluster::{
        Description, Layout,
        member::{Member, ProcessRole},
        process::{Process, ProcessTable},
    },
    http_client::HttpClient,
    verify::{self, Target},
};

/// The role that initdb creates.
const SUPERUSER: &str = "postgres";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows of the journal that are not folded yet. A node without a fold does not export the metric.
const UNFOLDED_ROWS: &str = "shardledger_fold_tail_rows";
/// The bytes of the ledger's tables and indexes.
const LEDGER_BYTES: &str = "
    SELECT sum(pg_total_relation_size(c.oid))::float8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'shardledger' AND c.relkind = 'r'";

/// A cluster in a folder of its own. Dropping this value stops the cluster and removes its data.
pub struct OwnCluster {
    data_dir: PathBuf,
    pub description: Description,
    layout: Layout,
}

impl OwnCluster {
    /// Starts a cluster by running this program, on free ports.
    pub fn start(data_dir: PathBuf, shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(data_dir, shards, routers, 1, &[])
    }

    /// [`OwnCluster::start`] with HTTPS, with mutual TLS between routers and nodes, and with routers that want a key. Returns the secret of a key that may do everything.
    pub fn start_secured(data_dir: PathBuf, shards: u16, routers: u16) -> anyhow::Result<(Self, String)> {
        let cluster = Self::start_all(data_dir, shards, routers, 1, &["--tls"])?;
        run(cluster.command()?.arg("down"))?;
        let create = ["key", "create", "bench", "--role", "read,write,admin"];
        let everything = ["--debit", "*", "--credit", "*", "--read", "*", "--json"];
        let file = cluster.data_dir.join("keys.toml");
        std::fs::write(&file, "")?;
        let created = run(cluster.command()?.args(create).args(everything).arg("--file").arg(&file))?;
        let created: serde_json::Value = serde_json::from_str(&created)?;
        let secret = created["secret"].as_str().context("the key that was made has no secret")?.to_owned();
        for place in &cluster.description.routers {
            let path = cluster.layout.config(&place.name);
            let mut settings: toml_edit::DocumentMut = std::fs::read_to_string(&path)?.parse()?;
            settings["keys"]["path"] = toml_edit::value("../keys.toml");
            std::fs::write(&path, settings.to_string())?;
        }
        run(cluster.command()?.arg("up"))?;
        Ok((cluster, secret))
    }

    /// [`OwnCluster::start`] with a second node for each shard.
    pub fn start_with_second_nodes(data_dir: PathBuf, shards: u16, routers: u16) -> anyhow::Result<Self> {
        Self::start_all(data_dir, shards, routers, 2, &[])
    }

    fn start_all(data_dir: PathBuf, shards: u16, routers: u16, nodes: u16, more: &[&str]) -> anyhow::Result<Self> {
        // From here on, a failure of `up` also removes the processes that `up` has started.
        let guard = RemovalGuard(&data_dir);
        let up = shardctl(&data_dir)?
            .args(["up", "--port-base", "0", "--shards"])
            .arg(shards.to_string())
            .arg("--routers")
            .arg(routers.to_string())
            .arg("--nodes")
            .arg(nodes.to_string())
            .args(more)
            .stdout(Stdio::null())
            .output()?;
        ensure!(up.status.success(), "starting a cluster: {}", String::from_utf8_lossy(&up.stderr));
        let layout = Layout::find(&data_dir)?;
        let description = Description::load(&layout)?.context("the cluster that was started has no description")?;
        std::mem::forget(guard);
        Ok(Self { data_dir, description, layout })
    }

    /// The databases, by shard.
    pub fn databases(&self) -> anyhow::Result<Vec<Target>> {
        let shards = self.description.shards.iter();
        shards.map(|shard| Ok(Target { shard: shard.id.clone(), dsn: shard.dsn(&self.layout)? })).collect()
    }

    /// Writes a checkpoint in every database, which only a superuser may do.
    pub async fn checkpoint(&self) -> anyhow::Result<()> {
        let mut dsns = Vec::new();
        for shard in &self.description.shards {
            let password = std::fs::read_to_string(self.layout.password(&shard.id, SUPERUSER))?;
            let (port, database) = (shard.postgres_port, crate::cluster::description::ROLE);
            dsns.push(format!("postgres://{SUPERUSER}:{}@127.0.0.1:{port}/{database}", password.trim()));
        }
        try_join_all(dsns.iter().map(async |dsn| {
            sqlx::query("CHECKPOINT").execute(&mut connect(dsn).await?).await?;
            anyhow::Ok(())
        }))
        .await?;
        Ok(())
    }

    /// The size of the ledgers in all databases, tables and indexes.
    pub async fn ledger_bytes(&self) -> anyhow::Result<f64> {
        let mut bytes = 0.0;
        for database in self.databases()? {
            bytes += sqlx::query_scalar::<_, f64>(LEDGER_BYTES).fetch_one(&mut connect(&database.dsn).await?).await?;
        }
        Ok(bytes)
    }

    /// The rows of all journals that are not folded yet. `None` if the nodes do not report them.
    pub async fn unfolded_rows(&self) -> Option<f64> {
        let client = HttpClient::new(ANSWER_TIMEOUT);
        let mut rows = None;
        for shard in &self.description.shards {
            let url = format!("{}/metrics", shard.node_admin_url());
            let (_, text) = client.send(Method::GET, &url, Bytes::new()).await.ok()?;
            if let Some(found) = gauge(&String::from_utf8_lossy(&text), UNFOLDED_ROWS) {
                *rows.get_or_insert(0.0) += found;
            }
        }
        rows
    }

    /// Runs a command of this program on the cluster. Returns what the command printed.
    ///
    /// # Errors
    /// The command fails. The error contains its output.
    pub async fn shardctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output =
            tokio::process::Command::from(self.command()?).args(arguments).kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "shardctl {}: {said}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self) -> anyhow::Result<Command> {
        shardctl(&self.data_dir)
    }

    /// Whether `shardctl verify` finds no violation. The figures of a ledger that does not balance are void.
    pub async fn is_clean(&self) -> anyhow::Result<bool> {
        Ok(verify::verify(&self.databases()?).await?.is_clean())
    }

    /// The running processes of a role, in the order of the shards or routers.
    pub fn processes(&self, role: ProcessRole) -> anyhow::Result<Vec<Process>> {
        let table = ProcessTable::read()?;
        let members = Member::all(&self.layout, &self.description);
        Ok(members.iter().filter(|member| member.role == role).filter_map(|member| member.running(&table)).collect())
    }

    /// The memory of each process of the cluster.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        Memory::now(&self.layout, &self.description)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The processor time that the processes of the cluster and this process have spent so far.
    pub fn spent(&self) -> anyhow::Result<Spent> {
        Spent::now(&self.layout, &self.description)
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        remove(&self.data_dir);
    }
}

struct RemovalGuard<'a>(&'a Path);

impl Drop for RemovalGuard<'_> {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn remove(data_dir: &Path) {
    let removed = shardctl(data_dir).and_then(|mut command| {
        Ok(command.args(["down", "--wipe", "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?)
    });
    if !removed.is_ok_and(|status| status.success()) {
        crate::output::note(&format!("the cluster in {} could not be removed", data_dir.display()));
    }
}

/// The value of a metric without labels, or the sum over its labels.
fn gauge(metrics: &str, name: &str) -> Option<f64> {
    let of_name = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.split_once('}')?.1,
            None => rest,
        };
        value.strip_prefix(' ')?.trim().parse::<f64>().ok()
    });
    of_name.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// Runs a command to its end and returns what it printed.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shardctl(data_dir: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--data-dir").arg(data_dir).stdin(Stdio::null());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::gauge;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# TYPE a gauge\na 1.5\nab 7\nb{shard=\"s0\"} 2\nb{shard=\"s1\"} 3\n";
        assert_eq!([gauge(text, "a"), gauge(text, "b"), gauge(text, "c")], [Some(1.5), Some(5.0), None]);
    }
}
