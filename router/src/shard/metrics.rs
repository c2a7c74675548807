//! What is measured per shard, with the handles looked up once.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::View;

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

pub fn describe() {
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

/// The gauges of the shards of the map. They are set when `/metrics` is read, from the directory: a breaker changes with time and through probes, and a
/// shard whose nodes have changed has the series of its predecessor.
#[derive(Debug, Default)]
pub struct ShardGauges {
    /// The shards that have series.
    known: Mutex<BTreeSet<Arc<str>>>,
}

impl ShardGauges {
    #[expect(clippy::cast_precision_loss, reason = "a queue length for a gauge")]
    pub fn set(&self, view: &View) {
        let set = |shard: &str, queued: usize, is_closed: bool| {
            gauge!(QUEUE_OPERATIONS, "shard" => shard.to_owned()).set(queued as f64);
            gauge!(BREAKER_OPEN, "shard" => shard.to_owned()).set(if is_closed { 0.0 } else { 1.0 });
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in view.shards() {
            set(shard.id(), shard.queued_operations(), shard.breaker_state() == "closed");
            known.insert(Arc::clone(shard.id()));
        }
        // A series cannot be taken back: that of a shard that has left the map says that nothing is wrong with it.
        for gone in known.iter().filter(|id| view.shards().all(|shard| shard.id() != *id)) {
            set(gone, 0, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use shard_map::{ClusterId, ShardMap, SlotRange};
    use telemetry::Tasks;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        routing::Routing,
        service::CoreConfig,
        shard::{Shards, breaker::Signal},
    };

    /// The router's side of a cluster of one shard.
    fn shards(id: &str) -> Shards {
        let nodes = vec!["http://127.0.0.1:1".to_owned()];
        let shard = shard_map::Shard { id: id.to_owned(), number: 0, nodes, slots: vec![SlotRange::ALL] };
        let map = ShardMap::new(ClusterId::generate(), 1, vec![shard]).unwrap();
        Shards::start(Routing::fixed(map), CoreConfig::default(), Tasks::new())
    }

    fn record(shards: &Shards, signal: Signal) {
        for shard in shards.view().shards() {
            shard.breaker().record(signal, Instant::now());
        }
    }

    #[tokio::test]
    async fn the_gauge_of_a_breaker_is_that_of_the_shard_in_the_map() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let gauges = ShardGauges::default();
        let says = |shards: &Shards, series: &str| {
            metrics::with_local_recorder(&recorder, || gauges.set(&shards.view()));
            let text = recorder.handle().render();
            assert!(text.lines().any(|line| line == series), "no {series} in {text}");
        };
        let (before, after) = (shards("s0"), shards("s0"));
        for _ in 0..CoreConfig::default().breaker_failures {
            record(&after, Signal::ConnectionFailed);
        }
        // A call of the shard that the map had before is answered late.
        record(&before, Signal::Answered);
        says(&after, r#"shardledger_breaker_open_state{shard="s0"} 1"#);
        let probe = after.view().shards().next().unwrap().breaker().admit(Instant::now() + Duration::from_secs(5));
        assert!(probe);
        says(&after, r#"shardledger_breaker_open_state{shard="s0"} 1"#);
        says(&shards("s1"), r#"shardledger_breaker_open_state{shard="s0"} 0"#);
        record(&after, Signal::Answered);
        says(&after, r#"shardledger_breaker_open_state{shard="s0"} 0"#);
    }
}
