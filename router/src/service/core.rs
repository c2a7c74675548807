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

use super::{
    CallError, CoreConfig, Deadline, Pace,
    handover::{Arriving, Handovers, Load, Waited},
    metrics,
};
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
    pub handovers: Arc<Handovers>,
    shards: Shards,
    refreshing: tokio::sync::Mutex<()>,
    /// Grows with each refresh.
    refreshes: AtomicU64,
}

/// What a router knows after shards have refused operations for slots that they do not own.
#[derive(Clone)]
pub enum Learnt {
    /// The router knows another owner of each refused slot.
    Owners,
    /// The new owner of a slot has not received it yet.
    Arriving(Arriving),
    /// The router does not know the owner of at least one slot, and has to ask every shard.
    Unknown,
}

impl Learnt {
    /// What is known of the slots of both.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Owners, other) => other,
            (Self::Arriving(_), Self::Unknown) => Self::Unknown,
            (one, _) => one,
        }
    }
}

/// How often a request has been sent elsewhere.
#[derive(Debug)]
pub struct Reroutes {
    attempts: u32,
    pace: Pace,
    /// Of a request that waits for the verdicts of other transfers.
    verdict_pace: Pace,
    deadline: Deadline,
    until: Instant,
}

impl Reroutes {
    /// How long a request waits for the owner of a slot, unless its deadline comes first. A cut-over takes less unless a node or a database
    /// fails.
    const LONGEST: Duration = Duration::from_secs(10);
    const PAUSE_MIN: Duration = Duration::from_millis(4);
    const PAUSE_MAX: Duration = Duration::from_millis(30);
    /// A verdict takes some milliseconds, or until a slow shard answers. Each question makes the shard look ids up.
    const VERDICT_PAUSE_MIN: Duration = Duration::from_millis(10);
    const VERDICT_PAUSE_MAX: Duration = Duration::from_millis(250);

    pub fn new(deadline: Deadline) -> Self {
        let until = Instant::now() + Self::LONGEST;
        let pace = Pace::new(Self::PAUSE_MIN, Self::PAUSE_MAX);
        let verdict_pace = Pace::new(Self::VERDICT_PAUSE_MIN, Self::VERDICT_PAUSE_MAX);
        Self { attempts: 0, pace, verdict_pace, deadline, until }
    }
}

impl Core {
    pub fn start(config: &CoreConfig, routing: Routing, tasks: Tasks) -> Self {
        Self {
            config: config.clone(),
            handovers: Arc::new(Handovers::new(routing.clone(), tasks.clone())),
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

    /// Records the refusals of a shard that does not own the slots. Nothing was executed for them.
    pub fn learn(&self, shard: &str, refusals: &[NotOwner]) -> Learnt {
        if refusals.is_empty() {
            return Learnt::Owners;
        }
        metrics::wrong_route(shard, refusals.len());
        self.routing.learn_not_owners(shard, refusals);
        let view = self.view();
        refusals.iter().fold(Learnt::Owners, |learnt, refusal| learnt.and(learnt_of(&view, shard, refusal)))
    }

    /// Waits before a request is sent once more. The first time, if the owners are known, there is no wait. `load` is what is sent
    /// again. False: the request is not sent any more.
    pub async fn again(&self, reroutes: &mut Reroutes, learnt: &Learnt, load: Load) -> bool {
        reroutes.attempts += 1;
        match learnt {
            Learnt::Owners if reroutes.attempts == 1 => return true,
            Learnt::Arriving(arriving) => {
                match self.handovers.wait(arriving, load, reroutes.until.min(reroutes.deadline)).await {
                    Waited::Arrived => return true,
                    Waited::Refused => return false,
                    // The shard's lane has not noticed yet.
                    Waited::AlreadyArrived => {}
                }
            }
            Learnt::Owners | Learnt::Unknown => {}
        }
        if Instant::now() >= reroutes.until || !reroutes.pace.pause(reroutes.deadline).await {
            return false;
        }
        if matches!(learnt, Learnt::Unknown) {
            self.refresh(reroutes.deadline).await;
        }
        true
    }

    /// Waits before a request is sent once more whose answer depends on the verdicts of other transfers. False: it is not sent any more.
    pub async fn again_after_verdicts(&self, reroutes: &mut Reroutes) -> bool {
        reroutes.verdict_pace.pause(reroutes.deadline).await
    }

    /// Asks all shards which slots they own. A call during a refresh waits for its end.
    pub async fn refresh(&self, deadline: Deadline) {
        let seen = self.refreshes.load(Ordering::Acquire);
        let Ok(_turn) = timeout_at(deadline, self.refreshing.lock()).await else { return };
        if self.refreshes.load(Ordering::Acquire) != seen {
            return;
        }
        let until = deadline.min(Instant::now() + OWNERSHIP_TIMEOUT);
        let ask = |shard: Arc<Shard>| async move {
            shard
                .read(until, |mut node| async move { node.get_ownership(wire::GetOwnershipRequest::default()).await })
                .await
        };
        let answers = self.view().ask_all(ask).await;
        let owned: Vec<_> = answers.into_iter().filter_map(|(shard, owned)| Some((shard, owned.ok()?))).collect();
        metrics::refreshed(owned.len());
        self.routing.merge_ownership(owned);
        self.refreshes.fetch_add(1, Ordering::Release);
    }
}

/// What is known of a slot that `shard` has refused.
fn learnt_of(view: &View, shard: &str, refusal: &NotOwner) -> Learnt {
    const INCOMING: u8 = 3;
    let Some(slot) = Slot::new(refusal.slot) else { return Learnt::Unknown };
    let owner = view.owner(slot);
    if **owner.id() != *shard {
        Learnt::Owners
    } else if refusal.state == INCOMING {
        Learnt::Arriving(Arriving { slot, epoch: refusal.epoch, shard: Arc::clone(owner) })
    } else {
        Learnt::Unknown
    }
}
