//! The parts of the integration tests: clusters of real processes, faults that prove that they had an effect, clients that
//! record every answer, and the audit that compares these answers with the databases.
//!
//! Start at [`cluster::Cluster`]. A test first prints its [`seed::Seed`]. It then runs a [`workload`] against a cluster, and meanwhile
//! causes faults through [`cluster::Member`] or a [`proxy::TcpProxy`]. It ends with the [`audit`]. Tests do not sleep for a fixed time:
//! [`wait::until`] looks until a condition holds.
//!
//! No process and no folder outlives a test, in whatever way the test ends: see [`leash`]. A cluster or a server that tests of one run
//! share ends with the run: see [`shared`].

pub mod audit;
pub mod client;
pub mod cluster;
pub mod database;
pub mod history;
pub mod leash;
pub mod node;
pub mod patroni;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod router;
pub mod seed;
pub mod shared;
pub mod wait;
pub mod workload;
