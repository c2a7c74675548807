//! The processes of a cluster, as targets of faults.

use std::fmt;

/// One process; routers and shards by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    Router(usize),
    Node(usize),
    /// The postmaster.
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
