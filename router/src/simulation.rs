//! The core of a router without its edge, for simulations of the cluster (`crates/simulation`).
//!
//! The shard map is fixed. Everything between a parsed request and the connections to the nodes is what serves.

use shard_map::ShardMap;
use telemetry::Tasks;

use crate::routing::Routing;
pub use crate::service::{
    AtomicReply, CallError, CoreConfig, HoldReply, NewTransfer, ReleaseReply, Router, TransferReply,
};

/// Starts a router. Its tasks are its process.
pub fn start(config: &CoreConfig, map: ShardMap, tasks: Tasks) -> Router {
    Router::start_without_offers(config, Routing::fixed(map), tasks)
}
