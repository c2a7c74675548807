//! Tests of one shard-node and its database: messages that are lost between them, two nodes on one shard, and databases that a node must
//! not serve.
//!
//! The tests share one PostgreSQL server (`testkit::shared`). Each test has its own database and starts its own nodes.

mod bookings;
mod commit_faults;
mod databases;
mod second_writer;

use std::net::SocketAddr;

use ledger::Limit;
use testkit::{
    audit::rebuilds,
    node::{Folder, Node, NodeConfig, open},
    postgres::Postgres,
    shared,
};
use uuid::Uuid;

/// A map in which the shard under test owns every slot.
const MAP: &str = "cluster = \"0190d7c0-0000-7000-8000-00000000c1a5\"\nversion = 1\n[[shard]]\nid = \"s0\"\nnumber = 0\nnodes = [\"http://127.0.0.1:1\"]\nslots = [\"0-16383\"]\n";

/// The PostgreSQL server and the folder of a test.
struct NodeFixture {
    postgres: Postgres,
    folder: Folder,
}

impl NodeFixture {
    async fn new() -> anyhow::Result<Self> {
        let folder = Folder::create()?;
        Ok(Self { postgres: shared::postgres(&folder).await?, folder })
    }

    /// Creates an empty database and returns its URL. A test that runs again on the same server gets another database.
    async fn empty_database(&self, name: &str) -> anyhow::Result<String> {
        self.postgres.create_database(&format!("{name}_{}", Uuid::now_v7().simple()), "").await
    }

    /// Initialises a new database as a shard, and writes the configuration of a node in front of it.
    async fn shard(&self, name: &str) -> anyhow::Result<NodeConfig> {
        let url = self.empty_database(name).await?;
        let config = NodeConfig::write(&self.folder, name, "s0", &url)?;
        config.init(MAP)?;
        Ok(config)
    }

    /// Writes the configuration of another node in front of the same shard.
    fn another_node(&self, name: &str, url: &str) -> anyhow::Result<NodeConfig> {
        NodeConfig::write(&self.folder, name, "s0", url)
    }

    /// The address of PostgreSQL.
    fn postgres(&self) -> SocketAddr {
        self.postgres.address()
    }
}

/// Opens a payer without limit and a payee.
async fn open_pair(node: &Node, payer: &str, payee: &str) -> anyhow::Result<()> {
    node.execute_until_definite(&open(payer, Limit::Unlimited)?).await?;
    node.execute_until_definite(&open(payee, Limit::ZERO)?).await?;
    Ok(())
}

/// Checks the books of one database. Entries must balance, chains must have no gaps, and all rows must be the fold of the journal.
/// (`shardctl verify` also checks the rules between shards.)
async fn books_are_sound(url: &str) -> anyhow::Result<()> {
    rebuilds(url).await
}
