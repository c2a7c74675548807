//! The sagas under way, for operators.

use std::sync::Arc;

use futures_util::future::join_all;
use wire::convert::account_id;

use crate::service::{Core, Deadline, SagaFilter, SagaView};

/// Pending sagas of all shards, oldest first, and the shards that could not be asked.
pub async fn list(core: &Core, filter: SagaFilter, deadline: Deadline) -> (Vec<SagaView>, Vec<Arc<str>>) {
    let view = core.view();
    let older_than_ms = i64::try_from(filter.older_than.as_millis()).unwrap_or(i64::MAX);
    let asked = view.shards().cloned().map(|shard| async move {
        let request = wire::ListSagasRequest { limit: filter.limit, older_than_ms, ..Default::default() };
        let ask = shard.read(deadline, |mut node| {
            let request = request.clone();
            async move { node.list_sagas(request).await }
        });
        let answer = ask.await;
        (Arc::clone(shard.id()), answer)
    });
    let (mut sagas, mut unreachable) = (Vec::new(), Vec::new());
    for (shard, answer) in join_all(asked).await {
        let Ok(response) = answer else {
            unreachable.push(shard);
            continue;
        };
        sagas.extend(response.sagas.into_iter().map(|record| {
            // A record that names no account has no destination; it is shown all the same, somebody must look at it.
            let destination = account_id(&record.credit, "credit")
                .map_or_else(|_| Arc::from(""), |credit| Arc::clone(view.shard(view.route(&credit)).id()));
            SagaView { record, source: Arc::clone(&shard), destination }
        }));
    }
    sagas.sort_by_key(|saga| saga.record.created_at_us);
    sagas.truncate(filter.limit as usize);
    (sagas, unreachable)
}
