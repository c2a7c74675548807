//! A mixed load of real money: local and cross-shard, single and in batches, hot accounts, holds, reversals, replays,
//! refusals. Every client writes down what it asked and what it was answered, and resends what it was not told for certain.

mod accounts;
mod client_task;
mod progress;
mod two_phase;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use accounts::Accounts;
use client_task::ClientTask;
pub use progress::{Progress, Seen};
use two_phase::TwoPhaseTask;

use crate::{
    client::Client,
    cluster::Cluster,
    history::{Life, Record, RunClock},
    seed::Seed,
    wait::until,
};

/// How long a client goes on asking for a definite answer once all faults are over.
const PATIENCE_AFTER_HEALING: Duration = Duration::from_secs(60);

/// How long opening an account or paying into it may take on a machine busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause before a request is sent again, doubled up to a bound.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_LONGEST: Duration = Duration::from_millis(500);

/// What the clients do.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Clients that send one transfer at a time.
    pub single_clients: usize,
    /// Clients that send batches.
    pub batch_clients: usize,
    /// Clients that place holds, end them in every way there is, and reverse what they captured.
    pub two_phase_clients: usize,
    /// Items of a batch, at most.
    pub batch_items: usize,
    /// An answer "not executed" is sometimes taken at its word: the order is given up, and must never take effect.
    pub gives_up: bool,
    /// The deadline of each request.
    pub request_timeout: Duration,
}

/// Everything the clients know at the end.
#[derive(Debug, Default)]
pub struct History {
    pub records: Vec<Record>,
    /// Holds; their captures and reversals are among the records, too.
    pub lives: Vec<Life>,
    /// What a client saw that must not be: another answer to a replay, a read that misses an answered write.
    pub anomalies: Vec<String>,
}

impl History {
    /// How often each kind of answer was given and how long the client had waited for it: where a run's time went.
    pub fn answers(&self) -> String {
        let mut kinds: BTreeMap<String, (usize, Duration, Duration)> = BTreeMap::new();
        for attempt in self.records.iter().flat_map(|record| &record.attempts) {
            let (count, total, longest) = kinds.entry(attempt.verdict.kind()).or_default();
            let took = attempt.returned.saturating_sub(attempt.invoked);
            *count += 1;
            *total += took;
            *longest = took.max(*longest);
        }
        let lines = kinds.into_iter().map(|(kind, (count, total, longest))| {
            let mean = total / u32::try_from(count).unwrap_or(u32::MAX).max(1);
            format!("  {count:6} × {kind}: mean {mean:.1?}, longest {longest:.1?}\n")
        });
        lines.collect()
    }
}

/// A load under way.
pub struct Load {
    stop: CancellationToken,
    clients: JoinSet<History>,
    progress: Arc<Progress>,
}

impl Load {
    /// Starts the clients. They run until [`Load::finish`].
    pub fn start(cluster: &Cluster, accounts: &Arc<Accounts>, seed: &Seed, mix: Mix) -> Self {
        let http = Arc::new(cluster.client().with_timeout(mix.request_timeout));
        Self::start_through(&http, accounts, seed, mix)
    }

    /// [`Load::start`] through a client of the caller's, whose deadline counts.
    pub fn start_through(http: &Arc<Client>, accounts: &Arc<Accounts>, seed: &Seed, mix: Mix) -> Self {
        let (stop, clock, progress) = (CancellationToken::new(), RunClock::default(), Arc::new(Progress::default()));
        let mut clients = JoinSet::new();
        for index in 0..mix.single_clients + mix.batch_clients {
            let progress = progress.clone();
            let task = ClientTask::new(http.clone(), accounts.clone(), seed.random(), clock, mix, progress);
            let stop = stop.clone();
            clients.spawn(async move {
                if index < mix.single_clients { task.send_singles(stop).await } else { task.send_batches(stop).await }
            });
        }
        for _ in 0..mix.two_phase_clients {
            let progress = progress.clone();
            let task = TwoPhaseTask::new(http.clone(), accounts.clone(), seed.random(), clock, progress);
            clients.spawn(task.live(stop.clone()));
        }
        Self { stop, clients, progress }
    }

    /// What the clients have seen so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Lets every client bring what it has begun to a definite answer. Call it once all is well again.
    pub async fn finish(mut self) -> anyhow::Result<History> {
        self.stop.cancel();
        let mut history = History::default();
        let all = async {
            while let Some(ended) = self.clients.join_next().await {
                let found = ended.context("a client died")?;
                history.records.extend(found.records);
                history.lives.extend(found.lives);
                history.anomalies.extend(found.anomalies);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE_AFTER_HEALING, all).await.with_context(|| {
            format!("clients have no definite answers {PATIENCE_AFTER_HEALING:?} after healing")
        })??;
        Ok(history)
    }
}

/// Opens an account through the API, however often that takes to be asked for: to do it twice is to do it once.
pub async fn open_account(client: &Client, id: &str, overdraft: &str) -> anyhow::Result<()> {
    until(&format!("{id} is open"), PATIENCE, async || try_open_account(client, id, overdraft).await.map(Some)).await
}

/// Asks once.
pub async fn try_open_account(client: &Client, id: &str, overdraft: &str) -> anyhow::Result<()> {
    let body = serde_json::json!({"id": id, "asset": crate::history::ASSET, "overdraft": overdraft});
    client.post(client.next_router(), "/v1/accounts", &body).await.map(|_| ())
}
