//! How each shard is, as far as this router can tell.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Core, ShardStatus};

/// A shard that does not say how it is within this time is not well.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

pub async fn of_all(core: &Core) -> Vec<ShardStatus> {
    let view = core.view();
    let until = Instant::now() + STATUS_TIMEOUT;
    let asked = view.shards().cloned().map(|shard| async move {
        let status = shard.probe(until, |mut node| async move { node.status(wire::StatusRequest {}).await }).await;
        ShardStatus {
            shard: Arc::clone(shard.id()),
            nodes: shard.nodes().to_vec(),
            node_in_use: shard.node_in_use(),
            status: status.map_err(|failure| failure.to_string()),
            breaker: shard.breaker_state(),
            queued_operations: shard.queued_operations(),
        }
    });
    join_all(asked).await
}
