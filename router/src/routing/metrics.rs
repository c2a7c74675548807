//! The metrics of routing.

use metrics::{counter, describe_counter, describe_gauge, gauge};

const VERSION: &str = "shardledger_shard_map_version";
const RELOADS: &str = "shardledger_shard_map_reloads_total";
const LAST_RELOAD_SUCCESS: &str = "shardledger_shard_map_last_reload_success";
const OVERRIDES: &str = "shardledger_shard_map_override_slots";
const UNKNOWN_SHARDS: &str = "shardledger_shard_map_unknown_shards_total";
const CONFLICTS: &str = "shardledger_slot_conflicts_total";

/// How an attempt to replace the map ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    Replaced,
    Unchanged,
    Refused,
}

pub fn describe() {
    describe_gauge!(VERSION, "Version of the shard map in use.");
    describe_counter!(RELOADS, "Attempts to replace the shard map, by outcome: replaced, unchanged, refused.");
    describe_gauge!(
        LAST_RELOAD_SUCCESS,
        "0 while the newest map offered is refused and an older one stays in use; else 1."
    );
    describe_gauge!(OVERRIDES, "Slots that go to another shard than the shard map says, because a shard said so.");
    describe_counter!(
        UNKNOWN_SHARDS,
        "Statements about, or answers of, shards that the shard map does not have there."
    );
    describe_counter!(
        CONFLICTS,
        "Slots that two shards claimed at the same epoch. Never other than 0 in a sound cluster."
    );
    // So that the series exist before the first reload.
    for outcome in [Outcome::Replaced, Outcome::Unchanged, Outcome::Refused] {
        counter!(RELOADS, "outcome" => outcome.label()).absolute(0);
    }
    counter!(CONFLICTS).absolute(0);
    counter!(UNKNOWN_SHARDS).absolute(0);
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

pub fn loaded(version: u64) {
    gauge!(VERSION).set(version as f64);
    gauge!(LAST_RELOAD_SUCCESS).set(1.0);
}

pub fn reload(outcome: Outcome) {
    counter!(RELOADS, "outcome" => outcome.label()).increment(1);
    gauge!(LAST_RELOAD_SUCCESS).set(if matches!(outcome, Outcome::Refused) { 0.0 } else { 1.0 });
}

pub fn overrides(slots: usize) {
    gauge!(OVERRIDES).set(slots as f64);
}

pub fn unknown_shard() {
    counter!(UNKNOWN_SHARDS).increment(1);
}

pub fn conflicts(slots: usize) {
    counter!(CONFLICTS).increment(slots as u64);
}
