//! A mixed load. It has local and cross-shard transfers, single and in batches, hot accounts, holds, reversals, replays and refusals. Each
//! client records its requests and their answers, and sends a request again until its outcome is certain.

mod accounts;
mod client_task;
mod two_phase;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use client_task::ClientTask;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use two_phase::TwoPhaseTask;

use crate::{
    client::{Client, Verdict},
    cluster::{Cluster, Placement},
    history::{Attempt, Fate, Life, Record, RunClock},
    seed::{Random, Seed},
    wait::until,
};

use accounts::Accounts;

/// The time for which a client repeats a request after all faults are over.
const PATIENCE_AFTER_HEALING: Duration = Duration::from_secs(60);

/// The time that opening an account or paying into it may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause before a request is sent again. It doubles with each attempt, up to a bound.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_LONGEST: Duration = Duration::from_millis(500);

/// The kinds and numbers of clients, and how they behave.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Clients that send one transfer at a time.
    pub single_clients: usize,
    /// Clients that send batches.
    pub batch_clients: usize,
    /// Clients that place holds, end them in every way there is, and reverse what they captured.
    pub two_phase_clients: usize,
    /// The largest number of items of a batch.
    pub batch_items: usize,
    /// Whether clients sometimes give up an order that was answered "not executed". Such an order must never take effect.
    pub gives_up: bool,
    /// The deadline of each request.
    pub request_timeout: Duration,
}

/// Everything that the clients know at the end.
#[derive(Debug, Default)]
pub struct History {
    pub records: Vec<Record>,
    /// The payments that funded the accounts before the load started. Only the audit needs them.
    pub opening: Vec<Record>,
    /// The holds. Their captures and reversals are in `records` as well.
    pub lives: Vec<Life>,
    /// Wrong answers, such as a replay that differs from the first answer, or a read that misses an answered write.
    pub anomalies: Vec<String>,
}

impl History {
    /// Checks that no answer was "not executed" or "unknown".
    pub fn has_no_error(&self) -> anyhow::Result<()> {
        let is_error =
            |attempt: &Attempt| matches!(attempt.verdict, Verdict::NotExecuted { .. } | Verdict::Unknown { .. });
        let told = self.records.iter().find(|record| record.attempts.iter().any(is_error));
        ensure!(told.is_none(), "a client was answered an error: {told:?}\n{}", self.answers());
        Ok(())
    }

    /// How often each kind of answer was given, and how long clients waited for it.
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

/// A running load.
pub struct Load {
    stop: CancellationToken,
    clients: JoinSet<History>,
    progress: Arc<Progress>,
    opening: Vec<Record>,
}

impl Load {
    /// Opens `per_shard` ordinary accounts on each shard, with ids and choices from `random`, and starts the clients. They run until
    /// [`Load::finish`].
    pub async fn start(
        cluster: &Cluster,
        per_shard: usize,
        random: &mut Random,
        seed: &Seed,
        mix: Mix,
    ) -> anyhow::Result<Self> {
        let http = Arc::new(cluster.client().with_timeout(mix.request_timeout));
        Self::start_through(&http, cluster, per_shard, random, seed, mix).await
    }

    /// [`Load::start`] through the caller's client. The deadline of that client applies.
    pub async fn start_through(
        http: &Arc<Client>,
        cluster: &Cluster,
        per_shard: usize,
        random: &mut Random,
        seed: &Seed,
        mix: Mix,
    ) -> anyhow::Result<Self> {
        let (accounts, opening) = Accounts::open(cluster, per_shard, random).await?;
        let accounts = Arc::new(accounts);
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
        Ok(Self { stop, clients, progress, opening })
    }

    /// What the clients have seen so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Waits until this many more transfers between shards are posted.
    pub async fn goes_on(&self, more: usize) -> anyhow::Result<()> {
        let wanted = self.progress.of(Seen::CrossShard) + more;
        until(&format!("{more} more transfers between shards are posted"), PATIENCE, async || {
            Ok((self.progress.of(Seen::CrossShard) >= wanted).then_some(()))
        })
        .await
    }

    /// Stops the clients after each has a definite answer to everything that it has begun. Call it when all faults are over.
    pub async fn finish(mut self) -> anyhow::Result<History> {
        self.stop.cancel();
        let mut history = History { opening: self.opening, ..History::default() };
        let all = async {
            while let Some(ended) = self.clients.join_next().await {
                let found = ended.context("a client panicked")?;
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

/// Opens an account through the API. It repeats the request until it is answered, and the account is opened once.
pub async fn open_account(client: &Client, id: &str, overdraft: &str) -> anyhow::Result<()> {
    until(&format!("{id} is open"), PATIENCE, async || try_open_account(client, id, overdraft).await.map(Some)).await
}

/// Opens a payer without limit and a payee, each given as its shard and a word in its id. Returns their ids.
pub async fn open_payer_and_payee(
    client: &Client,
    placement: &Placement,
    payer: (&str, &str),
    payee: (&str, &str),
) -> anyhow::Result<(String, String)> {
    let (payer, payee) = (placement.account_on(payer.0, payer.1, 0)?, placement.account_on(payee.0, payee.1, 0)?);
    open_account(client, &payer, "unlimited").await?;
    open_account(client, &payee, "0.00").await?;
    Ok((payer, payee))
}

/// [`open_account`] with one request.
pub async fn try_open_account(client: &Client, id: &str, overdraft: &str) -> anyhow::Result<()> {
    let body = serde_json::json!({"id": id, "asset": crate::history::ASSET, "overdraft": overdraft});
    client.post(client.next_router(), "/v1/accounts", &body).await.map(|_| ())
}

/// An event that must occur in a run, because a run without it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// A transfer of which at least one answer was unknown.
    InDoubt,
    Rejected,
    /// A posted transfer between two shards.
    CrossShard,
    /// A hold that was captured.
    Captured,
    Released,
    Expired,
}

/// Counts, shared by the clients.
#[derive(Debug, Default)]
pub struct Progress(Mutex<BTreeMap<Seen, usize>>);

impl Progress {
    pub fn of(&self, what: Seen) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&what).copied().unwrap_or_default()
    }

    /// Counts an order whose outcome is certain.
    fn note(&self, record: &Record, crosses: bool) {
        if record.attempts.iter().any(|attempt| matches!(attempt.verdict, Verdict::Unknown { .. })) {
            self.add(Seen::InDoubt);
        }
        match record.fate() {
            Fate::Posted if crosses => self.add(Seen::CrossShard),
            Fate::Rejected { .. } => self.add(Seen::Rejected),
            _ => {}
        }
    }

    /// Counts a hold that has ended.
    fn note_life(&self, life: &Life) {
        match life.status() {
            Ok("captured") => self.add(Seen::Captured),
            Ok("released") => self.add(Seen::Released),
            Ok("expired") => self.add(Seen::Expired),
            // The hold was refused, or its answers contradict each other; the audit reports that.
            _ => {}
        }
    }

    fn add(&self, what: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }
}
