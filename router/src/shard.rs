//! One shard as the router sees it: a bounded queue of operations that ride to its node in shared calls, reads beside
//! them, and a breaker over both. Nothing here is shared between shards, so a slow one holds only its own capacity.
//!
//! What comes back is never a guess. `NotExecuted`-like errors are given only when nothing was sent or the node itself
//! said so; everything else is [`CallError::OutcomeUnknown`].

mod breaker;
mod budget;
mod by_shard;
mod client;
mod coalescer;
mod connection;
mod delivery;
mod directory;
mod metrics;
mod queue;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ledger::{operation::Operation, outcome::Outcome};
use telemetry::tasks::Tasks;
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout_at},
};
use tonic::{Code, Status};

use self::{
    breaker::{Breaker, Signal},
    budget::RetryBudget,
    client::{CallFailure, Client},
    metrics::ShardMetrics,
    queue::{Claim, Queue, Submission},
};
use crate::service::{CallError, CoreConfig, Deadline};

pub use self::{
    by_shard::ByShard,
    connection::NodeClient,
    directory::{Shards, View},
    metrics::describe as describe_metrics,
    queue::Urgency,
};

/// What became of one operation.
pub type Answer = Result<Outcome, CallError>;

/// What became of operations that were submitted together: one answer each, in order.
#[derive(Debug)]
pub struct Answers {
    pub answers: Vec<Answer>,
    /// They were sent more than once, so an operation that was not executed (not owned, deferred) may have been executed
    /// by an earlier sending. Its id tells, when it is sent again; until then its outcome is unknown.
    pub resent: bool,
}

impl From<Vec<Answer>> for Answers {
    fn from(answers: Vec<Answer>) -> Self {
        Self { answers, resent: false }
    }
}

/// How long after a deadline an answer that is on its way is still waited for: better late than unknown.
const ANSWER_GRACE: Duration = Duration::from_millis(200);
/// Reads of one shard at once; h2's default of 200 streams per connection stays out of reach.
const READS_AT_ONCE: usize = 128;
/// Reads of one shard that run or wait; more are refused as overloaded.
const READS_ADMITTED: usize = 2_048;

/// The router's side of one shard.
pub struct Shard {
    id: Arc<str>,
    nodes: Vec<String>,
    client: Client,
    queue: Queue,
    breaker: Mutex<Breaker>,
    budget: RetryBudget,
    max_batch_operations: usize,
    /// Execute calls that may be under way.
    in_flight: Arc<Semaphore>,
    reads_admitted: Semaphore,
    reads_at_once: Semaphore,
    metrics: ShardMetrics,
}

/// A submission under way.
struct Waiting {
    answers: oneshot::Receiver<Answers>,
    claim: Claim,
    operations: usize,
}

impl Shard {
    /// Starts sending to the shard. Connections are made when there is something to send.
    fn start(id: &str, nodes: &[String], config: &CoreConfig, tasks: &Tasks) -> Arc<Self> {
        let id: Arc<str> = id.into();
        let shard = Arc::new(Self {
            client: Client::new(Arc::clone(&id), nodes.to_vec(), config.connect_timeout),
            nodes: nodes.to_vec(),
            queue: Queue::new(config.queue_operations),
            breaker: Mutex::new(Breaker::new(config.breaker_failures, config.breaker_open)),
            budget: RetryBudget::new(),
            max_batch_operations: config.max_batch_operations,
            in_flight: Arc::new(Semaphore::new(config.rpcs_in_flight)),
            reads_admitted: Semaphore::new(READS_ADMITTED),
            reads_at_once: Semaphore::new(READS_AT_ONCE),
            metrics: ShardMetrics::new(&id),
            id,
        });
        tasks.spawn("coalescer", coalescer::run(Arc::clone(&shard), tasks.clone()));
        shard
    }

    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Node endpoints in order of preference.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    pub fn queued_operations(&self) -> usize {
        self.queue.operations()
    }

