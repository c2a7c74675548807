//! Operations under way to a shard, from the side of the waiter for their answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ledger::{Metadata, operation::Operation, outcome::Outcome};
use tokio::{sync::oneshot, time::timeout_at};

use super::queue::Claim;
use crate::core::call::{CallError, Deadline};

/// The answer to one operation.
pub type Answer = Result<Outcome, CallError>;

/// The answers to operations that were submitted together, in order.
#[derive(Debug)]
pub struct Answers {
    pub answers: Vec<Answer>,
    /// They were sent more than once, so an operation that was not executed (not owned, deferred) may have been executed
    /// by an earlier sending. Its id tells, when it is sent again; until then its outcome is unknown.
    pub resent: bool,
    /// The COMMIT of an earlier attempt of the node was not answered. A replay among the answers may be the effect of that attempt.
    pub after_doubt: bool,
}

impl From<Vec<Answer>> for Answers {
    fn from(answers: Vec<Answer>) -> Self {
        Self { answers, resent: false, after_doubt: false }
    }
}

/// How long after a deadline the caller still waits for an answer that is on its way. A late answer is better than an unknown outcome.
pub const ANSWER_GRACE: Duration = Duration::from_millis(200);

/// A submission that was queued, or was not.
pub enum Submitted {
    Queued(InQueue),
    /// The error, and the number of operations that it answers.
    Refused(CallError, usize),
}

/// A submission under way.
pub struct InQueue {
    pub answers: oneshot::Receiver<Answers>,
    pub claim: Claim,
    pub operations: usize,
    pub _waiter: Waiter,
}

/// Counts a request among those that wait for a shard, for as long as it lives.
pub struct Waiter(Arc<AtomicUsize>);

impl Waiter {
    pub fn enter(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Submitted {
    pub async fn wait(self, shard: &Arc<str>, deadline: Deadline) -> Answers {
        match self {
            Self::Queued(waiting) => waiting.wait(shard, deadline).await,
            Self::Refused(error, operations) => vec![Err(error); operations].into(),
        }
    }
}

impl InQueue {
    async fn wait(mut self, shard: &Arc<str>, deadline: Deadline) -> Answers {
        let error = match timeout_at(deadline, &mut self.answers).await {
            Ok(Ok(answers)) => return answers,
            // The sender that should have answered is gone. In the queue nothing had happened yet.
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
pub fn chunks(operations: Vec<Operation>, max_weight: usize) -> Vec<(Vec<Operation>, usize)> {
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

/// What an operation or its answer takes on the wire, at most. Two account ids of full length and everything of fixed size are in the
/// constant; metadata is what makes one operation a hundred times as large as another.
pub fn wire_bytes(operation: &Operation) -> usize {
    const WITHOUT_METADATA: usize = 384;
    // A control character of one byte is six in JSON.
    const ANY_METADATA: usize = 6 * (Metadata::MAX_BYTES + Metadata::MAX_KEYS);
    let metadata = match operation {
        Operation::CreateAccount(create) => create.metadata.as_str().len(),
        // The answer shows the whole account, however little of it is changed.
        Operation::UpdateAccount(_) => ANY_METADATA,
        Operation::Transfer(transfer) => transfer.metadata.as_str().len(),
        Operation::AtomicTransfers(items) => {
            return items.iter().map(|item| WITHOUT_METADATA + item.metadata.as_str().len()).sum();
        }
        Operation::PlaceHold(place) => place.metadata.as_str().len(),
        // The answer shows the whole hold.
        Operation::ReleaseHold(_) => ANY_METADATA,
        Operation::DryRun(operation) | Operation::OrNothing(operation) => return wire_bytes(operation),
        Operation::Decide(_) | Operation::Settle(_) | Operation::ExpireHold(_) | Operation::EraseMetadata(_) => 0,
    };
    WITHOUT_METADATA + metadata
}
