//! `GET /admin/shards`: each shard's state.

use axum::{extract::State, response::Response};
use http::StatusCode;
use serde::Serialize;

use super::Admin;
use crate::{
    core::reply::ShardStatus,
    http::{
        answer::{json, position},
        parameters::NoParameters,
    },
};

/// One shard, as this router sees it and as its node describes itself.
#[derive(Serialize)]
pub struct ShardView {
    id: String,
    nodes: Vec<String>,
    /// The one that this router uses.
    node_in_use: Option<String>,
    reachable: bool,
    /// This router's breaker: `closed`, `open` or `probing`.
    breaker: &'static str,
    /// Operations waiting in this router.
    queued_operations: usize,
    /// Why the node could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    node: Option<NodeView>,
}

/// What the node reports.
#[derive(Serialize)]
struct NodeView {
    state: String,
    /// Operations waiting in the node's lane.
    lane_queue: u64,
    last_batch_operations: u64,
    last_commit_us: u64,
    batches: u64,
    operations: u64,
    ownership_version: i64,
    /// The highest epoch of the slots that the shard owns.
    epoch: i64,
    slots: u32,
    #[serde(serialize_with = "position")]
    next_position: i64,
    cached_accounts: u64,
    pending_sagas: u64,
    last_error: Option<String>,
    reads: bool,
    writes: bool,
    /// Why reads or writes do not work.
    #[serde(skip_serializing_if = "Option::is_none")]
    reads_cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    writes_cause: Option<String>,
}

#[derive(Serialize)]
struct ShardsView {
    data: Vec<ShardView>,
}

pub async fn list(State(admin): State<Admin>, _: NoParameters) -> Response {
    let data = admin.core.shard_status().await.into_iter().map(ShardView::new).collect();
    json(StatusCode::OK, &ShardsView { data })
}

impl ShardView {
    pub fn new(status: ShardStatus) -> Self {
        let (node, error) = match status.status {
            Ok(node) => (Some(NodeView::new(node)), None),
            Err(reason) => (None, Some(reason)),
        };
        Self {
            id: status.shard.to_string(),
            nodes: status.nodes,
            node_in_use: status.node_in_use,
            reachable: node.is_some(),
            breaker: status.breaker,
            queued_operations: status.queued_operations,
            error,
            node,
        }
    }

    pub fn is_degraded(&self) -> bool {
        self.breaker != "closed"
            || self.node.as_ref().is_none_or(|node| node.state != "serving" || !node.reads || !node.writes)
    }
}

impl NodeView {
    fn new(status: wire::StatusResponse) -> Self {
        let wire::Readiness { works: reads, cause: reads_cause } = status.reads.unwrap_or_default();
        let wire::Readiness { works: writes, cause: writes_cause } = status.writes.unwrap_or_default();
        let cause = |works: bool, cause: String| (!works).then_some(cause);
        Self {
            reads,
            writes,
            reads_cause: cause(reads, reads_cause),
            writes_cause: cause(writes, writes_cause),
            state: status.state,
            lane_queue: status.lane_queue,
            last_batch_operations: status.last_batch,
            last_commit_us: status.last_commit_us,
            batches: status.batches,
            operations: status.operations,
            ownership_version: status.ownership_version,
            epoch: status.highest_epoch,
            slots: status.slots_owned,
            next_position: status.next_position,
            cached_accounts: status.cached_accounts,
            pending_sagas: status.pending_sagas,
            last_error: Some(status.last_error).filter(|error| !error.is_empty()),
        }
    }
}
