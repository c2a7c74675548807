//! The metrics of the core: names, labels, descriptions, and the functions that record them. Those of the HTTP edge are in
//! [`crate::http::metrics`].

use std::{sync::LazyLock, time::Duration};

use ledger::{Refusal, outcome::TransferState};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::{
    call::CallError,
    reply::{AtomicReply, TransferReply},
};

// === names ===

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

/// Gauge: sagas this router is driving.
const SAGAS_IN_FLIGHT: &str = "shardledger_sagas_in_flight";
/// Counter, labels `step` (`decide`, `settle`, `compensate`), `outcome` (`done`, `again`, `parked`).
const SAGA_STEPS_ANSWERED: &str = "shardledger_saga_steps_total";
/// Histogram, label `step`.
const SAGA_STEP_SECONDS: &str = "shardledger_saga_step_seconds";
/// Counter, labels `shard`, `outcome` (`posted`, `rejected`, `pending`, `parked`): sagas taken over by recovery.
const SAGAS_RECOVERED: &str = "shardledger_sagas_recovered_total";
/// Counter, label `shard`: sagas that recovery found after many attempts.
const SAGAS_OVERDUE: &str = "shardledger_sagas_overdue_total";
/// Counter, label `shard`: polls for abandoned sagas that failed.
const SAGA_POLL_FAILURES: &str = "shardledger_saga_poll_failures_total";

/// The steps that have series. The reserve is part of the request of its transfer.
const SAGA_STEPS: [&str; 3] = ["decide", "settle", "compensate"];

/// Counter, labels `shard`, `outcome` (`answered`, `not_sent`, `lost`, `no_answer`, `refused`).
const EXECUTE_CALLS: &str = "shardledger_execute_rpcs_total";
/// Histogram, label `shard`.
const EXECUTE_SECONDS: &str = "shardledger_execute_rpc_seconds";
/// Histogram, label `shard`: operations in one Execute call.
const EXECUTE_OPERATIONS: &str = "shardledger_execute_rpc_operations";
/// Gauge, label `shard`: operations waiting in this router.
const QUEUE_OPERATIONS: &str = "shardledger_shard_queue_operations";
/// Counter, labels `shard`, `reason` (`queue_full`, `breaker_open`, `deadline`, `reads_full`): a bound that was hit.
const REFUSALS: &str = "shardledger_shard_refusals_total";
/// Counter, label `shard`: calls whose answer was lost and which were sent again.
const RESENDS: &str = "shardledger_execute_resends_total";
/// Counter, label `shard`: resends not made because the retry budget was spent.
const RESENDS_DENIED: &str = "shardledger_execute_resends_denied_total";
/// Gauge, label `shard`: 1 while the breaker is not closed.
const BREAKER_OPEN: &str = "shardledger_breaker_open_state";

const MAP_VERSION: &str = "shardledger_shard_map_version";
const MAP_RELOADS: &str = "shardledger_shard_map_reloads_total";
const LAST_RELOAD_SUCCESS: &str = "shardledger_shard_map_last_reload_success";
const OVERRIDE_SLOTS: &str = "shardledger_shard_map_override_slots";
const UNKNOWN_SHARDS: &str = "shardledger_shard_map_unknown_shards_total";
const CONFLICTS: &str = "shardledger_slot_conflicts_total";

/// Describes every metric, and makes the series that do not belong to a shard.
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
    describe_counter!(EXECUTE_CALLS, "Execute calls to shard-nodes, by how they ended.");
    describe_histogram!(
        EXECUTE_SECONDS,
        Unit::Seconds,
        "Time of one Execute call to a shard-node, however it ended."
    );
    describe_histogram!(EXECUTE_OPERATIONS, "Operations in one Execute call.");
    describe_gauge!(QUEUE_OPERATIONS, "Operations waiting in this router for a shard.");
    describe_counter!(REFUSALS, "Operations and reads refused at a bound before anything was sent.");
    describe_counter!(RESENDS, "Execute calls sent again because their answer was lost.");
    describe_counter!(RESENDS_DENIED, "Lost Execute calls not sent again: the retry budget was spent.");
    describe_gauge!(
        BREAKER_OPEN,
        "1 while a shard's breaker is open or probing, as /readyz?verbose says; 0 while it is closed."
    );
    describe_gauge!(SAGAS_IN_FLIGHT, "Sagas this router is driving.");
    describe_counter!(SAGA_STEPS_ANSWERED, "Steps of sagas that were answered, by what the answer led to.");
    describe_histogram!(
        SAGA_STEP_SECONDS,
        Unit::Seconds,
        "Time of one step of a saga, waiting for the shard's batch included."
    );
    describe_counter!(SAGAS_RECOVERED, "Sagas that recovery took over, by how they ended.");
    describe_counter!(SAGAS_OVERDUE, "Sagas found by recovery after many attempts. A human should look.");
    describe_counter!(SAGA_POLL_FAILURES, "Polls of a shard for abandoned sagas that failed.");
    gauge!(SAGAS_IN_FLIGHT).set(0.0);
    for step in SAGA_STEPS {
        let _ = histogram!(SAGA_STEP_SECONDS, "step" => step);
        for end in StepEnd::ALL {
            counter!(SAGA_STEPS_ANSWERED, "step" => step, "outcome" => end.label()).absolute(0);
        }
    }
    describe_gauge!(MAP_VERSION, "Version of the shard map in use.");
    describe_counter!(MAP_RELOADS, "Attempts to replace the shard map, by outcome: replaced, unchanged, refused.");
    describe_gauge!(
        LAST_RELOAD_SUCCESS,
        "0 while the newest map offered is refused and an older one stays in use; else 1."
    );
    describe_gauge!(
        OVERRIDE_SLOTS,
        "Slots that go to another shard than the shard map says, because a shard said so."
    );
    describe_counter!(
        UNKNOWN_SHARDS,
        "Statements about, or answers of, shards that the shard map does not have there."
    );
    describe_counter!(
        CONFLICTS,
        "Slots that two shards claimed at the same epoch. Never other than 0 in a sound cluster."
    );
    // So that the series exist before the first reload.
    for outcome in [MapReload::Replaced, MapReload::Unchanged, MapReload::Refused] {
        counter!(MAP_RELOADS, "outcome" => outcome.label()).absolute(0);
    }
    counter!(CONFLICTS).absolute(0);
    counter!(UNKNOWN_SHARDS).absolute(0);
}

