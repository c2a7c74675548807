//! One shard as the router sees it: a bounded queue of operations that share calls to its node, reads beside them,
//! and a breaker over both. Shards share nothing here, so a slow shard holds only its own capacity.
//!
//! An error says what is certain. "Not executed" ([`CallError::is_not_executed`]) means that nothing was sent, or that
//! the node itself said so. A call whose answer was lost is [`CallError::OutcomeUnknown`].

mod breaker;
mod calls;
mod delivery;
mod directory;
mod heartbeat;
mod queue;
mod submission;
mod witness;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use ledger::operation::Operation;
use node_client::Client;
use telemetry::tasks::Tasks;
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

use self::{
    breaker::{Breaker, RetryBudget},
    calls::{LONG_SCANS_AT_ONCE, READS_ADMITTED, READS_AT_ONCE, SCANS_AT_ONCE},
    heartbeat::NodeReport,
    queue::{Claim, NotQueued, Queue, Submission},
    submission::{InQueue, Submitted, Waiter, chunks},
    witness::{Greeting, ShardName, Witness},
};
use super::{
    call::{CallError, Deadline},
    metrics::{self, ShardMetrics},
    routing::Routing,
};
use crate::{config::CoreConfig, trace};

pub use node_client::NodeClient;

pub use self::{
    directory::{ByShard, ShardGauges, Shards, View},
    heartbeat::{Beat, Working},
    queue::Urgency,
    submission::{Answer, Answers, wire_bytes},
};

/// The router's side of one shard.
pub struct Shard {
    id: Arc<str>,
    number: u16,
    nodes: Vec<String>,
    client: Client,
    witness: Arc<Witness>,
    routing: Routing,
    /// What the node reported at the last heartbeat.
    reported: Mutex<Option<NodeReport>>,
    queue: Queue,
    breaker: Mutex<Breaker>,
    budget: RetryBudget,
    max_batch_operations: usize,
    /// Requests that wait for the answer of an Execute call, and how many of them may.
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
    /// Bounds the Execute calls in flight.
    in_flight: Arc<Semaphore>,
    reads_admitted: Semaphore,
    reads_at_once: Semaphore,
    scans_at_once: Semaphore,
    long_scans_at_once: Semaphore,
    metrics: ShardMetrics,
}

impl Shard {
    /// Starts sending to the shard. Connections are opened when there is something to send.
    fn start(
        wanted: &shard_map::Shard,
        routing: &Routing,
        witness: &Arc<Witness>,
        config: &CoreConfig,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let (id, nodes): (Arc<str>, _) = (wanted.id.as_str().into(), &wanted.nodes);
        let name = ShardName { id: Arc::clone(&id), number: wanted.number };
        let greeting = Arc::new(Greeting { witness: Arc::clone(witness), shard: name });
        let shard = Arc::new(Self {
            client: Client::new(
                Arc::clone(&id),
                nodes.to_vec(),
                config.connect_timeout,
                Some(greeting),
                config.tls.clone(),
            ),
            number: wanted.number,
            witness: Arc::clone(witness),
            routing: routing.clone(),
            reported: Mutex::default(),
            nodes: nodes.to_vec(),
            queue: Queue::new(config.queue_operations),
            breaker: Mutex::new(Breaker::new(config.breaker_failures, config.breaker_open)),
            budget: RetryBudget::new(),
            max_batch_operations: config.max_batch_operations,
            waiting: Arc::default(),
            max_waiting: config.waiting_requests,
            in_flight: Arc::new(Semaphore::new(config.rpcs_in_flight)),
            reads_admitted: Semaphore::new(READS_ADMITTED.min(config.waiting_requests / 2).max(1)),
            reads_at_once: Semaphore::new(READS_AT_ONCE),
            scans_at_once: Semaphore::new(SCANS_AT_ONCE),
            long_scans_at_once: Semaphore::new(LONG_SCANS_AT_ONCE),
            metrics: {
                metrics::register_shard(&id);
                ShardMetrics::new(&id)
            },
            id,
        });
        tasks.spawn("coalescer", delivery::send_queue(Arc::clone(&shard), tasks.clone()));
        shard
    }

    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Every position of the shard's journal contains this number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Node endpoints in order of preference.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// The address of the node that this router uses.
    pub fn node_in_use(&self) -> Option<String> {
        self.client.in_use().map(str::to_owned)
    }

