//! The sagas under way.

use std::sync::Arc;

use wire::{ListSagasRequest, ListSagasResponse, convert::account_id};

use crate::{
    service::{CallError, Core, Deadline, SagaFilter, SagaView},
    shard::{NodeClient, Shard},
};

/// For operators: pending sagas of all shards, oldest first, and the shards that could not be asked.
pub async fn list(core: &Core, filter: SagaFilter, deadline: Deadline) -> (Vec<SagaView>, Vec<Arc<str>>) {
    let view = core.view();
    let older_than_ms = i64::try_from(filter.older_than.as_millis()).unwrap_or(i64::MAX);
    let request = &ListSagasRequest { limit: filter.limit, older_than_ms, ..Default::default() };
    let asked = view.ask_all(|shard| async move { ask(&shard, request, deadline).await }).await;
    let asked = asked.into_iter().map(|(shard, answer)| (shard, answer.map(|listed| listed.sagas)));
    let (mut sagas, mut unreachable) = (Vec::new(), Vec::new());
    for (shard, answer) in asked {
        let Ok(records) = answer else {
            unreachable.push(shard);
            continue;
        };
        sagas.extend(records.into_iter().map(|record| {
            // A record that names no account has no destination; it is shown all the same, because an operator must look at it.
            let destination = account_id(&record.credit, "credit")
                .map_or_else(|_| Arc::from(""), |credit| Arc::clone(view.shard(view.route(&credit)).id()));
            SagaView { record, source: Arc::clone(&shard), destination }
        }));
    }
    sagas.sort_by_key(|saga| saga.record.created_at_us);
    sagas.truncate(filter.limit as usize);
    (sagas, unreachable)
}

/// The sagas that one shard lists.
pub async fn ask(
    shard: &Shard,
    request: &ListSagasRequest,
    deadline: Deadline,
) -> Result<ListSagasResponse, CallError> {
    let ask = |mut node: NodeClient| {
        let request = request.clone();
        async move { node.list_sagas(request).await }
    };
    shard.read(deadline, ask).await
}
