//! What every part of the core works with: the shards, the routes to them, and what to do when a route proves wrong.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ledger::outcome::NotOwner;
use shard_map::Slot;
use telemetry::tasks::Tasks;
use tokio::time::{Instant, timeout_at};

use super::{CallError, CoreConfig, Deadline, Pace, metrics};
use crate::{
    routing::Routing,
    shard::{Shard, Shards, View},
};

/// How long shards get to say what they own. One that is down must not keep the others' news waiting.
const OWNERSHIP_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Core {
    pub config: CoreConfig,
    pub tasks: Tasks,
    pub routing: Routing,
    shards: Shards,
    refreshing: tokio::sync::Mutex<()>,
    /// Grows with each refresh.
    refreshes: AtomicU64,
}

/// How often a request has been sent elsewhere.
#[derive(Debug)]
pub struct Reroutes {
    attempts: u32,
    pace: Pace,
    deadline: Deadline,
    until: Instant,
}

impl Reroutes {
    /// How long a request waits for the owner of a slot, unless its deadline comes first. A cut-over takes less unless a node or a database
    /// fails.
    const LONGEST: Duration = Duration::from_secs(10);
    const PAUSE_MIN: Duration = Duration::from_millis(4);
    const PAUSE_MAX: Duration = Duration::from_millis(30);

    pub fn new(deadline: Deadline) -> Self {
        let until = Instant::now() + Self::LONGEST;
        Self { attempts: 0, pace: Pace::new(Self::PAUSE_MIN, Self::PAUSE_MAX), deadline, until }
    }
}

impl Core {
    pub fn start(config: &CoreConfig, routing: Routing, tasks: Tasks) -> Self {
        Self {
            config: config.clone(),
            shards: Shards::start(routing.clone(), config.clone(), tasks.clone()),
            tasks,
            routing,
            refreshing: tokio::sync::Mutex::default(),
            refreshes: AtomicU64::new(0),
        }
    }

    /// Routes and shards as of now. A request takes one view and keeps it until a shard says that it is wrong.
    pub fn view(&self) -> View {
        self.shards.view()
    }

    /// The error for work that must not begin any more.
    pub fn closing(&self) -> Option<CallError> {
        self.tasks.token().is_cancelled().then_some(CallError::ShuttingDown)
    }

    // === wrong routes ===

    /// Takes note of the slots that `shard` says it does not own. Nothing was executed there. True when the router now knows
    /// another owner for each of them; false when somebody else has to be asked.
    pub fn learn(&self, shard: &str, refusals: &[NotOwner]) -> bool {
        if refusals.is_empty() {
            return true;
        }
        metrics::wrong_route(shard, refusals.len());
        self.routing.learn_not_owners(shard, refusals);
        let table = self.routing.load();
        let refused_by = table.index_of(shard);
        refusals
            .iter()
            .all(|refusal| Slot::new(refusal.slot).is_some_and(|slot| refused_by != Some(table.owner(slot))))
    }

    /// Before a request is tried once more. With all refusals resolved (`Core::learn`), the first time at once; else after
    /// a pause, and with fresh news from all shards. False: enough.
    pub async fn again(&self, reroutes: &mut Reroutes, resolved: bool) -> bool {
        reroutes.attempts += 1;
        if reroutes.attempts == 1 && resolved {
            return true;
        }
        if Instant::now() >= reroutes.until || !reroutes.pace.pause(reroutes.deadline).await {
            return false;
        }
        if !resolved {
            self.refresh(reroutes.deadline).await;
        }
        true
    }

    /// Asks all shards what they own. Whoever comes while that is being done waits for it and is content.
    pub async fn refresh(&self, deadline: Deadline) {
        let seen = self.refreshes.load(Ordering::Acquire);
        let Ok(_turn) = timeout_at(deadline, self.refreshing.lock()).await else { return };
        if self.refreshes.load(Ordering::Acquire) != seen {
            return;
        }
        let until = deadline.min(Instant::now() + OWNERSHIP_TIMEOUT);
        let ask = |shard: Arc<Shard>| async move {
            shard.read(until, |mut node| async move { node.get_ownership(wire::GetOwnershipRequest {}).await }).await
        };
        let answers = self.view().ask_all(ask).await;
        let owned: Vec<_> = answers.into_iter().filter_map(|(shard, owned)| Some((shard, owned.ok()?))).collect();
        metrics::refreshed(owned.len());
        self.routing.merge_ownership(owned);
        self.refreshes.fetch_add(1, Ordering::Release);
    }
}
