//! What the nodes and routers of a cluster said.

use std::fmt;

use identity::{Disagreement, Mark, Marks, ShardIdentity, time::OtherClock};
use shard_map::{ShardMap, SlotRange};

use super::finding::Verdict;

/// Where the map that everything is held against came from.
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

/// One look at a whole cluster.
#[derive(Debug, Clone)]
pub struct Seen {
    pub map: ShardMap,
    pub source: MapSource,
    /// Every node of every shard of the map, in its order.
    pub nodes: Vec<NodeSeen>,
    pub routers: Vec<RouterSeen>,
}

#[derive(Debug, Clone)]
pub struct NodeSeen {
    /// The shard that the map takes the node for.
    pub shard: String,
    pub url: String,
    /// Or why there is no answer.
    pub answer: Result<NodeAnswer, String>,
}

#[derive(Debug, Clone)]
pub struct NodeAnswer {
    /// Absent: the database is not initialised, or the node has not reached it yet.
    pub identity: Option<ShardIdentity>,
    pub uninitialised: bool,
    /// What the node holds against its caller, which came with the map's cluster, shard and number.
    pub refused: Vec<Disagreement>,
    /// What the node compares by itself.
    pub facts: Vec<(Verdict, Disagreement)>,
    /// What was known of each shard before any `mark` was asked for: a shard must have come at least as far.
    pub marks: Marks,
    /// How far the shard has come, asked for after `marks` of every node.
    pub mark: Mark,
    pub clock: OtherClock,
    /// 0: not known.
    pub server_started_at_us: i64,
    /// The database's number in the server.
    pub database_oid: i64,
    pub ownership: Result<Ownership, String>,
}

impl NodeAnswer {
    /// What the node found under this name.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().map(|(_, fact)| fact).find(|fact| fact.fact == name).map(|fact| fact.found.as_str())
    }
}

/// The slots that a shard lists, and the map that it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    pub ranges: Vec<Listed>,
    /// 0: no map.
    pub map_version: i64,
}

/// Slots of one state, as a shard lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub slots: SlotRange,
    pub state: SlotState,
    pub epoch: i64,
    /// The shard at the other end of a hand-over; empty: none.
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
    /// Or why there is no answer.
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
    /// Why the newest map offered was refused.
    pub refused: Option<String>,
    pub overrides: Vec<Override>,
    /// Shards that the router cannot use, with the reason.
    pub degraded: Vec<(String, String)>,
}

/// Slots that a router sends elsewhere than its map says, by the shards' own word.
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
