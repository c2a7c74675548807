//! The answers of a cluster's nodes and routers.

use std::fmt;

use identity::{Disagreement, Mark, Marks, ShardIdentity, time::OtherClock};
use shard_map::{ShardMap, SlotRange};

use super::finding::Verdict;

/// The source of the map that the answers are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapSource {
    File(String),
    Router(String),
}

impl fmt::Display for MapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.write_str(path),
            Self::Router(url) => write!(f, "router {url}"),
        }
    }
}

/// One examination of a whole cluster.
#[derive(Debug, Clone)]
pub struct Seen {
    pub map: ShardMap,
    pub source: MapSource,
    /// Every node of every shard, in the order of the map.
    pub nodes: Vec<NodeSeen>,
    pub routers: Vec<RouterSeen>,
}

#[derive(Debug, Clone)]
pub struct NodeSeen {
    /// The shard that the map assigns to the node.
    pub shard: String,
    pub url: String,
    /// The answer, or why there is none.
    pub answer: Result<NodeAnswer, String>,
}

#[derive(Debug, Clone)]
pub struct NodeAnswer {
    /// `None` if the database is not initialised or the node has not reached it yet.
    pub identity: Option<ShardIdentity>,
    pub uninitialised: bool,
    /// The node's refusals of a caller that expects the map's cluster, shard and number.
    pub refused: Vec<Disagreement>,
    /// The facts that the node itself compares.
    pub facts: Vec<(Verdict, Disagreement)>,
    /// The marks that the node knew before any `mark` was read. Each shard must have come at least as far.
    pub marks: Marks,
    /// The shard's mark, read after the `marks` of every node.
    pub mark: Mark,
    pub clock: OtherClock,
    /// 0 if unknown.
    pub server_started_at_us: i64,
    /// The OID of the database.
    pub database_oid: i64,
    pub ownership: Result<Ownership, String>,
}

impl NodeAnswer {
    /// The value that the node found for the fact of this name.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().map(|(_, fact)| fact).find(|fact| fact.fact == name).map(|fact| fact.found.as_str())
    }
}

/// The slots that a shard lists, and the version of its map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    pub ranges: Vec<Listed>,
    /// 0 if the shard has no map.
    pub map_version: i64,
}

/// A range of slots with the same state, as a shard lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub slots: SlotRange,
    pub state: SlotState,
    pub epoch: i64,
    /// The shard at the other end of a move; empty without a move.
    pub peer: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    Owned,
    Released,
    Incoming,
}

#[derive(Debug, Clone)]
pub struct RouterSeen {
    pub url: String,
    /// The answer, or why there is none.
    pub answer: Result<RouterAnswer, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterAnswer {
    pub status: String,
    /// At how many shards reads and writes work: `all`, `some` or `none`.
    pub reads: String,
    pub writes: String,
    pub cluster: String,
    pub map_version: u64,
    /// Why the newest offered map was refused.
    pub refused: Option<String>,
    pub overrides: Vec<Override>,
    /// Shards that the router cannot use, with the reasons.
    pub degraded: Vec<(String, String)>,
}

/// Slots whose requests a router sends to another shard than its map says, because the shards say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub slots: String,
    pub in_map: String,
    pub owner: String,
}

impl Seen {
    pub fn reached_anything(&self) -> bool {
        self.nodes.iter().any(|node| node.answer.is_ok()) || self.routers.iter().any(|router| router.answer.is_ok())
    }

    /// The nodes of a shard that answered.
    pub fn answers<'a>(&'a self, shard: &'a str) -> impl Iterator<Item = (&'a NodeSeen, &'a NodeAnswer)> {
        let of_shard = self.nodes.iter().filter(move |node| node.shard == shard);
        of_shard.filter_map(|node| Some((node, node.answer.as_ref().ok()?)))
    }
}

impl NodeSeen {
    pub fn place(&self) -> String {
        format!("shard {} at {}", self.shard, self.url)
    }
}
