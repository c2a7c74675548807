//! Keeps one process running: finds or starts it, waits for its end, and starts it again.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use shard_database::DatabaseUrl;
use sqlx::{ConnectOptions, Connection};
use tokio::{
    process::{Child, Command},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{Backoff, Orders, Reporter, RestartPolicy, WELL_AFTER};
use crate::cluster::{
    description::{Description, ShardPlace},
    layout::Layout,
    member::{self, Member, ProcessRole},
    process::{Process, ProcessTable},
};

/// Pause between two questions to a database that is starting.
const DATABASE_ASKED_EVERY: Duration = Duration::from_millis(50);
/// Time limit for one question.
const DATABASE_PATIENCE: Duration = Duration::from_secs(2);
/// A database that recovers from a crash may take this long. After this time, the log says what the node waits for.
const DATABASE_OVERDUE: Duration = Duration::from_secs(60);

pub struct Worker {
    member: Member,
    layout: Layout,
    /// The shard of a node. Its database must answer and be initialised before the node serves.
    shard: Option<ShardPlace>,
    shard_map: PathBuf,
    policy: RestartPolicy,
    reporter: Arc<Reporter>,
    initialised: bool,
    /// Whether the supervisor must still run `accept --accept-loss` for this node.
    accept_loss: bool,
    preparation: Preparation,
}

/// The part of a worker in the migration and the acceptance of its shard's database.
enum Preparation {
    /// The worker of a PostgreSQL or a router has no part.
    None,
    /// The worker of the first node runs both, and announces that they are done.
    Runs(watch::Sender<bool>),
    /// The worker of the second node waits for the announcement.
    WaitsFor(watch::Receiver<bool>),
}

/// A running process, which this supervisor started or a killed supervisor left.
enum Running {
    Child(Child, Process),
    Adopted(Process),
}

impl Worker {
    pub fn new(
        member: Member,
        layout: &Layout,
        description: &Description,
        orders: &Orders,
        reporter: Arc<Reporter>,
        prepared: &mut HashMap<String, watch::Sender<bool>>,
    ) -> Self {
        let first = description.shards.iter().find(|shard| shard.node_name() == member.name);
        let second = description.shards.iter().find(|shard| shard.second_node_name() == member.name);
        let preparation = match first.or(second).filter(|_| member.role == ProcessRole::Node) {
            None => Preparation::None,
            Some(shard) => {
                let prepared = prepared.entry(shard.id.clone()).or_insert_with(|| watch::channel(false).0);
                if first.is_some() {
                    Preparation::Runs(prepared.clone())
                } else {
                    Preparation::WaitsFor(prepared.subscribe())
                }
            }
        };
        let shard = (member.role == ProcessRole::Node).then(|| description.shard(&member.name).cloned()).flatten();
        let accept_loss = shard.is_some() && orders.accept_loss.as_deref() == Some(member.name.as_str());
        Self {
            member,
            layout: layout.clone(),
            shard,
            shard_map: layout.shard_map(),
            policy: orders.policy,
            reporter,
            initialised: false,
            accept_loss,
            preparation,
        }
    }

    /// Keeps the process running until `stop` is cancelled, and then ends it.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let born = Instant::now();
            let end = match self.live(&stop).await {
                Ok(Some(end)) => end,
                Ok(None) => return Ok(()),
                Err(error) => format!("did not start: {error:#}"),
            };
            let lived = born.elapsed();
            self.reporter.ended(&self.member, &end, lived < WELL_AFTER);
            if self.policy == RestartPolicy::LeaveDead {
                tracing::warn!(process = self.member.name, end, "ended; it is not restarted");
                stop.cancelled().await;
                return Ok(());
            }
            let wait = backoff.after(lived);
            tracing::warn!(process = self.member.name, end, restart_in_ms = wait.as_millis(), "dead");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Runs the process once. Returns how it ended, or `None` if it was stopped.
    async fn live(&mut self, stop: &CancellationToken) -> anyhow::Result<Option<String>> {
        let mut running = tokio::select! {
            begun = self.begin() => begun?,
            () = stop.cancelled() => return Ok(None),
        };
        self.reporter.started(&self.member, running.process().pid());
        tokio::select! {
            end = running.end() => return end.map(Some),
            () = stop.cancelled() => {}
        }
        let process = running.process();
        // The end of a child is noticed only by waiting for it, so both run at once.
        let (stopped, end) = tokio::join!(member::stop(process, self.member.role), running.end());
        stopped?;
        tracing::info!(process = self.member.name, pid = process.pid(), end = end?, "stopped");
        Ok(None)
    }

    async fn begin(&mut self) -> anyhow::Result<Running> {
        if let Some(process) = self.member.running(&ProcessTable::read()?) {
            tracing::info!(process = self.member.name, pid = process.pid(), "took over a running process");
            // A node that has served is initialised. Its map may be invalid by now, which must not prevent a restart.
            self.initialised = true;
            // The operator ordered the acceptance for this start only.
            if std::mem::take(&mut self.accept_loss) {
                tracing::warn!(
                    process = self.member.name,
                    "it runs already: its database is not accepted with a loss"
                );
            }
            self.preparation.is_done();
            return Ok(Running::Adopted(process));
        }
        self.preparation.wait().await?;
        if let Some(shard) = &self.shard {
            self.wait_for_database(shard).await?;
            self.migrate().await?;
            self.accept_loss().await?;
            self.preparation.is_done();
        }
        // If the supervisor stops while `init` runs, the node must end too.
        let unfinished = self.shard.is_some() && !self.initialised;
        let mut child =
            Command::from(self.member.command()?).kill_on_drop(unfinished).spawn().context("cannot start it")?;
        // The node waits for its initialisation, and meanwhile answers the `init` of other shards.
        if self.shard.is_some()
            && let Err(error) = self.initialise().await
        {
            child.kill().await.context("cannot end a node whose init failed")?;
            return Err(error);
        }
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("it ended at once")?;
        let process = Process::of(pid).context("it ended at once")?;
        tracing::info!(process = self.member.name, pid, "started");
        Ok(Running::Child(child, process))
    }

    /// Waits for the database. A node that starts before its database fails, and the pause before each restart grows.
    async fn wait_for_database(&self, shard: &ShardPlace) -> anyhow::Result<()> {
        let overdue = Instant::now() + DATABASE_OVERDUE;
        loop {
            let refusal = match tokio::time::timeout(DATABASE_PATIENCE, self.reach_database(shard)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => format!("{error:#}"),
                Err(elapsed) => elapsed.to_string(),
            };
            ensure!(Instant::now() < overdue, "its database does not answer: {refusal}");
            tokio::time::sleep(DATABASE_ASKED_EVERY).await;
        }
    }

    /// Connects to the primary. A failover may have made another server the primary since this supervisor started.
    async fn reach_database(&self, shard: &ShardPlace) -> anyhow::Result<()> {
        let description = Description::load(&self.layout)?;
        let place = description.as_ref().and_then(|description| description.shard(&shard.id)).unwrap_or(shard);
        let url: DatabaseUrl = place.dsn(&self.layout)?.parse()?;
        let mut connection = url.connect_options().disable_statement_logging().connect().await?;
        let is_standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut connection).await?;
        connection.close().await?;
        ensure!(!is_standby, "it is a stand-by that was not promoted yet");
        Ok(())
    }

    /// Applies the migrations that a database created by an older version lacks. An uninitialised database is left
    /// unchanged.
    async fn migrate(&mut self) -> anyhow::Result<()> {
        if self.initialised {
            return Ok(());
        }
        let mut migrate = Command::from(self.member.migrate_command()?);
        let status = migrate.kill_on_drop(true).status().await.context("cannot run `shard-node migrate`")?;
        ensure!(status.success(), "`shard-node migrate` failed ({status}); the reason is in the node's log");
        Ok(())
    }

    /// Accepts the database as it is, once, if the operator ordered it. Waits for the nodes of the other shards, which know the position that
    /// this shard had reached.
    async fn accept_loss(&mut self) -> anyhow::Result<()> {
        if !self.accept_loss {
            return Ok(());
        }
        let mut accept = Command::from(self.member.accept_loss_command()?);
        let status = accept.kill_on_drop(true).status().await.context("cannot run `shard-node accept`")?;
        ensure!(status.success(), "`shard-node accept` failed ({status}); the reason is in the node's log");
        self.accept_loss = false;
        Ok(())
    }

    /// Initialises a new database, once the nodes of the other shards have answered. Leaves an initialised one
    /// unchanged.
    async fn initialise(&mut self) -> anyhow::Result<()> {
        if self.initialised {
            return Ok(());
        }
        let mut init = Command::from(self.member.init_command(&self.shard_map)?);
        let status = init.kill_on_drop(true).status().await.context("cannot run `shard-node init`")?;
        ensure!(status.success(), "`shard-node init` failed ({status})");
        self.initialised = true;
        Ok(())
    }
}

impl Preparation {
    /// Announces that the database is ready, so that the second node starts.
    fn is_done(&self) {
        if let Self::Runs(prepared) = self {
            prepared.send_replace(true);
        }
    }

    /// Makes the second node wait until the database is migrated and accepted.
    async fn wait(&mut self) -> anyhow::Result<()> {
        if let Self::WaitsFor(prepared) = self {
            prepared.wait_for(|is_done| *is_done).await.context("the worker of the shard's first node has ended")?;
        }
        Ok(())
    }
}

impl Running {
    fn process(&self) -> Process {
        match self {
            Self::Child(_, process) | Self::Adopted(process) => *process,
        }
    }

    /// Waits for the end of the process and describes it.
    async fn end(&mut self) -> anyhow::Result<String> {
        match self {
            Self::Child(child, _) => Ok(child.wait().await?.to_string()),
            Self::Adopted(process) => {
                process.ended().await;
                Ok("ended, how is unknown".to_owned())
            }
        }
    }
}
