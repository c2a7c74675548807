//! The core of the router: everything between a parsed request and the shards.
//!
//! [`Core`] is what the edge calls. Its methods stand beside their subject:
//!
//! - [`transfers`], [`holds`], [`accounts`] and [`erasure`] execute what a client orders; [`reads`] reads.
//! - [`saga`] drives transfers between shards, and lists those under way.
//!
//! Below them:
//!
//! - [`rerouting`] sends an operation to the shard that owns its account, and learns from refusals; [`handover`] keeps requests while their
//!   slot is between two shards.
//! - [`shard`] sends operations and reads to the nodes of one shard; [`routing`] says which shard has which slot.
//! - [`call`] and [`reply`] are the words that all of them share; [`metrics`] has every metric.
//!
//! The core keeps no state that another router would miss. A call must run to its end: the edge spawns it and awaits the handle, so that a
//! client that disconnects does not stop it half-way. If it stops anyway, the shards and recovery complete it.

mod accounts;
mod background;
pub mod call;
mod erasure;
#[cfg(test)]
pub mod fake_cluster;
pub mod handover;
mod holds;
mod metrics;
mod reads;
pub mod reply;
mod rerouting;
pub mod routing;
mod saga;
mod shard;
mod transfers;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::future::join_all;
use telemetry::tasks::Tasks;
use tokio::time::Instant;

use self::{
    call::{CallError, Deadline},
    handover::{HandoverRecord, Handovers},
    reply::ShardStatus,
    routing::Routing,
    shard::{Beat, ShardGauges, Shards, View, Working},
};
use crate::config::CoreConfig;

/// A shard that does not report its state within this time counts as unreachable.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// The core. The edge, the operators' listener and the tasks of the core share one.
pub struct Core {
    config: CoreConfig,
    tasks: Tasks,
    pub routing: Routing,
    handovers: Arc<Handovers>,
    shards: Shards,
    refreshing: tokio::sync::Mutex<()>,
    /// Grows with each refresh.
    refreshes: AtomicU64,
    gauges: ShardGauges,
}

impl Core {
    /// Starts the senders of the shards, heartbeats, recovery of abandoned sagas, and offers of the shard map. They end with `tasks`.
    pub fn start(config: &CoreConfig, routing: Routing, tasks: Tasks) -> Arc<Self> {
        metrics::describe();
        let core = Self::begin(config, routing, tasks);
        core.tasks.spawn_essential("shard map offers", background::offer_map(Arc::clone(&core)));
        core
    }

    /// As [`Core::start`], by a map that never changes and is offered to no node.
    #[cfg(feature = "simulation")]
    pub fn start_without_offers(config: &CoreConfig, routing: Routing, tasks: Tasks) -> Arc<Self> {
        Self::begin(config, routing, tasks)
    }

    /// Starts the senders of the shards, and the tasks that both programs and simulations need.
    fn begin(config: &CoreConfig, routing: Routing, tasks: Tasks) -> Arc<Self> {
        let core = Arc::new(Self {
            config: config.clone(),
            handovers: Arc::new(Handovers::new(routing.clone(), tasks.clone())),
            shards: Shards::start(routing.clone(), config.clone(), tasks.clone()),
            tasks,
            routing,
            refreshing: tokio::sync::Mutex::default(),
            refreshes: AtomicU64::new(0),
            gauges: ShardGauges::default(),
        });
        core.tasks.spawn_essential("recovery", saga::run_recovery(Arc::clone(&core)));
        core.tasks.spawn_essential("heartbeat", background::send_heartbeats(Arc::clone(&core)));
        core
    }

    /// Routes and shards as of now. A request takes one view and keeps it until a shard says that it is wrong.
    pub fn view(&self) -> View {
        self.shards.view()
    }

    /// The error for work that must not begin any more.
    pub fn closing(&self) -> Option<CallError> {
        self.tasks.token().is_cancelled().then_some(CallError::ShuttingDown)
    }

    // === operators ===

    /// Sets the gauges of the shards.
    pub fn set_gauges(&self) {
        self.gauges.set(&self.view());
    }

    /// The hand-overs of slots for which requests waited in this router, the latest last.
    pub fn handovers(&self) -> Vec<HandoverRecord> {
        self.handovers.records()
    }

    /// At how many shards reads and writes work, by the last heartbeats.
    pub fn working(&self) -> (usize, usize, usize) {
        let view = self.view();
        let working: Vec<_> = view.shards().map(|shard| shard.working()).collect();
        let count = |of: fn(&Working) -> bool| working.iter().filter(|working| of(working)).count();
        (count(|working| working.reads), count(|working| working.writes), working.len())
    }

    /// Asks every shard which slots it owns. Changes made before this call are known when it returns.
    pub async fn refresh_ownership(&self, deadline: Deadline) {
        // The first refresh may share the answers of one that began before this call; the second cannot.
        self.refresh(deadline).await;
        self.refresh(deadline).await;
    }

    /// Sends every shard one heartbeat. Returns the disagreements about asset scales.
    pub async fn greet(&self) -> Vec<String> {
        let beats = background::beat_once(self).await;
        let differing = beats.into_iter().filter_map(|(shard, beat)| match beat {
            Beat::Lost(why) if why.contains(identity::assets::FACT) => Some(format!("shard {shard}: {why}")),
            _ => None,
        });
        differing.collect()
    }

    /// The state of each shard, as far as this router can tell.
    pub async fn shard_status(&self) -> Vec<ShardStatus> {
        let view = self.view();
        let until = Instant::now() + STATUS_TIMEOUT;
        let asked = view.shards().cloned().map(|shard| async move {
            let status =
                shard.probe(until, |mut node| async move { node.status(wire::StatusRequest {}).await }).await;
            ShardStatus {
                shard: Arc::clone(shard.id()),
                nodes: shard.nodes().to_vec(),
                node_in_use: shard.node_in_use(),
                status: status.map_err(|failure| failure.to_string()),
                breaker: shard.breaker_state(),
                queued_operations: shard.queued_operations(),
            }
        });
        join_all(asked).await
    }
}
