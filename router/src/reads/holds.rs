//! Finding a stored hold by its id.

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::{AccountId, TransferId};
use tonic::{Response, Status};
use wire::{GetHoldsRequest, GetHoldsResponse, HoldRecord, convert::id_to_wire, convert_hold::hold_from_wire};

use super::{Question, Reading, at_owner};
use crate::{
    service::{CallError, Core, Deadline, FoundHold, FoundHolds},
    shard::NodeClient,
};

/// Every hold under one id. With the debit account, its shard alone is asked; without, all of them are.
pub async fn find(
    core: &Core,
    id: TransferId,
    debit: Option<&AccountId>,
    deadline: Deadline,
) -> Result<FoundHolds, CallError> {
    let Some(debit) = debit else { return find_anywhere(core, id, deadline).await };
    let request = GetHoldsRequest { id: id_to_wire(id), debit: debit.to_string() };
    let mut found = FoundHolds::default();
    if let Some(holds) = at_owner(core, debit, request, deadline).await? {
        take(&mut found, &holds.shard, holds.value)?;
    }
    Ok(found)
}

async fn find_anywhere(core: &Core, id: TransferId, deadline: Deadline) -> Result<FoundHolds, CallError> {
    let view = core.view();
    let asked = view.shards().cloned().map(|shard| async move {
        let request = GetHoldsRequest { id: id_to_wire(id), debit: String::new() };
        let answer = shard.read(deadline, |node| request.clone().ask(node)).await;
        (Arc::clone(shard.id()), answer)
    });
    let mut found = FoundHolds::default();
    for (shard, answer) in join_all(asked).await {
        match answer {
            Ok(answer) => take(&mut found, &shard, answer.holds)?,
            Err(_) => found.unreachable.push(shard),
        }
    }
    Ok(found)
}

fn take(found: &mut FoundHolds, shard: &Arc<str>, records: Vec<HoldRecord>) -> Result<(), CallError> {
    for record in records {
        let (key, hold) = hold_from_wire(record)
            .map_err(|error| CallError::Internal { shard: Arc::clone(shard), detail: error.to_string() })?;
        found.found.push(FoundHold { key, hold });
    }
    Ok(())
}

impl Question for GetHoldsRequest {
    type Answer = GetHoldsResponse;
    type Value = Vec<HoldRecord>;

    async fn ask(self, mut node: NodeClient) -> Result<Response<GetHoldsResponse>, Status> {
        node.get_holds(self).await
    }

    fn read(answer: GetHoldsResponse) -> Reading<Vec<HoldRecord>> {
        match answer.not_owner {
            Some(not_owner) => Reading::NotOwner(not_owner),
            None => Reading::Found(answer.holds),
        }
    }
}
