//! The fixtures that the tests of one run share: two clusters for the tests of the contract, and a PostgreSQL server for the tests of a
//! node.
//!
//! `cargo nextest` runs each test in a process of its own. Its setup scripts (`.config/nextest.toml`) run the program
//! `shared-fixture` (`tests/src/main.rs`), which starts a [`Fixture`] in a process that ends with the runner, and tells the tests
//! in an environment variable where the fixture is. A test that does not find the variable starts its own, so that each test
//! can be run by itself.

use std::{env, fmt, path::Path, str::FromStr};

use anyhow::bail;

use crate::{cluster::Cluster, node::Folder, postgres::Postgres};

/// The size of a shared cluster.
pub const SHARDS: u16 = 3;
pub const ROUTERS: u16 = 2;

/// A cluster or server that a run starts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixture {
    /// The cluster that many tests use at the same time. Each test has its own accounts, and no test harms the processes.
    Cluster,
    /// The cluster that one test uses at a time. A test group of `.config/nextest.toml` makes its tests run one after another.
    QuietCluster,
    /// The server of the tests of a node. Each test has its own databases.
    Postgresql,
}

impl Fixture {
    /// The environment variable with the fixture's data folder.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Cluster => "SHARDLEDGER_SHARED_CLUSTER",
            Self::QuietCluster => "SHARDLEDGER_SHARED_QUIET_CLUSTER",
            Self::Postgresql => "SHARDLEDGER_SHARED_POSTGRESQL",
        }
    }
}

impl fmt::Display for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::QuietCluster => "quiet-cluster",
            Self::Postgresql => "postgresql",
        })
    }
}

impl FromStr for Fixture {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "cluster" => Ok(Self::Cluster),
            "quiet-cluster" => Ok(Self::QuietCluster),
            "postgresql" => Ok(Self::Postgresql),
            other => bail!("{other:?} is no fixture: expected cluster, quiet-cluster or postgresql"),
        }
    }
}

/// The cluster on which tests of this run write at the same time, or a new one.
///
/// # Errors
/// The cluster of the run does not answer, or none can be started.
pub async fn cluster() -> anyhow::Result<Cluster> {
    running_or_new(Fixture::Cluster).await
}

/// The cluster on which one test of this run writes at a time, or a new one.
///
/// # Errors
/// The cluster of the run does not answer, or none can be started.
pub async fn quiet_cluster() -> anyhow::Result<Cluster> {
    running_or_new(Fixture::QuietCluster).await
}

async fn running_or_new(fixture: Fixture) -> anyhow::Result<Cluster> {
    match env::var_os(fixture.variable()) {
        Some(data_dir) => Cluster::running_in(Path::new(&data_dir)).await,
        None => Cluster::start(SHARDS, ROUTERS).await,
    }
}

/// The PostgreSQL server of this run, or a new one in this folder.
///
/// # Errors
/// The server of the run is gone, or none can be started.
pub async fn postgres(folder: &Folder) -> anyhow::Result<Postgres> {
    match env::var_os(Fixture::Postgresql.variable()) {
        Some(data) => Postgres::running_in(Path::new(&data)),
        None => Postgres::start(folder, "postgresql").await,
    }
}