    pub fn queued_operations(&self) -> usize {
        self.queue.operations()
    }

    pub fn breaker_state(&self) -> &'static str {
        self.breaker().name()
    }

    /// Whether as many requests wait for this shard as may, where there are other shards. Steps that finish sagas are counted, and not refused:
    /// the transfers behind them were refused before they reserved anything.
    pub fn is_crowded(&self) -> bool {
        self.waiting.load(Relaxed) >= self.max_waiting && self.routing.load().map().shards.len() > 1
    }

    /// Takes no more work and ends after sending what is queued.
    fn retire(&self) {
        self.queue.close();
    }

    // === writes ===

    /// Runs operations in order and answers each, in order, by `deadline` or shortly after.
    ///
    /// Operations travel in one call, up to the most that a call carries. With `ordered`, later operations wait for
    /// earlier ones that the node had to defer; this holds within one call.
    pub async fn execute(
        &self,
        urgency: Urgency,
        operations: Vec<Operation>,
        ordered: bool,
        deadline: Deadline,
    ) -> Answers {
        let weight = operations.iter().map(Operation::weight).sum();
        if weight <= self.max_batch_operations || operations.len() == 1 {
            let answers = self.submit(urgency, operations, weight, ordered, deadline).wait(&self.id, deadline).await;
            if answers.resent || answers.after_doubt {
                trace::notes_sent_again();
            }
            return answers;
        }
        // Queue all operations before waiting for the first: they keep their order and follow each other without a
        // pause.
        let chunks: Vec<_> = chunks(operations, self.max_batch_operations)
            .into_iter()
            .map(|(chunk, weight)| self.submit(urgency, chunk, weight, ordered, deadline))
            .collect();
        let mut all = Answers::from(Vec::new());
        for chunk in chunks {
            let Answers { answers, resent, after_doubt } = chunk.wait(&self.id, deadline).await;
            all.answers.extend(answers);
            all.resent |= resent;
            all.after_doubt |= after_doubt;
        }
        if all.resent || all.after_doubt {
            trace::notes_sent_again();
        }
        all
    }

    fn submit(
        &self,
        urgency: Urgency,
        operations: Vec<Operation>,
        weight: usize,
        ordered: bool,
        deadline: Deadline,
    ) -> Submitted {
        let count = operations.len();
        if self.breaker().refuses(Instant::now()) {
            self.metrics.refused_by_breaker.increment(count as u64);
            return Submitted::Refused(self.unavailable(), count);
        }
        let overloaded = || {
            self.metrics.queue_full.increment(count as u64);
            Submitted::Refused(CallError::Overloaded { shard: Arc::clone(&self.id) }, count)
        };
        if urgency == Urgency::New && self.is_crowded() {
            return overloaded();
        }
        let waiter = Waiter::enter(&self.waiting);
        let (reply, answers) = oneshot::channel();
        let claim = Claim::default();
        let (traceparent, span) = trace::begin_call(&self.id, count);
        let submission = Submission {
            bytes: operations.iter().map(wire_bytes).sum(),
            operations,
            weight,
            ordered,
            deadline,
            traceparent,
            span,
            claim: claim.clone(),
            reply,
            answers: Vec::new(),
            resent: false,
            after_doubt: false,
        };
        match self.queue.push(urgency, submission) {
            Ok(()) => Submitted::Queued(InQueue { answers, claim, operations: count, _waiter: waiter }),
            Err(NotQueued::Full) => overloaded(),
            Err(NotQueued::Closed) => Submitted::Refused(CallError::ShuttingDown, count),
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // No code panics while it holds the lock.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self) -> CallError {
        CallError::Unavailable { shard: Arc::clone(&self.id) }
    }

    fn late(&self) -> CallError {
        CallError::Deadline { shard: Arc::clone(&self.id) }
    }

    fn unknown(&self) -> CallError {
        CallError::OutcomeUnknown { shard: Arc::clone(&self.id) }
    }
}
