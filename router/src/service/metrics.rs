//! What is measured of requests in the core.

use std::sync::LazyLock;

use metrics::{Counter, counter, describe_counter};

/// Counter: waves of transfers run.
const WAVES: &str = "shardledger_transfer_waves_total";
/// Counter, label `shard`: times a shard said that a slot is not its own.
const WRONG_ROUTES: &str = "shardledger_wrong_routes_total";
/// Counter: times all shards were asked what they own.
const REFRESHES: &str = "shardledger_ownership_refreshes_total";
/// Counter: answers to that.
const REFRESH_ANSWERS: &str = "shardledger_ownership_answers_total";

pub fn describe() {
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

pub fn refreshed(answers: usize) {
    counter!(REFRESHES).increment(1);
    counter!(REFRESH_ANSWERS).increment(answers as u64);
}
