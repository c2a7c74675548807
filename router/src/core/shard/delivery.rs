//! The sender of one shard. It takes what waits in the queue into Execute calls, gives each submission its answers, and resends what was lost.
//!
//! The sender never waits for a fixed time: while calls are under way, the next batch gathers by itself.
//!
//! This is the only layer that resends, within a budget and until the deadline. All operations except account updates are idempotent by id,
//! so that resending the same ones yields the definite answer. A *second* sending that was not executed proves nothing about the first one,
//! whose outcome stays unknown.

use std::{sync::Arc, time::Duration};

use ledger::{
    operation::Operation,
    outcome::{Reason, Reply},
};
use node_client::CallFailure;
use telemetry::{tasks::Tasks, traces::Traceparent};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::Code;
use wire::{
    convert::BadMessage,
    execute::{ExecuteCall, Executed},
};

use super::{
    Shard,
    queue::Submission,
    submission::{ANSWER_GRACE, Answer, Answers},
};
use crate::core::{
    call::{CallError, Pace},
    metrics::CallEnd,
};

/// How many times the sender yields before it takes a batch. The first yield runs the tasks that an answer of a node has woken,
/// each of which may have an operation for this shard. The second one runs the tasks that those wake. A call costs router and
/// node more than the operations in it.
const YIELDS: usize = 2;

/// Shortest and longest pause between attempts to reach a lost node.
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);

/// The sender of one shard: takes all that waits into one call, as soon as a call may be made. It runs until the shard is retired or the
/// router shuts down, and the queue is empty.
pub async fn send_queue(shard: Arc<Shard>, tasks: Tasks) {
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
        tasks.spawn("delivery", deliver(Arc::clone(shard), batch, slot));
    }
}

/// Answers the submissions that have no time left. They were not sent and will not be.
fn without_expired(shard: &Shard, batch: Vec<Submission>) -> Vec<Submission> {
    let now = Instant::now();
    let (live, expired): (Vec<_>, Vec<_>) = batch.into_iter().partition(|submission| submission.deadline > now);
    for submission in expired {
        shard.metrics.expired.increment(submission.operations.len() as u64);
        submission.answer_all(&CallError::Deadline { shard: Arc::clone(shard.id()) });
    }
    live
}

// === one call ===

/// What the answers of a call prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    First,
    /// An earlier sending may have been executed.
    Again,
}

/// Sends a batch and answers every submission in it.
pub async fn deliver(shard: Arc<Shard>, batch: Vec<Submission>, slot: OwnedSemaphorePermit) {
    for span in batch.iter().filter_map(|submission| submission.span.as_deref()) {
        drop(span.part("queue", span.begun(), Instant::now()));
    }
    let open = match send(&shard, &batch).await {
        Ok(executed) => hand_out(&shard, batch, executed, Sending::First),
        Err(CallFailure::NotSent(_)) => return answer_all(batch, &shard.unavailable()),
        Err(CallFailure::TooLate) => return answer_all(batch, &shard.late()),
        Err(CallFailure::Lost(_)) => batch,
        Err(CallFailure::Refused { code: Code::Unavailable | Code::Cancelled | Code::Unknown, .. }) => batch,
        // Every caller has stopped waiting by now.
        Err(CallFailure::NoAnswer) => return give_up(&shard, batch),
        Err(CallFailure::Refused { code, detail }) => {
            tracing::error!(shard = %shard.id(), ?code, detail, "a shard-node refused a whole call");
            return answer_all(batch, &CallError::nonsense(shard.id(), detail));
        }
    };
    // Release the slot while waiting for the node: other batches need it to be sent or refused.
    drop(slot);
    if !open.is_empty() {
        resend(&shard, open).await;
    }
}

/// Resends what can be resent, until every operation has a definite answer.
async fn resend(shard: &Shard, batch: Vec<Submission>) {
    let (mut batch, once_only): (Vec<_>, Vec<_>) = batch.into_iter().partition(Submission::is_idempotent);
    give_up(shard, once_only);
    let latest = batch.iter().map(|submission| submission.deadline).max().unwrap_or_else(Instant::now);
    let mut pace = Pace::new(RECONNECT_MIN, RECONNECT_MAX);
    let mut paid = false;
    while !batch.is_empty() && pace.pause(latest).await {
        // A caller that gave up was told that the outcome is unknown.
        batch.retain(|submission| !submission.reply.is_closed());
        if !paid && !shard.budget.spend() {
            shard.metrics.resends_denied.increment(1);
            break;
        }
        paid = true;
        let Ok(_slot) = shard.in_flight.acquire().await else { break };
        match send(shard, &batch).await {
            // The node is still unreachable. Nothing was sent, so the budget for this sending remains.
            Err(CallFailure::NotSent(_) | CallFailure::TooLate) => continue,
            Ok(executed) => batch = hand_out(shard, batch, executed, Sending::Again),
            Err(CallFailure::Lost(_) | CallFailure::NoAnswer | CallFailure::Refused { .. }) => {
                batch.iter_mut().for_each(|submission| submission.forget_refusals(shard));
            }
        }
        shard.metrics.resends.increment(1);
        paid = false;
    }
    give_up(shard, batch);
}

