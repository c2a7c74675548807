//! What is measured of sagas.

use std::time::Duration;

use metrics::{Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::Step;

/// Gauge: sagas this router is driving.
const IN_FLIGHT: &str = "shardledger_sagas_in_flight";
/// Counter, labels `step` (`decide`, `settle`, `compensate`), `outcome` (`done`, `again`, `parked`).
const STEPS: &str = "shardledger_saga_steps_total";
/// Histogram, label `step`.
const STEP_SECONDS: &str = "shardledger_saga_step_seconds";
/// Counter, labels `shard`, `outcome` (`posted`, `rejected`, `pending`, `parked`): sagas taken over by recovery.
const RECOVERED: &str = "shardledger_sagas_recovered_total";
/// Counter, label `shard`: sagas seen by recovery with suspiciously many attempts behind them.
const OVERDUE: &str = "shardledger_sagas_overdue_total";
/// Counter, label `shard`: polls for abandoned sagas that failed.
const POLL_FAILURES: &str = "shardledger_saga_poll_failures_total";

pub fn describe() {
    describe_gauge!(IN_FLIGHT, "Sagas this router is driving.");
    describe_counter!(STEPS, "Steps of sagas that were answered, by what the answer led to.");
    describe_histogram!(
        STEP_SECONDS,
        Unit::Seconds,
        "Time of one step of a saga, waiting for the shard's batch included."
    );
    describe_counter!(RECOVERED, "Sagas that recovery took over, by how they ended.");
    describe_counter!(OVERDUE, "Sagas found by recovery after many attempts. A human should look.");
    describe_counter!(POLL_FAILURES, "Polls of a shard for abandoned sagas that failed.");
    gauge!(IN_FLIGHT).set(0.0);
    // The reserve is part of the transfer's request.
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Reserve) {
        let _ = histogram!(STEP_SECONDS, "step" => step.as_str());
        for end in StepEnd::ALL {
            counter!(STEPS, "step" => step.as_str(), "outcome" => end.label()).absolute(0);
        }
    }
}

/// The series of one shard.
pub fn register(shard: &str) {
    for outcome in RECOVERY_OUTCOMES {
        counter!(RECOVERED, "shard" => shard.to_owned(), "outcome" => outcome).increment(0);
    }
    counter!(OVERDUE, "shard" => shard.to_owned()).increment(0);
    counter!(POLL_FAILURES, "shard" => shard.to_owned()).increment(0);
}

/// How recovery leaves a saga.
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

pub fn step_ended(step: Step, end: StepEnd, took: Duration, sagas: usize) {
    counter!(STEPS, "step" => step.as_str(), "outcome" => end.label()).increment(sagas as u64);
    histogram!(STEP_SECONDS, "step" => step.as_str()).record_many(took.as_secs_f64(), sagas);
}

pub fn recovered(shard: &str, outcome: &'static str, sagas: u64) {
    if sagas > 0 {
        counter!(RECOVERED, "shard" => shard.to_owned(), "outcome" => outcome).increment(sagas);
    }
}

pub fn overdue(shard: &str, sagas: usize) {
    if sagas > 0 {
        counter!(OVERDUE, "shard" => shard.to_owned()).increment(sagas as u64);
    }
}

pub fn poll_failed(shard: &str) {
    counter!(POLL_FAILURES, "shard" => shard.to_owned()).increment(1);
}

/// Counts sagas as in flight for as long as it lives.
pub struct InFlight {
    gauge: Gauge,
    sagas: f64,
}

impl InFlight {
    #[expect(clippy::cast_precision_loss, reason = "a count for a gauge")]
    pub fn new(sagas: usize) -> Self {
        let (gauge, sagas) = (gauge!(IN_FLIGHT), sagas as f64);
        gauge.increment(sagas);
        Self { gauge, sagas }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.decrement(self.sagas);
    }
}
