//! What is measured of requests in the core.

use std::sync::LazyLock;

use ledger::{Refusal, outcome::TransferState};
use metrics::{Counter, counter, describe_counter, describe_gauge, gauge};

use super::{AtomicReply, CallError, TransferReply};

/// Counter, label `outcome` (`posted`, `rejected`, `pending`, `failed`, `unknown`): answers to transfers, replays aside.
const TRANSFERS: &str = "shardledger_transfers_total";
/// Counter, label `code` (a [`Refusal`]): the rejected ones.
const REJECTED: &str = "shardledger_transfers_rejected_total";
/// Counter.
const REPLAYED: &str = "shardledger_transfers_replayed_total";

/// Counter: waves of transfers run.
const WAVES: &str = "shardledger_transfer_waves_total";
/// Counter, label `shard`: times a shard said that a slot is not its own.
const WRONG_ROUTES: &str = "shardledger_wrong_routes_total";
/// Counter: times all shards were asked what they own.
const REFRESHES: &str = "shardledger_ownership_refreshes_total";
/// Counter: answers to that.
const REFRESH_ANSWERS: &str = "shardledger_ownership_answers_total";

/// Gauge: operations that wait for a shard to receive their slot.
const WAITING: &str = "shardledger_waiting_operations";
/// Counter: operations that were refused because too many waited.
const NOT_WAITING: &str = "shardledger_waiting_operations_refused_total";

pub fn describe() {
    describe_counter!(
        TRANSFERS,
        "Transfers answered, captures and reversals included and replays not, by outcome: posted; rejected for good; pending (HTTP 202); \
         failed, with nothing stored; unknown (HTTP 504, or 500)."
    );
    describe_counter!(REJECTED, "Transfers rejected for good, by code; replays not included.");
    describe_counter!(REPLAYED, "Transfers answered from what an earlier request with the same id has stored.");
    describe_gauge!(WAITING, "Operations that wait until a move has brought their slot to its new shard.");
    describe_counter!(NOT_WAITING, "Operations refused because too many waited for a slot that was moving.");
    describe_counter!(WAVES, "Waves of transfers; one per request unless its items depend on each other.");
    describe_counter!(WRONG_ROUTES, "Operations and reads that reached a shard which does not own the slot.");
    describe_counter!(REFRESHES, "Times all shards were asked which slots they own.");
    describe_counter!(REFRESH_ANSWERS, "Shards that said which slots they own.");
    LazyLock::force(&COUNTERS);
    gauge!(WAITING).set(0.0);
    for name in [NOT_WAITING, WAVES, REFRESHES, REFRESH_ANSWERS] {
        counter!(name).absolute(0);
    }
    crate::shard::describe_metrics();
    crate::saga::describe_metrics();
}

pub fn wave() {
    // Counted for every request: one look-up.
    static COUNTER: LazyLock<Counter> = LazyLock::new(|| counter!(WAVES));
    COUNTER.increment(1);
}

pub fn wrong_route(shard: &str, refusals: usize) {
    counter!(WRONG_ROUTES, "shard" => shard.to_owned()).increment(refusals as u64);
}

pub fn waiting(operations: usize) {
    gauge!(WAITING).set(u32::try_from(operations).map_or(f64::from(u32::MAX), f64::from));
}

pub fn refused_to_wait(operations: usize) {
    counter!(NOT_WAITING).increment(operations as u64);
}

pub fn refreshed(answers: usize) {
    counter!(REFRESHES).increment(1);
    counter!(REFRESH_ANSWERS).increment(answers as u64);
}

/// The series of one shard.
pub fn register(shard: &str) {
    counter!(WRONG_ROUTES, "shard" => shard.to_owned()).increment(0);
}

/// The counters of transfers, looked up once: each request needs them.
struct TransferCounters {
    posted: Counter,
    rejected: Counter,
    pending: Counter,
    failed: Counter,
    unknown: Counter,
    replayed: Counter,
    by_refusal: [Counter; Refusal::ALL.len()],
}

static COUNTERS: LazyLock<TransferCounters> = LazyLock::new(|| {
    let outcome = |outcome: &'static str| counter!(TRANSFERS, "outcome" => outcome);
    TransferCounters {
        posted: outcome("posted"),
        rejected: outcome("rejected"),
        pending: outcome("pending"),
        failed: outcome("failed"),
        unknown: outcome("unknown"),
        replayed: counter!(REPLAYED),
        by_refusal: Refusal::ALL.map(|code| counter!(REJECTED, "code" => code.as_str())),
    }
});

/// Counts the answer to one transfer.
pub fn transfer(reply: Result<&TransferReply, &CallError>) {
    let counters = &*COUNTERS;
    let counter = match reply {
        Ok(TransferReply::Done(answer) | TransferReply::Pending(answer)) if answer.replayed => &counters.replayed,
        Ok(TransferReply::Done(answer) | TransferReply::Pending(answer)) => match answer.state {
            TransferState::Posted { .. } => &counters.posted,
            TransferState::Pending => &counters.pending,
            TransferState::Rejected { refused, .. } => {
                if let Some(place) = Refusal::ALL.iter().position(|code| *code == refused.refusal) {
                    counters.by_refusal[place].increment(1);
                }
                &counters.rejected
            }
        },
        Ok(
            TransferReply::Mismatch { .. }
            | TransferReply::DebitNotFound
            | TransferReply::HoldNotFound
            | TransferReply::NotStored(_),
        ) => &counters.failed,
        Err(error) if error.is_not_executed() => &counters.failed,
        Err(_) => &counters.unknown,
    };
    counter.increment(1);
}

/// Counts the answer to a group of so many transfers.
pub fn atomic(reply: &Result<AtomicReply, CallError>, transfers: usize) {
    let counters = &*COUNTERS;
    match reply {
        Ok(AtomicReply::Stored(items)) => items.iter().for_each(|item| transfer(Ok(item))),
        Ok(AtomicReply::Failed { .. } | AtomicReply::CrossShard) => counters.failed.increment(transfers as u64),
        Err(error) if error.is_not_executed() => counters.failed.increment(transfers as u64),
        Err(_) => counters.unknown.increment(transfers as u64),
    }
}