async fn send(shard: &Shard, batch: &[Submission]) -> Result<Executed, CallFailure> {
    let begun = Instant::now();
    let latest = batch.iter().map(|submission| submission.deadline).max().unwrap_or(begun);
    let operations = batch.iter().map(|submission| submission.operations.len()).sum::<usize>();
    let answer = shard
        .call(latest + ANSWER_GRACE, |connection| {
            let now = Instant::now();
            let call = request(shard, batch, now, connection.clock().at(now));
            connection.execute(call)
        })
        .await;
    let end = match &answer {
        Ok(_) => CallEnd::Answered,
        Err(CallFailure::NotSent(_) | CallFailure::TooLate) => CallEnd::NotSent,
        Err(CallFailure::Lost(_)) => CallEnd::Lost,
        Err(CallFailure::NoAnswer) => CallEnd::NoAnswer,
        Err(CallFailure::Refused { .. }) => CallEnd::Refused,
    };
    shard.metrics.executed(end, begun.elapsed(), operations);
    let executed = answer?;
    // Record the mark before answering: a read that follows an answer must not be older.
    if let Some(mark) = executed.mark {
        shard.witness.observe(shard.number, mark);
    }
    if executed.replies.len() != operations {
        let detail = format!("{} results for {operations} operations", executed.replies.len());
        return Err(CallFailure::Refused { code: Code::Internal, detail });
    }
    Ok(executed)
}

/// `now_us` is `now` by the node's clock.
///
/// A limit of 0 means no limit. If this router was frozen after it took a submission from the queue, a deadline may have passed: the call is then dated
/// earlier, so that the limit is at least [`SHORTEST_LIMIT`] and the node finds that it has passed.
fn request(shard: &Shard, batch: &[Submission], now: Instant, now_us: Option<i64>) -> ExecuteCall {
    let deadlines = batch.iter().map(|submission| submission.deadline);
    let late = if now_us.is_some() { lateness(deadlines, now) } else { Duration::ZERO };
    let now = now.checked_sub(late).unwrap_or(now);
    let now_us = now_us.map(|now_us| now_us.saturating_sub_unsigned(u64::try_from(late.as_micros()).unwrap_or(0)));
    let table = shard.routing.load();
    let bytes = batch.iter().map(|submission| submission.bytes).sum();
    let mut call = ExecuteCall::new(shard.witness.assets_digest(), now_us, bytes);
    let mut first = 0;
    for (submission, number) in batch.iter().zip(1..) {
        let order_group = if submission.ordered { number } else { 0 };
        let left_ms = submission.deadline.saturating_duration_since(now).as_millis();
        // 0 would mean "no deadline".
        let timeout_ms = u32::try_from(left_ms).unwrap_or(u32::MAX).max(1);
        let count = submission.operations.len();
        if let Some(traceparent) = submission.traceparent {
            call.trace(traceparent.encode(&mut Traceparent::buffer()), first, count);
        }
        for operation in &submission.operations {
            call.push(operation, order_group, timeout_ms, shard.witness.other_end(table.map(), operation));
        }
        first += count;
    }
    call
}

/// How much earlier to date a call, so that the earliest deadline is [`SHORTEST_LIMIT`] after the date. Zero if no deadline has passed.
fn lateness(deadlines: impl Iterator<Item = Instant>, now: Instant) -> Duration {
    match deadlines.min() {
        Some(earliest) if earliest <= now => now.duration_since(earliest) + SHORTEST_LIMIT,
        _ => Duration::ZERO,
    }
}

/// The shortest time limit that a call can carry.
const SHORTEST_LIMIT: Duration = Duration::from_millis(1);

