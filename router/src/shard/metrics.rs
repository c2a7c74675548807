//! What is measured per shard, with the handles looked up once.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

/// Histogram, labels `shard`, `outcome` (`answered`, `not_sent`, `lost`, `no_answer`, `refused`).
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
/// Gauge, label `shard`: 1 while the breaker refuses work.
const BREAKER_OPEN: &str = "shardledger_breaker_open_state";

pub fn describe() {
    describe_histogram!(EXECUTE_SECONDS, "Time of one Execute call to a shard-node.");
    describe_histogram!(EXECUTE_OPERATIONS, "Operations in one Execute call.");
    describe_gauge!(QUEUE_OPERATIONS, "Operations waiting in this router for a shard.");
    describe_counter!(REFUSALS, "Operations and reads refused at a bound before anything was sent.");
    describe_counter!(RESENDS, "Execute calls sent again because their answer was lost.");
    describe_counter!(RESENDS_DENIED, "Lost Execute calls not sent again: the retry budget was spent.");
    describe_gauge!(BREAKER_OPEN, "1 while a shard's breaker refuses work.");
}

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
    execute_seconds: [Histogram; CallEnd::ALL.len()],
    execute_operations: Histogram,
    pub queue_operations: Gauge,
    pub queue_full: Counter,
    pub refused_by_breaker: Counter,
    pub expired: Counter,
    pub reads_full: Counter,
    pub resends: Counter,
    pub resends_denied: Counter,
    pub breaker_open: Gauge,
}

impl ShardMetrics {
    pub fn new(shard: &str) -> Self {
        let refusals = |reason: &'static str| counter!(REFUSALS, "shard" => shard.to_owned(), "reason" => reason);
        Self {
            execute_seconds: CallEnd::ALL
                .map(|end| histogram!(EXECUTE_SECONDS, "shard" => shard.to_owned(), "outcome" => end.label())),
            execute_operations: histogram!(EXECUTE_OPERATIONS, "shard" => shard.to_owned()),
            queue_operations: gauge!(QUEUE_OPERATIONS, "shard" => shard.to_owned()),
            queue_full: refusals("queue_full"),
            refused_by_breaker: refusals("breaker_open"),
            expired: refusals("deadline"),
            reads_full: refusals("reads_full"),
            resends: counter!(RESENDS, "shard" => shard.to_owned()),
            resends_denied: counter!(RESENDS_DENIED, "shard" => shard.to_owned()),
            breaker_open: gauge!(BREAKER_OPEN, "shard" => shard.to_owned()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of operations for a histogram")]
    pub fn executed(&self, end: CallEnd, took: Duration, operations: usize) {
        self.execute_seconds[end as usize].record(took.as_secs_f64());
        self.execute_operations.record(operations as f64);
    }
}