    pub fn breaker_state(&self) -> &'static str {
        self.breaker().name()
    }

    /// Takes no more work and ends once what is queued is sent.
    fn retire(&self) {
        self.queue.close();
    }

    // === writes ===

    /// Runs operations in order and answers each, in order, by `deadline` or shortly after.
    ///
    /// Up to the most one call carries they travel in one call. `ordered` makes later ones wait for earlier ones of
    /// theirs that the node had to put off; it holds within one call.
    pub async fn execute(
        &self,
        urgency: Urgency,
        operations: Vec<Operation>,
        ordered: bool,
        deadline: Deadline,
    ) -> Answers {
        let weight = operations.iter().map(Operation::weight).sum();
        if weight <= self.max_batch_operations || operations.len() == 1 {
            return self.submit(urgency, operations, weight, ordered, deadline).wait(&self.id, deadline).await;
        }
        // All queued before the first is waited for: they keep their order and follow each other without a pause.
        let chunks: Vec<_> = chunks(operations, self.max_batch_operations)
            .into_iter()
            .map(|(chunk, weight)| self.submit(urgency, chunk, weight, ordered, deadline))
            .collect();
        let mut all = Answers::from(Vec::new());
        for chunk in chunks {
            let Answers { answers, resent } = chunk.wait(&self.id, deadline).await;
            all.answers.extend(answers);
            all.resent |= resent;
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
        let (reply, answers) = oneshot::channel();
        let claim = Claim::default();
        let submission = Submission {
            operations,
            weight,
            ordered,
            deadline,
            claim: claim.clone(),
            reply,
            answers: Vec::new(),
            resent: false,
        };
        match self.queue.push(urgency, submission) {
            Ok(()) => Submitted::Queued(Waiting { answers, claim, operations: count }),
            Err(queue::Refusal::Full) => {
                self.metrics.queue_full.increment(count as u64);
                Submitted::Refused(CallError::Overloaded { shard: Arc::clone(&self.id) }, count)
            }
            Err(queue::Refusal::Closed) => Submitted::Refused(CallError::ShuttingDown, count),
        }
    }

    // === reads ===

    /// Makes a read. One that was lost with its connection is made once more: it has no effect to repeat.
    pub async fn read<A, Make, Reply>(&self, deadline: Deadline, mut make: Make) -> Result<A, CallError>
    where
        Make: FnMut(NodeClient) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        if self.breaker().refuses(Instant::now()) {
            self.metrics.refused_by_breaker.increment(1);
            return Err(self.unavailable());
        }
        let Ok(_admitted) = self.reads_admitted.try_acquire() else {
            self.metrics.reads_full.increment(1);
            return Err(CallError::Overloaded { shard: Arc::clone(&self.id) });
        };
        let Ok(_turn) = timeout_at(deadline, self.reads_at_once.acquire()).await else {
            self.metrics.expired.increment(1);
            return Err(self.late());
        };
        if !self.breaker().admit(Instant::now()) {
            self.metrics.refused_by_breaker.increment(1);
            return Err(self.unavailable());
        }
        let mut answer = self.call(deadline, &mut make).await;
        if matches!(answer, Err(CallFailure::Lost(_))) && self.budget.spend() {
            answer = self.call(deadline, &mut make).await;
        }
        answer.map_err(|failure| match failure {
            CallFailure::NotSent(_) | CallFailure::Lost(_) => self.unavailable(),
            CallFailure::TooLate | CallFailure::NoAnswer => self.late(),
            CallFailure::Refused { code: Code::ResourceExhausted, .. } => {
                CallError::Overloaded { shard: Arc::clone(&self.id) }
            }
            CallFailure::Refused { code: Code::DeadlineExceeded | Code::Cancelled, .. } => self.late(),
            CallFailure::Refused { code: Code::Unavailable, .. } => self.unavailable(),
            CallFailure::Refused { detail, .. } => CallError::Internal { shard: Arc::clone(&self.id), detail },
        })
    }

    /// Asks the node something about itself, breaker or not: this is how an operator sees a shard come back.
    pub async fn probe<A, Make, Reply>(&self, deadline: Deadline, make: Make) -> Result<A, CallFailure>
    where
        Make: FnMut(NodeClient) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        self.call(deadline, make).await
    }

    // === calls ===

    /// A call with its fate reported to the breaker.
    async fn call<A, Make, Reply>(&self, until: Instant, make: Make) -> Result<A, CallFailure>
    where
        Make: FnMut(NodeClient) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let report = Report { shard: self, reported: false };
        let answer = self.client.call(until, make).await;
        report.of(&answer);
        answer
    }

    fn record(&self, signal: Signal, failure: Option<&CallFailure>) {
        let now = Instant::now();
        let mut breaker = self.breaker();
        if breaker.record(signal, now)
            && let Some(failure) = failure
        {
            tracing::warn!(shard = %self.id, %failure, "breaker opened: calls to this shard are refused for a while");
        }
        self.metrics.breaker_open.set(if breaker.refuses(now) { 1.0 } else { 0.0 });
        drop(breaker);
        if signal == Signal::Answered {
            self.budget.earn();
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Nothing panics while it is held.
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

/// Tells the breaker how a call ended, also when nobody waited for its end: it may have been the probe.
struct Report<'a> {
    shard: &'a Shard,
    reported: bool,
}

impl Report<'_> {
    fn of<A>(mut self, answer: &Result<A, CallFailure>) {
        self.reported = true;
        let signal = match answer {
            Ok(_) | Err(CallFailure::Refused { .. }) => Signal::Answered,
            Err(CallFailure::NotSent(_) | CallFailure::Lost(_)) => Signal::ConnectionFailed,
            Err(CallFailure::TooLate | CallFailure::NoAnswer) => Signal::NoAnswer,
        };
        self.shard.record(signal, answer.as_ref().err());
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.shard.record(Signal::NoAnswer, None);
        }
    }
}

