//! What the integration tests are made of: clusters of real processes, faults that prove they had an effect, a client that
//! remembers every answer, and the audit that holds those answers against the databases.
//!
//! Start at [`cluster::Cluster`]. A test begins with a [`seed::Seed`], which it prints, runs [`workload`] against a cluster
//! while it does harm through [`cluster::Member`] or a [`proxy::TcpProxy`], and ends in [`audit`]. Nothing here sleeps for
//! something to happen: [`wait::until`] looks until it is so.
//!
//! No process and no folder outlives a test, however the test ends: see [`leash`]. A cluster or a server that tests of one run share ends
//! with the run: see [`shared`].

pub mod audit;
pub mod client;
pub mod cluster;
pub mod database;
pub mod history;
pub mod leash;
pub mod node;
pub mod patroni;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod router;
pub mod section;
pub mod seed;
pub mod shared;
pub mod tables;
pub mod wait;
pub mod workload;
