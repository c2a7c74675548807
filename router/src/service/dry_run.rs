//! Dry runs: the ledger's verdict on an order as things stand, with nothing stored.
//!
//! A transfer between shards is asked about at its source and then, as its saga would, at its destination. The two are not
//! asked in one moment; nor would the saga's steps be.

use ledger::{
    AccountId,
    operation::{Decide, Operation, PlaceHold, Verdict},
    outcome::{Decided, Outcome, TransferAnswer, TransferOutcome, TransferState},
};

use super::{
    CallError, Core, Deadline, HoldReply, NewTransfer, TransferReply,
    at_owner::{self, Executed},
    holds,
};
use crate::shard::View;

/// What the transfer would be answered. A new one that would be posted is answered `Posted`; a replay as it is stored.
pub async fn transfer(core: &Core, order: &NewTransfer, deadline: Deadline) -> Result<TransferReply, CallError> {
    let asked = execute(core, &order.debit, deadline, |view| first_step(order, view)).await?;
    let answer = match asked.outcome {
        Outcome::Transfer(TransferOutcome::Done(answer)) => answer,
        Outcome::Transfer(outcome) => return Ok(outcome.into()),
        _ => return asked.nonsense(),
    };
    if answer.replayed || answer.state != TransferState::Pending {
        return Ok(TransferOutcome::Done(answer).into());
    }
    let asked = execute(core, &order.credit, deadline, |_| second_step(order, &answer)).await?;
    let Outcome::Decided(Decided { verdict, at_us, .. }) = asked.outcome else { return asked.nonsense() };
    let state = match verdict {
        Verdict::Credited => TransferState::Posted { at_us },
        Verdict::Refused(refused) => TransferState::Rejected { refused, at_us },
    };
    Ok(TransferReply::Done(TransferAnswer { state, ..answer }))
}

/// What placing the hold would be answered.
pub async fn hold(core: &Core, place: &PlaceHold, deadline: Deadline) -> Result<HoldReply, CallError> {
    holds::placed(execute(core, &place.debit, deadline, |_| Operation::PlaceHold(place.clone())).await?)
}

async fn execute(
    core: &Core,
    account: &AccountId,
    deadline: Deadline,
    operation: impl Fn(&View) -> Operation,
) -> Result<Executed, CallError> {
    let asked = at_owner::execute(core, account, deadline, |view| Operation::DryRun(Box::new(operation(view)))).await;
    match asked {
        // There is no effect that could be unknown.
        Ok(executed) => Ok(Executed { resent: false, ..executed }),
        Err(CallError::OutcomeUnknown { shard }) => Err(CallError::Unavailable { shard }),
        Err(error) => Err(error),
    }
}

fn first_step(order: &NewTransfer, view: &View) -> Operation {
    let cross_shard = view.route(&order.debit) != view.route(&order.credit);
    Operation::Transfer(order.as_transfer(cross_shard))
}

fn second_step(order: &NewTransfer, answer: &TransferAnswer) -> Operation {
    Operation::Decide(Decide {
        id: order.id,
        debit: order.debit.clone(),
        credit: order.credit.clone(),
        asset: order.asset,
        amount: answer.amount,
        purpose: order.purpose,
        presumed: answer.presumed,
        defer_limited: false,
        patient: false,
        ordered_by: None,
    })
}
