//! Finding a stored transfer by its id, and the verdict of a saga beside it.

use std::sync::Arc;

use ledger::{AccountId, TransferId};
use tonic::{Response, Status};
use wire::{
    GetTransfersRequest, GetTransfersResponse, RegisterRecord, TransferRecord,
    convert::{account_id, id_to_wire},
};

use super::{Question, Reading, ask, at_owner};
use crate::{
    service::{CallError, Core, Deadline, Found, FoundTransfer, Located},
    shard::NodeClient,
};

/// Every transfer under one id that `sees` accepts. With the debit account, its shard alone is asked; without, all of them are. For a
/// transfer that `sees` rejects, no verdict is read: neither the time nor the errors of the answer say that it exists.
pub async fn find(
    core: &Core,
    id: TransferId,
    debit: Option<&AccountId>,
    sees: &(impl Fn(&TransferRecord) -> bool + Sync),
    deadline: Deadline,
) -> Result<Found<FoundTransfer>, CallError> {
    match debit {
        Some(debit) => find_at_owner(core, id, debit, sees, deadline).await,
        None => Ok(find_anywhere(core, id, sees, deadline).await),
    }
}

async fn find_at_owner(
    core: &Core,
    id: TransferId,
    debit: &AccountId,
    sees: &(impl Fn(&TransferRecord) -> bool + Sync),
    deadline: Deadline,
) -> Result<Found<FoundTransfer>, CallError> {
    let request = GetTransfersRequest { id: id_to_wire(id), debit: debit.to_string() };
    let mut found = Found::default();
    let Some(Located { shard, value }) = at_owner(core, debit, request, deadline).await? else { return Ok(found) };
    let (transfers, registers) = (value.transfers, value.registers);
    for record in transfers.into_iter().filter(sees) {
        let own = verdict_of(&record, &registers).map(|register| (register, Arc::clone(&shard)));
        let before = found.unreachable.len();
        let register = match own {
            None if record.cross_shard => verdict_elsewhere(core, id, &record, deadline, &mut found).await,
            own => own,
        };
        let verdict_unread = found.unreachable.len() > before;
        found.found.push(FoundTransfer { record, shard: Arc::clone(&shard), register, verdict_unread });
    }
    Ok(found)
}

/// The verdict from the credit account's shard.
async fn verdict_elsewhere(
    core: &Core,
    id: TransferId,
    record: &TransferRecord,
    deadline: Deadline,
    found: &mut Found<FoundTransfer>,
) -> Option<(RegisterRecord, Arc<str>)> {
    let credit = account_id(&record.credit, "credit").ok()?;
    let view = core.view();
    let shard = view.shard(view.route(&credit));
    match ask(shard, &under(id), deadline).await {
        Ok(answer) => verdict_of(record, &answer.registers).map(|register| (register, Arc::clone(shard.id()))),
        Err(_) => {
            found.unreachable.push(Arc::clone(shard.id()));
            None
        }
    }
}

async fn find_anywhere(
    core: &Core,
    id: TransferId,
    sees: &(impl Fn(&TransferRecord) -> bool + Sync),
    deadline: Deadline,
) -> Found<FoundTransfer> {
    let request = &under(id);
    let asked = core.view().ask_all(|shard| async move { ask(&shard, request, deadline).await }).await;
    let mut found = Found::default();
    let (mut records, mut registers) = (Vec::new(), Vec::new());
    for (shard, answer) in asked {
        match answer {
            Ok(answer) => {
                records.extend(answer.transfers.into_iter().filter(sees).map(|record| (record, Arc::clone(&shard))));
                registers.extend(answer.registers.into_iter().map(|register| (register, Arc::clone(&shard))));
            }
            Err(_) => found.unreachable.push(shard),
        }
    }
    found.found = records
        .into_iter()
        .map(|(record, shard)| {
            let register = registers
                .iter()
                .find(|(register, _)| register.debit == record.debit)
                .map(|(register, shard)| (register.clone(), Arc::clone(shard)));
            let verdict_unread = register.is_none() && !found.unreachable.is_empty();
            FoundTransfer { record, shard, register, verdict_unread }
        })
        .collect();
    found
}

fn verdict_of(record: &TransferRecord, registers: &[RegisterRecord]) -> Option<RegisterRecord> {
    registers.iter().find(|register| register.debit == record.debit).cloned()
}

/// All that a shard has under the id, whatever the debit account.
fn under(id: TransferId) -> GetTransfersRequest {
    GetTransfersRequest { id: id_to_wire(id), debit: String::new() }
}

impl Question for GetTransfersRequest {
    type Answer = GetTransfersResponse;
    type Value = GetTransfersResponse;

    async fn ask(self, mut node: NodeClient) -> Result<Response<GetTransfersResponse>, Status> {
        node.get_transfers(self).await
    }

    fn read(mut answer: GetTransfersResponse) -> Reading<GetTransfersResponse> {
        match answer.not_owner.take() {
            Some(not_owner) => Reading::NotOwner(not_owner),
            None => Reading::Found(answer),
        }
    }
}
