//! The sender of one shard: takes whatever waits into one call, as soon as a call may be made. It never waits for a
//! fixed time: while calls are under way, the next batch gathers by itself.

use std::sync::Arc;

use telemetry::tasks::Tasks;
use tokio::time::Instant;

use super::{CallError, Shard, delivery, queue::Submission};

/// How many times the sender yields before it takes a batch. The first yield runs the tasks that an answer of a node has woken,
/// each of which may have an operation for this shard. The second one runs the tasks that those wake. A call costs router and
/// node more than the operations in it.
const YIELDS: usize = 2;

/// Runs until the shard is retired or the service shuts down, and the queue is empty.
pub async fn run(shard: Arc<Shard>, tasks: Tasks) {
    let closer = {
        let (shard, token) = (Arc::clone(&shard), tasks.token().clone());
        async move {
            token.cancelled().await;
            shard.retire();
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = send_all(&shard, &tasks) => {}
        () = closer => {}
    }
}

async fn send_all(shard: &Arc<Shard>, tasks: &Tasks) {
    while shard.queue.ready().await {
        // The call slot first, then the batch: what arrives while the sender waits for a slot goes into the same call.
        let Ok(slot) = Arc::clone(&shard.in_flight).acquire_owned().await else { return };
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
        let batch = without_expired(shard, shard.queue.take(shard.max_batch_operations));
        if batch.is_empty() {
            continue;
        }
        if !shard.breaker().admit(Instant::now()) {
            for submission in batch {
                shard.metrics.refused_by_breaker.increment(submission.operations.len() as u64);
                submission.answer_all(&shard.unavailable());
            }
            continue;
        }
        tasks.spawn("delivery", delivery::deliver(Arc::clone(shard), batch, slot));
    }
}

/// Answers what has no time left: it was not sent and never will be.
fn without_expired(shard: &Shard, batch: Vec<Submission>) -> Vec<Submission> {
    let now = Instant::now();
    let (live, expired): (Vec<_>, Vec<_>) = batch.into_iter().partition(|submission| submission.deadline > now);
    for submission in expired {
        shard.metrics.expired.increment(submission.operations.len() as u64);
        submission.answer_all(&CallError::Deadline { shard: Arc::clone(shard.id()) });
    }
    live
}
