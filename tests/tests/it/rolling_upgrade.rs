//! Replaces every node and every router under load, in the order of `docs/operations/upgrade.md`. `SHARDLEDGER_OLD_BIN` names the folder of
//! the programs of the version before (`make upgrade-test`). Without it, old and new are the same programs, and the test is a rolling
//! restart.

mod clients;
mod programs;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use testkit::{
    audit::audit,
    client::Client,
    cluster::{Cluster, Status},
    process::Process,
    seed::Seed,
    wait::until,
    workload::{Load, Mix},
};

use clients::{OldOrders, OtherClients};
use programs::{Programs, ServiceProcess, commits, migrate};

const SHARDS: u16 = 2;
const ROUTERS: u16 = 2;
/// A client's deadline. It is longer than any wait on an idle machine. The test prints the longest wait.
const DEADLINE: Duration = Duration::from_secs(10);
const MIX: Mix = Mix {
    single_clients: 4,
    batch_clients: 1,
    two_phase_clients: 2,
    batch_items: 10,
    gives_up: false,
    request_timeout: DEADLINE,
};
/// The number of requests that end between two replacements.
const BETWEEN: usize = 150;
/// The number of operations of each shard, and of answers of each router, while both versions run.
const OF_EACH_VERSION: u32 = 20;
/// The time that a busy machine may take for these operations and answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// The answers that a client may get while no node of a shard runs, because the database is migrated. They say that nothing was executed,
/// or that a transfer to another shard waits for that shard.
const WHILE_A_SHARD_MIGRATES: [&str; 4] =
    ["503 shard_unavailable", "202", "item failed shard_unavailable", "item pending"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_routers_are_replaced_under_load_and_no_client_gets_an_error() -> anyhow::Result<()> {
    let seed = Seed::announce("rolling upgrade");
    let programs = Programs::of_the_version_before()?;
    if programs.are_same {
        eprintln!(
            "rolling upgrade: SHARDLEDGER_OLD_BIN is not set, so old and new are the same programs: a rolling restart"
        );
    }
    let cluster = Cluster::start_from(programs.folder(), &["--nodes", "2"], SHARDS, ROUTERS).await?;
    let client = Arc::new(cluster.client().with_timeout(DEADLINE).behind_gateway());
    let migrates = !migrate(&cluster, 0, "--dry-run").await?.is_empty();
    let old = Arc::new(OldOrders::place(&cluster).await?);
    let load = Load::start_through(&client, &cluster, 6, &mut seed.random(), &seed, MIX).await?;
    let others = OtherClients::start(&cluster, &client, &old).await?;

    let mut upgrade = Upgrade { cluster, programs, client: Arc::clone(&client), migrates };
    upgrade.goes_on(BETWEEN).await?;
    upgrade.run().await?;

    let mut history = load.finish().await?;
    let seen = others.finish().await?;
    history.records.extend(old.history().records.iter().cloned());
    history.lives.extend(old.history().lives.iter().cloned());
    history.records.extend(seen.history.records);
    history.anomalies.extend(seen.history.anomalies);
    let tally = client.tally();
    let (replays, reads) = (seen.replays, seen.reads);
    eprintln!(
        "rolling upgrade: {} requests, {replays} of them replays of old orders and {reads} reads, longest wait {:.1?}\n{tally}",
        tally.requests(),
        tally.longest_wait()
    );
    for (shard, gap) in seen.gaps {
        eprintln!("  {shard}: at most {gap:.1?} between two payments that were acknowledged");
    }
    let allowed = if migrates { &WHILE_A_SHARD_MIGRATES[..] } else { &[] };
    let errors: Vec<_> = tally.errors().filter(|(kind, _)| !allowed.contains(kind)).collect();
    ensure!(errors.is_empty(), "clients were answered {errors:?}");

    let cluster = upgrade.cluster;
    eprintln!("rolling upgrade: {:?}", audit(&cluster, &history).await?);
    let compared = old.are_answered_as_before(&cluster.client()).await?;
    eprintln!("rolling upgrade: each router answered {compared} orders from before the upgrade with the same bytes");
    cluster.shardctl(&["doctor"]).await?.successful()?;
    cluster.finish().await
}

/// The replacement of a cluster's processes.
struct Upgrade {
    cluster: Cluster,
    programs: Programs,
    client: Arc<Client>,
    /// Whether the new version has a migration.
    migrates: bool,
}

impl Upgrade {
    async fn run(&mut self) -> anyhow::Result<()> {
        let before = commits(&self.client, self.cluster.status()).await?;
        let old: BTreeSet<String> = before.into_values().collect();
        ensure!(old.len() == 1, "the processes of one version say {old:?}");
        let old = old.into_iter().next().unwrap_or_default();
        self.programs.install_new()?;

        self.nodes(0).await?;
        // Nodes of both versions serve, behind routers of the old version.
        self.runs_two_versions(&old).await?;
        self.nodes_serve().await?;
        for shard in 1..self.cluster.status().shards.len() {
            self.nodes(shard).await?;
        }
        self.runs_two_versions(&old).await?;
        self.goes_on(BETWEEN).await?;
        self.replace(ServiceProcess::Router(0)).await?;
        self.runs_two_versions(&old).await?;
        self.routers_serve().await?;
        for router in 1..self.cluster.status().routers.len() {
            self.replace(ServiceProcess::Router(router)).await?;
        }
        let after = commits(&self.client, self.cluster.status()).await?;
        ensure!(
            self.programs.are_same || !after.values().any(|commit| *commit == old),
            "every process should be of the new version: {after:?}"
        );
        self.goes_on(BETWEEN).await
    }

    /// Replaces both nodes of a shard.
    async fn nodes(&mut self, shard: usize) -> anyhow::Result<()> {
        let (first, second) = (ServiceProcess::FirstNode(shard), ServiceProcess::SecondNode(shard));
        if !self.migrates {
            self.replace(second).await?;
            return self.replace(first).await;
        }
        let status = self.cluster.refresh_status().await?.clone();
        let supervisor = status.supervisor_pid.and_then(Process::of).context("no supervisor runs")?;
        let begun = Instant::now();
        // A supervisor that runs would start the nodes before the database is migrated.
        supervisor.freeze().await?;
        let migrated = self.migrate_stopped(shard, &status).await;
        supervisor.thaw()?;
        eprint!("{}", migrated?);
        first.ready(&self.client, &status).await?;
        eprintln!("  shard {shard}: a node was ready {:.1?} after SIGTERM to both", begun.elapsed());
        second.ready(&self.client, &status).await?;
        self.goes_on(BETWEEN).await
    }

    async fn migrate_stopped(&self, shard: usize, status: &Status) -> anyhow::Result<String> {
        tokio::try_join!(
            ServiceProcess::FirstNode(shard).stop(status),
            ServiceProcess::SecondNode(shard).stop(status)
        )?;
        migrate(&self.cluster, shard, "--apply").await
    }

    async fn replace(&mut self, place: ServiceProcess) -> anyhow::Result<()> {
        let former = place.process(self.cluster.refresh_status().await?)?;
        place.replace(&self.client, self.cluster.status()).await?;
        ensure!(place.process(self.cluster.refresh_status().await?)? != former, "{place:?} is not replaced");
        self.goes_on(BETWEEN).await
    }

    /// Checks that processes of both versions run.
    async fn runs_two_versions(&self, old: &str) -> anyhow::Result<()> {
        if self.programs.are_same {
            return Ok(());
        }
        let commits = commits(&self.client, self.cluster.status()).await?;
        let (of_old, of_new) = commits.iter().partition::<Vec<_>, _>(|(_, commit)| *commit == old);
        let places =
            |of: &[(&ServiceProcess, &String)]| of.iter().map(|(place, _)| format!("{place:?}")).collect::<Vec<_>>();
        eprintln!("  {old}: {}; the new version: {}", places(&of_old).join(", "), places(&of_new).join(", "));
        ensure!(!of_old.is_empty() && !of_new.is_empty(), "processes of both versions should run: {commits:?}");
        Ok(())
    }

    /// Waits until the nodes of each shard have executed [`OF_EACH_VERSION`] more operations.
    async fn nodes_serve(&self) -> anyhow::Result<()> {
        let executed = async || {
            let (client, status) = (&self.client, self.cluster.status());
            let mut operations = Vec::new();
            for shard in 0..status.shards.len() {
                let first = ServiceProcess::FirstNode(shard).operations(client, status).await?;
                operations.push(first + ServiceProcess::SecondNode(shard).operations(client, status).await?);
            }
            anyhow::Ok(operations)
        };
        let before = executed().await?;
        until("the nodes of each shard execute operations", PATIENCE, async || {
            let now = executed().await?;
            Ok(now.iter().zip(&before).all(|(now, before)| now - before >= OF_EACH_VERSION.into()).then_some(()))
        })
        .await
    }

    /// Waits until each router has given [`OF_EACH_VERSION`] more answers.
    async fn routers_serve(&self) -> anyhow::Result<()> {
        let before = self.client.tally();
        until("each router answers clients", PATIENCE, async || {
            let now = self.client.tally();
            let answered = |router| now.answered_by(router) - before.answered_by(router);
            Ok((0..self.client.routers()).all(|router| answered(router) >= OF_EACH_VERSION as usize).then_some(()))
        })
        .await
    }

    /// Waits until this many more requests have ended.
    async fn goes_on(&self, requests: usize) -> anyhow::Result<()> {
        let target = self.client.tally().requests() + requests;
        until("the load goes on", PATIENCE, async || Ok((self.client.tally().requests() >= target).then_some(())))
            .await
    }
}
