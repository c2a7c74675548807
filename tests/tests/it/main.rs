//! The cluster as a whole: real processes, real PostgreSQL, real faults, and the same audit at the end of each.
//!
//! Each test that leaves something to chance prints its seed; `SEED=… cargo nextest run -p integration-tests` repeats it.

mod chaos;
mod commands;
mod contract;
mod deployment;
mod doctor;
mod durable_steps;
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