/// Makes the series of one shard, apart from those of [`ShardMetrics`].
pub fn register_shard(shard: &str) {
    for outcome in RECOVERY_OUTCOMES {
        counter!(SAGAS_RECOVERED, "shard" => shard.to_owned(), "outcome" => outcome).increment(0);
    }
    counter!(SAGAS_OVERDUE, "shard" => shard.to_owned()).increment(0);
    counter!(SAGA_POLL_FAILURES, "shard" => shard.to_owned()).increment(0);
    counter!(WRONG_ROUTES, "shard" => shard.to_owned()).increment(0);
}

// === transfers and routes ===

/// A wave of transfers ran.
pub fn count_wave() {
    // Every request counts a wave: look the counter up once.
    static COUNTER: LazyLock<Counter> = LazyLock::new(|| counter!(WAVES));
    COUNTER.increment(1);
}

/// The shard refused so many operations because it does not own their slots.
pub fn wrong_route(shard: &str, refusals: usize) {
    counter!(WRONG_ROUTES, "shard" => shard.to_owned()).increment(refusals as u64);
}

/// So many operations wait for their slots now.
pub fn waiting(operations: usize) {
    gauge!(WAITING).set(u32::try_from(operations).map_or(f64::from(u32::MAX), f64::from));
}

/// So many operations were refused because too many waited.
pub fn refused_to_wait(operations: usize) {
    counter!(NOT_WAITING).increment(operations as u64);
}

/// All shards were asked which slots they own, and so many answered.
pub fn refreshed(answers: usize) {
    counter!(REFRESHES).increment(1);
    counter!(REFRESH_ANSWERS).increment(answers as u64);
}

/// The counters of transfers. They are looked up once, because each request needs them.
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
pub fn count_transfer(reply: Result<&TransferReply, &CallError>) {
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
pub fn count_atomic(reply: &Result<AtomicReply, CallError>, transfers: usize) {
    let counters = &*COUNTERS;
    match reply {
        Ok(AtomicReply::Stored(items)) => items.iter().for_each(|item| count_transfer(Ok(item))),
        Ok(AtomicReply::Failed { .. } | AtomicReply::CrossShard) => counters.failed.increment(transfers as u64),
        Err(error) if error.is_not_executed() => counters.failed.increment(transfers as u64),
        Err(_) => counters.unknown.increment(transfers as u64),
    }
}

// === sagas ===

/// How recovery leaves a saga: the label `outcome`.
pub const RECOVERY_OUTCOMES: [&str; 4] = ["posted", "rejected", "pending", "parked"];

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepEnd {
    Done,
    Again,
    Parked,
}

impl StepEnd {
    const ALL: [Self; 3] = [Self::Done, Self::Again, Self::Parked];

    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Again => "again",
            Self::Parked => "parked",
        }
    }
}

/// A step of the saga was answered, for so many sagas.
pub fn step_ended(step: &'static str, end: StepEnd, took: Duration, sagas: usize) {
    debug_assert!(SAGA_STEPS.contains(&step), "{step} has no series from the start");
    counter!(SAGA_STEPS_ANSWERED, "step" => step, "outcome" => end.label()).increment(sagas as u64);
    histogram!(SAGA_STEP_SECONDS, "step" => step).record_many(took.as_secs_f64(), sagas);
}

/// Recovery took so many sagas of the shard over and left them so.
pub fn recovered(shard: &str, outcome: &'static str, sagas: u64) {
    if sagas > 0 {
        counter!(SAGAS_RECOVERED, "shard" => shard.to_owned(), "outcome" => outcome).increment(sagas);
    }
}