/// Gives each submission its answers, except submissions with an operation of unknown outcome, which are resent.
fn hand_out(shard: &Shard, batch: Vec<Submission>, executed: Executed, sending: Sending) -> Vec<Submission> {
    let mut replies = executed.replies.into_iter();
    let mut open = Vec::new();
    for mut submission in batch {
        submission.resent |= sending == Sending::Again;
        submission.after_doubt |= executed.after_doubt;
        let of_it = replies.by_ref().take(submission.operations.len());
        submission.answers = of_it.map(|reply| read(shard, reply, sending)).collect();
        let unknown = |answer: &Answer| matches!(answer, Err(CallError::OutcomeUnknown { .. }));
        if submission.answers.iter().any(unknown) {
            open.push(submission);
        } else {
            submission.answer();
        }
    }
    open
}

fn read(shard: &Shard, reply: Result<Reply, BadMessage>, sending: Sending) -> Answer {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => {
            tracing::error!(shard = %shard.id(), %error, "a shard-node gave an unreadable answer");
            return Err(CallError::nonsense(shard.id(), error));
        }
    };
    match (reply, sending) {
        (Reply::Unknown, _) | (Reply::NotExecuted { .. }, Sending::Again) => Err(shard.unknown()),
        (Reply::Outcome(outcome), _) => Ok(outcome),
        (Reply::NotExecuted { reason, detail }, Sending::First) => Err(match reason {
            Reason::Overloaded => CallError::Overloaded { shard: Arc::clone(shard.id()) },
            // The node is shutting down or its database is; this router is not.
            Reason::Unavailable | Reason::ShuttingDown => shard.unavailable(),
            Reason::Deadline => shard.late(),
            Reason::Internal => {
                tracing::error!(shard = %shard.id(), detail, "a shard refused an operation that would break an invariant");
                CallError::Illegal { shard: Arc::clone(shard.id()), detail }
            }
        }),
    }
}

/// What a span says of an error. The detail that a node adds may name accounts, and belongs into the log.
fn failure(error: &CallError) -> String {
    match error {
        CallError::Illegal { .. } => "an invariant would have been broken".to_owned(),
        CallError::Internal { .. } => "the answer makes no sense".to_owned(),
        error => error.to_string(),
    }
}

fn answer_all(batch: Vec<Submission>, error: &CallError) {
    for submission in batch {
        submission.answer_all(error);
    }
}

/// Answers with what is known and reports the rest as unknown.
fn give_up(shard: &Shard, batch: Vec<Submission>) {
    for submission in batch {
        if submission.answers.is_empty() {
            submission.answer_all(&shard.unknown());
        } else {
            submission.answer();
        }
    }
}

impl Submission {
    /// Whether sending it twice has the effect of sending it once. An account update has no id that would distinguish
    /// a repetition from a second order.
    fn is_idempotent(&self) -> bool {
        !self.operations.iter().any(|operation| matches!(operation, Operation::UpdateAccount(_)))
    }

    /// The submission was resent and that answer is lost: an operation that an earlier answer reported as not
    /// executed may be executed by now.
    fn forget_refusals(&mut self, shard: &Shard) {
        self.resent = true;
        for answer in self.answers.iter_mut().filter(|answer| answer.is_err()) {
            *answer = Err(shard.unknown());
        }
    }

    fn answer(mut self) {
        // Before the reply, so that the span ends within that of the request.
        if let Some(mut span) = self.span.take() {
            if self.resent {
                span.set("shardledger.resent", true);
            }
            if let Some(Err(error)) = self.answers.iter().find(|answer| answer.is_err()) {
                span.fail(failure(error));
            }
        }
        // The caller may have given up; the ledger keeps the results under the ids.
        let _ =
            self.reply.send(Answers { answers: self.answers, resent: self.resent, after_doubt: self.after_doubt });
    }

    /// Gives the same answer to each operation of the submission.
    pub fn answer_all(self, error: &CallError) {
        let answers = vec![Err(error.clone()); self.operations.len()];
        Self { answers, ..self }.answer();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A router that was frozen sends what it had taken out of the queue before. The node must find it late.
    #[test]
    fn a_late_call_is_dated_before_its_earliest_deadline() {
        let now = Instant::now() + Duration::from_secs(10);
        let (before, after) = (|ms| now - Duration::from_millis(ms), |ms| now + Duration::from_millis(ms));
        for (deadlines, late) in [
            (vec![], 0),
            (vec![after(1), after(500)], 0),
            (vec![after(500), before(0)], 1),
            (vec![before(3), before(1_500), after(500)], 1_501),
        ] {
            let late = Duration::from_millis(late);
            assert_eq!(lateness(deadlines.iter().copied(), now), late);
            for deadline in deadlines.into_iter().filter(|deadline| *deadline <= now) {
                let limit = deadline.duration_since(now - late);
                assert!(limit >= SHORTEST_LIMIT && limit <= late, "the node finds that {limit:?} have passed");
            }
        }
    }
}
