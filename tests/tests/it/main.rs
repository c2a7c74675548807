//! Tests of the whole cluster, with real processes, real PostgreSQL and real faults. Each test ends with the same audit.
//!
//! Each test that draws something at random prints its seed. `SEED=… cargo nextest run -p integration-tests` repeats it.

/// [`anyhow::ensure`] for a condition that explains itself. The error has the condition, which was expected, and the values that were seen.
macro_rules! expect {
    ($expected:expr, $($seen:tt)+) => {
        anyhow::ensure!($expected, "expected {}, but saw {}", stringify!($expected), format_args!($($seen)+))
    };
}

mod chaos;
mod commands;
mod contract;
mod deployment;
mod doctor;
mod durable_steps;
mod erasure;
mod failover;
mod failpoints;
mod first_transfer;
mod guide;
mod identity;
mod import;
mod local_cluster;
mod metrics;
mod moves;
mod node;
mod postgres_tls;
mod rolling_upgrade;
mod second_node;
mod sequences;
mod shard_failover;
mod shard_map;
mod sums;
mod teardown;
mod tls;
mod traces;
mod two_phase;
mod under_fire;
mod verify;
