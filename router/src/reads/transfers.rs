//! Finding a stored transfer by its id, and the verdict of a saga beside it.

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::{AccountId, TransferId};
use tonic::{Response, Status};
use wire::{
    GetTransfersResponse, RegisterRecord, TransferRecord,
    convert::{account_id, id_to_wire},
};

use crate::{
    service::{CallError, Core, Deadline, FoundTransfer, FoundTransfers, Reroutes},
    shard::{NodeClient, Shard},
};

/// Every transfer under one id. With the debit account, its shard alone is asked; without, all of them are.
pub async fn find(
    core: &Core,
    id: TransferId,
    debit: Option<&AccountId>,
    deadline: Deadline,
) -> Result<FoundTransfers, CallError> {
    match debit {
        Some(debit) => find_at_owner(core, id, debit, deadline).await,
        None => Ok(find_anywhere(core, id, deadline).await),
    }
}

async fn find_at_owner(
    core: &Core,
    id: TransferId,
    debit: &AccountId,
    deadline: Deadline,
) -> Result<FoundTransfers, CallError> {
    let mut reroutes = Reroutes::new(deadline);
    loop {
        let view = core.view();
        let shard = view.shard(view.route(debit));
        let answer = ask(shard, id, debit.as_str(), deadline).await?;
        let Some(not_owner) = answer.not_owner else {
            let mut found = FoundTransfers::default();
            for record in answer.transfers {
                let own = verdict_of(&record, &answer.registers).map(|register| (register, Arc::clone(shard.id())));
                let before = found.unreachable.len();
                let register = match own {
                    None if record.cross_shard => verdict_elsewhere(core, id, &record, deadline, &mut found).await,
                    own => own,
                };
                let verdict_unread = found.unreachable.len() > before;
                found.found.push(FoundTransfer { record, shard: Arc::clone(shard.id()), register, verdict_unread });
            }
            return Ok(found);
        };
        let resolved = super::learn(core, shard, not_owner)?;
        if !core.again(&mut reroutes, resolved).await {
            return Err(CallError::Unavailable { shard: Arc::clone(shard.id()) });
        }
    }
}

/// The verdict from the credit account's shard.
async fn verdict_elsewhere(
    core: &Core,
    id: TransferId,
    record: &TransferRecord,
    deadline: Deadline,
    found: &mut FoundTransfers,
) -> Option<(RegisterRecord, Arc<str>)> {
    let credit = account_id(&record.credit, "credit").ok()?;
    let view = core.view();
    let shard = view.shard(view.route(&credit));
    match ask(shard, id, "", deadline).await {
        Ok(answer) => verdict_of(record, &answer.registers).map(|register| (register, Arc::clone(shard.id()))),
        Err(_) => {
            found.unreachable.push(Arc::clone(shard.id()));
            None
        }
    }
}

async fn find_anywhere(core: &Core, id: TransferId, deadline: Deadline) -> FoundTransfers {
    let view = core.view();
    let asked = view.shards().cloned().map(|shard| async move {
        let answer = ask(&shard, id, "", deadline).await;
        (Arc::clone(shard.id()), answer)
    });
    let mut found = FoundTransfers::default();
    let (mut records, mut registers) = (Vec::new(), Vec::new());
    for (shard, answer) in join_all(asked).await {
        match answer {
            Ok(answer) => {
                records.extend(answer.transfers.into_iter().map(|record| (record, Arc::clone(&shard))));
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

async fn ask(
    shard: &Shard,
    id: TransferId,
    debit: &str,
    deadline: Deadline,
) -> Result<GetTransfersResponse, CallError> {
    let request = wire::GetTransfersRequest { id: id_to_wire(id), debit: debit.to_owned() };
    shard.read(deadline, |node| get_transfers(node, request.clone())).await
}

async fn get_transfers(
    mut node: NodeClient,
    request: wire::GetTransfersRequest,
) -> Result<Response<GetTransfersResponse>, Status> {
    node.get_transfers(request).await
}