/// Recovery found so many sagas of the shard after many attempts.
pub fn overdue(shard: &str, sagas: usize) {
    if sagas > 0 {
        counter!(SAGAS_OVERDUE, "shard" => shard.to_owned()).increment(sagas as u64);
    }
}

/// A poll of the shard for abandoned sagas failed.
pub fn poll_failed(shard: &str) {
    counter!(SAGA_POLL_FAILURES, "shard" => shard.to_owned()).increment(1);
}

/// Counts sagas as in flight for as long as it lives.
pub struct SagasInFlight {
    gauge: Gauge,
    sagas: f64,
}

impl SagasInFlight {
    #[expect(clippy::cast_precision_loss, reason = "a count for a gauge")]
    pub fn new(sagas: usize) -> Self {
        let (gauge, sagas) = (gauge!(SAGAS_IN_FLIGHT), sagas as f64);
        gauge.increment(sagas);
        Self { gauge, sagas }
    }
}

impl Drop for SagasInFlight {
    fn drop(&mut self) {
        self.gauge.decrement(self.sagas);
    }
}

// === shards ===

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallEnd {
    Answered,
    NotSent,
    Lost,
    NoAnswer,
    Refused,
}

impl CallEnd {
    const ALL: [Self; 5] = [Self::Answered, Self::NotSent, Self::Lost, Self::NoAnswer, Self::Refused];

    fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NotSent => "not_sent",
            Self::Lost => "lost",
            Self::NoAnswer => "no_answer",
            Self::Refused => "refused",
        }
    }
}

/// The handles of one shard.
pub struct ShardMetrics {
    execute_calls: [Counter; CallEnd::ALL.len()],
    execute_seconds: Histogram,
    execute_operations: Histogram,
    pub queue_full: Counter,
    pub refused_by_breaker: Counter,
    pub expired: Counter,
    pub reads_full: Counter,
    pub resends: Counter,
    pub resends_denied: Counter,
}

impl ShardMetrics {
    pub fn new(shard: &str) -> Self {
        let refusals = |reason: &'static str| counter!(REFUSALS, "shard" => shard.to_owned(), "reason" => reason);
        Self {
            execute_calls: CallEnd::ALL
                .map(|end| counter!(EXECUTE_CALLS, "shard" => shard.to_owned(), "outcome" => end.label())),
            execute_seconds: histogram!(EXECUTE_SECONDS, "shard" => shard.to_owned()),
            execute_operations: histogram!(EXECUTE_OPERATIONS, "shard" => shard.to_owned()),
            queue_full: refusals("queue_full"),
            refused_by_breaker: refusals("breaker_open"),
            expired: refusals("deadline"),
            reads_full: refusals("reads_full"),
            resends: counter!(RESENDS, "shard" => shard.to_owned()),
            resends_denied: counter!(RESENDS_DENIED, "shard" => shard.to_owned()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of operations for a histogram")]
    pub fn executed(&self, end: CallEnd, took: Duration, operations: usize) {
        self.execute_calls[end as usize].increment(1);
        self.execute_seconds.record(took.as_secs_f64());
        self.execute_operations.record(operations as f64);
    }
}

/// Sets the gauges of one shard.
#[expect(clippy::cast_precision_loss, reason = "a queue length for a gauge")]
pub fn shard_gauges(shard: &str, queued: usize, is_closed: bool) {
    gauge!(QUEUE_OPERATIONS, "shard" => shard.to_owned()).set(queued as f64);
    gauge!(BREAKER_OPEN, "shard" => shard.to_owned()).set(if is_closed { 0.0 } else { 1.0 });
}

// === the shard map ===

/// How an attempt to replace the map ended.
#[derive(Debug, Clone, Copy)]
pub enum MapReload {
    Replaced,
    Unchanged,
    Refused,
}

impl MapReload {
    fn label(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

/// A map of this version is in use.
pub fn map_loaded(version: u64) {
    gauge!(MAP_VERSION).set(version as f64);
    gauge!(LAST_RELOAD_SUCCESS).set(1.0);
}

/// An attempt to replace the map ended.
pub fn map_reload(outcome: MapReload) {
    counter!(MAP_RELOADS, "outcome" => outcome.label()).increment(1);
    gauge!(LAST_RELOAD_SUCCESS).set(if matches!(outcome, MapReload::Refused) { 0.0 } else { 1.0 });
}

/// So many slots go to another shard than the map says.
pub fn overrides(slots: usize) {
    gauge!(OVERRIDE_SLOTS).set(slots as f64);
}

/// A shard was named that the map does not have there.
pub fn unknown_shard() {
    counter!(UNKNOWN_SHARDS).increment(1);
}

/// Two shards claim so many slots at the same epoch.
pub fn slot_conflicts(slots: usize) {
    counter!(CONFLICTS).increment(slots as u64);
}