/// A submission that was queued, or was not.
enum Submitted {
    Queued(Waiting),
    /// With how many operations.
    Refused(CallError, usize),
}

impl Submitted {
    async fn wait(self, shard: &Arc<str>, deadline: Deadline) -> Answers {
        match self {
            Self::Queued(waiting) => waiting.wait(shard, deadline).await,
            Self::Refused(error, operations) => vec![Err(error); operations].into(),
        }
    }
}

impl Waiting {
    async fn wait(mut self, shard: &Arc<str>, deadline: Deadline) -> Answers {
        let error = match timeout_at(deadline, &mut self.answers).await {
            Ok(Ok(answers)) => return answers,
            // Whoever should have answered is gone. In the queue nothing had happened yet.
            Ok(Err(_)) if self.claim.take() => CallError::ShuttingDown,
            Ok(Err(_)) => CallError::OutcomeUnknown { shard: Arc::clone(shard) },
            // Claimed here, it will never be sent.
            Err(_) if self.claim.take() => CallError::Deadline { shard: Arc::clone(shard) },
            Err(_) => match timeout_at(deadline + ANSWER_GRACE, &mut self.answers).await {
                Ok(Ok(answers)) => return answers,
                _ => CallError::OutcomeUnknown { shard: Arc::clone(shard) },
            },
        };
        vec![Err(error); self.operations].into()
    }
}

/// Splits operations, in order, into groups of at most `max_weight` (an operation heavier than that goes alone).
fn chunks(operations: Vec<Operation>, max_weight: usize) -> Vec<(Vec<Operation>, usize)> {
    let mut chunks: Vec<(Vec<Operation>, usize)> = Vec::new();
    for operation in operations {
        let added = operation.weight();
        match chunks.last_mut() {
            Some((chunk, weight)) if *weight + added <= max_weight => {
                chunk.push(operation);
                *weight += added;
            }
            _ => chunks.push((vec![operation], added)),
        }
    }
    chunks
}
