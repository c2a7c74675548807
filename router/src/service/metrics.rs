//! What is measured of requests in the core.

use std::sync::LazyLock;

use metrics::{Counter, counter, describe_counter, describe_gauge, gauge};

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
    describe_gauge!(WAITING, "Operations that wait until a move has brought their slot to its new shard.");
    describe_counter!(NOT_WAITING, "Operations refused because too many waited for a slot that was moving.");
    describe_counter!(WAVES, "Waves of transfers; one per request unless its items depend on each other.");
    describe_counter!(WRONG_ROUTES, "Operations and reads that reached a shard which does not own the slot.");
    describe_counter!(REFRESHES, "Times all shards were asked which slots they own.");
    describe_counter!(REFRESH_ANSWERS, "Shards that said which slots they own.");
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
