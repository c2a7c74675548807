//! The status that `shardctl status --json --show-passwords` prints, the processes as targets of faults, and account ids that live on a
//! given shard.

use std::{fmt, path::PathBuf};

use anyhow::Context;
use serde::Deserialize;
use shard_map::{ShardMap, slot_of};

/// The state of a process that takes requests.
const READY: &str = "ready";
/// The value of a router's `reads` and `writes` when they work at every shard.
const ALL: &str = "all";

#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The original of a copied data folder.
    pub copy_of: Option<PathBuf>,
    pub map_version: u64,
    pub supervisor_pid: Option<i32>,
    pub routers: Vec<RouterStatus>,
    pub shards: Vec<ShardStatus>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RouterStatus {
    pub url: String,
    pub admin_url: String,
    pub pid: Option<i32>,
    pub state: String,
    /// The shards at which reads or writes work: `all`, `some` or `none`.
    pub reads: String,
    pub writes: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ShardStatus {
    pub id: String,
    pub slots: u32,
    pub node_url: String,
    pub node_admin_url: String,
    pub node_pid: Option<i32>,
    pub node_role: Option<String>,
    pub second_node: Option<SecondNodeStatus>,
    pub postgres_pid: Option<i32>,
    pub postgres_port: u16,
    pub standby: Option<StandbyStatus>,
    pub dsn: String,
    pub state: String,
    pub reads: bool,
    pub writes: bool,
    /// The reason why reads or writes do not work.
    pub cause: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct SecondNodeStatus {
    pub url: String,
    pub admin_url: String,
    pub pid: Option<i32>,
    pub state: String,
    pub role: Option<String>,
}

/// The stand-by of a shard's PostgreSQL.
#[derive(Debug, Clone, Deserialize)]
pub struct StandbyStatus {
    pub mode: String,
    pub port: u16,
    pub pid: Option<i32>,
    pub state: String,
}

impl Status {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        serde_json::from_str(text).with_context(|| format!("no status: {text:?}"))
    }

    pub fn is_ready(&self) -> bool {
        let routers = |router: &RouterStatus| router.state == READY && router.reads == ALL && router.writes == ALL;
        let second_node = |node: &SecondNodeStatus| node.state == READY;
        let shards = |shard: &ShardStatus| {
            shard.state == READY && shard.reads && shard.writes && shard.second_node.as_ref().is_none_or(second_node)
        };
        self.routers.iter().all(routers) && self.shards.iter().all(shards)
    }

    pub fn pid(&self, member: Member) -> Option<i32> {
        match member {
            Member::Router(index) => self.routers.get(index)?.pid,
            Member::Node(index) => self.shards.get(index)?.node_pid,
            Member::Postgres(index) => self.shards.get(index)?.postgres_pid,
        }
    }

    /// The ids of all running processes, the supervisor included.
    pub fn pids(&self) -> Vec<i32> {
        let routers = self.routers.iter().map(|router| router.pid);
        let second_node = |shard: &ShardStatus| shard.second_node.as_ref().and_then(|node| node.pid);
        let standby = |shard: &ShardStatus| shard.standby.as_ref().and_then(|standby| standby.pid);
        let shards = self
            .shards
            .iter()
            .flat_map(|shard| [shard.node_pid, second_node(shard), shard.postgres_pid, standby(shard)]);
        routers.chain(shards).chain([self.supervisor_pid]).flatten().collect()
    }
}

/// A process of a cluster. Routers and shards are named by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    Router(usize),
    Node(usize),
    /// The postmaster of a shard's PostgreSQL.
    Postgres(usize),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router(index) => write!(f, "router {index}"),
            Self::Node(index) => write!(f, "the node of shard {index}"),
            Self::Postgres(index) => write!(f, "the postmaster of shard {index}"),
        }
    }
}

/// The shard map, in which tests find account ids that live on a given shard.
#[derive(Debug, Clone)]
pub struct Placement {
    map: ShardMap,
}

impl Placement {
    pub fn new(map: &str) -> anyhow::Result<Self> {
        Ok(Self { map: ShardMap::parse(map).context("the shard map")? })
    }

    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The id of the shard that owns the account.
    pub fn shard_of(&self, account: &str) -> &str {
        &self.map.shard(self.map.owner(slot_of(account))).id
    }

    /// The n-th account id that ends with `name` and has a hash tag that puts it on this shard.
    pub fn account_on(&self, shard: &str, name: &str, n: usize) -> anyhow::Result<String> {
        (0_u32..)
            .map(|tag| format!("{{{name}{tag}}}:{name}"))
            .filter(|id| self.shard_of(id) == shard)
            .nth(n)
            .with_context(|| format!("no slot leads to {shard}"))
    }
}
