//! Finding a stored hold by its id.

use std::sync::Arc;

use ledger::{AccountId, TransferId};
use tonic::{Response, Status};
use wire::{
    GetHoldsRequest, GetHoldsResponse, HoldRecord,
    convert::{hold_from_wire, id_to_wire},
};

use super::{Question, Reading, ask, at_owner};
use crate::{
    service::{CallError, Core, Deadline, Found, FoundHold},
    shard::NodeClient,
};

/// Every hold under one id. With the debit account, its shard alone is asked; without, all of them are.
pub async fn find(
    core: &Core,
    id: TransferId,
    debit: Option<&AccountId>,
    deadline: Deadline,
) -> Result<Found<FoundHold>, CallError> {
    let Some(debit) = debit else { return find_anywhere(core, id, deadline).await };
    let request = GetHoldsRequest { id: id_to_wire(id), debit: debit.to_string() };
    let mut found = Found::default();
    if let Some(holds) = at_owner(core, debit, request, deadline).await? {
        take(&mut found, &holds.shard, holds.value)?;
    }
    Ok(found)
}

async fn find_anywhere(core: &Core, id: TransferId, deadline: Deadline) -> Result<Found<FoundHold>, CallError> {
    let request = &GetHoldsRequest { id: id_to_wire(id), debit: String::new() };
    let asked = core.view().ask_all(|shard| async move { ask(&shard, request, deadline).await }).await;
    let mut found = Found::default();
    for (shard, answer) in asked {
        match answer {
            Ok(answer) => take(&mut found, &shard, answer.holds)?,
            Err(_) => found.unreachable.push(shard),
        }
    }
    Ok(found)
}

fn take(found: &mut Found<FoundHold>, shard: &Arc<str>, records: Vec<HoldRecord>) -> Result<(), CallError> {
    for record in records {
        let (key, hold) = hold_from_wire(record).map_err(|error| CallError::nonsense(shard, error))?;
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
