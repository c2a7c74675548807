//! Atomic groups: one operation on one shard, all or nothing.

use std::sync::Arc;

use ledger::{
    operation::Operation,
    outcome::{AtomicOutcome, Outcome},
};

use crate::{
    service::{AtomicReply, CallError, Core, Deadline, Learnt, Load, NewTransfer, Reroutes},
    shard::{Answers, Urgency, View, wire_bytes},
};

/// Runs the group if all its accounts live on one shard.
pub async fn run(core: &Core, transfers: Vec<NewTransfer>, deadline: Deadline) -> Result<AtomicReply, CallError> {
    let operation =
        Operation::AtomicTransfers(transfers.iter().map(|transfer| transfer.as_transfer(false)).collect());
    let load = Load { operations: transfers.len(), bytes: wire_bytes(&operation) };
    let mut reroutes = Reroutes::new(deadline);
    loop {
        let view = core.view();
        // The shard of a transfer whose verdict has to be known first.
        let mut undetermined: Option<Arc<str>> = None;
        let Some(shard) = common_shard(&view, &transfers) else { return Ok(AtomicReply::CrossShard) };
        let operations = vec![operation.clone()];
        let Answers { mut answers, resent } = shard.execute(Urgency::New, operations, false, deadline).await;
        let learnt = match answers.pop() {
            // A failed group stores nothing, so it says nothing of the sending that was lost.
            Some(Ok(
                Outcome::NotOwner(_)
                | Outcome::Deferred
                | Outcome::Undetermined(_)
                | Outcome::Atomic(AtomicOutcome { culprit: Some(_), .. }),
            )) if resent => {
                return Err(CallError::OutcomeUnknown { shard: Arc::clone(shard.id()) });
            }
            Some(Ok(Outcome::Atomic(outcome))) => return Ok(reply(outcome)),
            Some(Ok(Outcome::NotOwner(not_owner))) => core.learn(shard.id(), &[not_owner]),
            Some(Ok(Outcome::Deferred)) => Learnt::Owners,
            Some(Ok(Outcome::Undetermined(credits))) => {
                let shards: Vec<_> = credits.iter().map(|credit| view.shard(view.route(credit))).collect();
                undetermined = shards.first().map(|shard| Arc::clone(shard.id()));
                if shards.iter().all(|shard| shard.is_cut_off()) {
                    return Err(put_off(undetermined, shard.id()));
                }
                Learnt::Owners
            }
            Some(Err(error)) => return Err(error),
            other => return Err(CallError::beside_the_question(shard.id(), &other)),
        };
        let goes_on = match undetermined {
            Some(_) => core.again_after_verdicts(&mut reroutes).await,
            None => core.again(&mut reroutes, &learnt, load).await,
        };
        if !goes_on {
            return Err(put_off(undetermined, shard.id()));
        }
    }
}

/// The error for a group that was put off until the deadline.
fn put_off(undetermined: Option<Arc<str>>, shard: &Arc<str>) -> CallError {
    match undetermined {
        Some(shard) => CallError::Undetermined { shard },
        None => CallError::Unavailable { shard: Arc::clone(shard) },
    }
}

fn common_shard<'a>(view: &'a View, transfers: &[NewTransfer]) -> Option<&'a Arc<crate::shard::Shard>> {
    let mut accounts = transfers.iter().flat_map(|transfer| [&transfer.debit, &transfer.credit]);
    let first = view.route(accounts.next()?);
    accounts.all(|account| view.route(account) == first).then(|| view.shard(first))
}

fn reply(outcome: AtomicOutcome) -> AtomicReply {
    let items = outcome.items.into_iter().map(Into::into).collect();
    match outcome.culprit {
        Some(culprit) => AtomicReply::Failed { culprit, items },
        None => AtomicReply::Stored(items),
    }
}
