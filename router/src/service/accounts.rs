//! Opening and changing accounts.

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::{
    Account,
    operation::{CreateAccount, Operation, UpdateAccount},
    outcome::{AccountOutcome, NotOwner, Outcome},
};

use super::{
    AccountReply, CallError, Core, Deadline, Learnt, Load, Located, Reroutes,
    at_owner::{self, Executed},
};
use crate::shard::{Answer, Answers, ByShard, Urgency};

type Reply = Result<AccountReply, CallError>;

/// Opens accounts, each on its own, and answers in order.
pub async fn create(core: &Core, accounts: Vec<CreateAccount>, deadline: Deadline) -> Vec<Reply> {
    let mut replies: Vec<Option<Reply>> = vec![None; accounts.len()];
    let mut open: Vec<usize> = (0..accounts.len()).collect();
    let mut reroutes = Reroutes::new(deadline);
    while !open.is_empty() {
        let view = core.view();
        let mut groups: ByShard<Vec<usize>> = ByShard::default();
        for index in open.drain(..) {
            groups.entry(view.route(&accounts[index].id)).push(index);
        }
        let calls = groups.into_iter().map(|(shard, indices)| {
            let shard = Arc::clone(view.shard(shard));
            let operation = |index: &usize| Operation::CreateAccount(accounts[*index].clone());
            let operations = indices.iter().map(operation).collect();
            async move {
                let Answers { answers, resent } = shard.execute(Urgency::New, operations, false, deadline).await;
                (shard, indices, answers, resent)
            }
        });
        let mut learnt = Learnt::Owners;
        for (shard, indices, answers, resent) in join_all(calls).await {
            let mut refusals = Vec::new();
            for (index, answer) in indices.into_iter().zip(answers) {
                match read(shard.id(), answer) {
                    Ok(reply) => replies[index] = Some(reply),
                    Err(_) if resent => {
                        replies[index] = Some(Err(CallError::OutcomeUnknown { shard: Arc::clone(shard.id()) }));
                    }
                    Err(put_off) => {
                        refusals.extend(put_off);
                        open.push(index);
                    }
                }
            }
            learnt = learnt.and(core.learn(shard.id(), &refusals));
        }
        let bytes = open.iter().map(|&index| size_of::<CreateAccount>() + accounts[index].metadata.as_str().len());
        let load = Load { operations: open.len(), bytes: bytes.sum() };
        if !open.is_empty() && !core.again(&mut reroutes, &learnt, load).await {
            let view = core.view();
            for index in open.drain(..) {
                let shard = Arc::clone(view.shard(view.route(&accounts[index].id)).id());
                replies[index] = Some(Err(CallError::Unavailable { shard }));
            }
        }
    }
    // Whatever left `open` has its reply.
    replies.into_iter().map(|reply| reply.unwrap_or(Err(CallError::ShuttingDown))).collect()
}

/// Updates are sent once at most: an account keeps no id that would tell a repetition.
pub async fn update(core: &Core, update: UpdateAccount, deadline: Deadline) -> Reply {
    let executed =
        at_owner::execute(core, &update.id, deadline, |_| Operation::UpdateAccount(update.clone())).await?;
    match executed.outcome {
        Outcome::Account(outcome) => Ok(match reply(&executed.shard, outcome) {
            // Made and changed look alike on the wire.
            AccountReply::Created(account) => AccountReply::Updated(account),
            reply => reply,
        }),
        _ => executed.nonsense(),
    }
}

/// `Err`: not executed and to be tried again, elsewhere where the shard does not own the slot.
fn read(shard: &Arc<str>, answer: Answer) -> Result<Reply, Option<NotOwner>> {
    Ok(match answer {
        Ok(Outcome::Account(outcome)) => Ok(reply(shard, outcome)),
        Ok(Outcome::NotOwner(not_owner)) => return Err(Some(not_owner)),
        Ok(Outcome::Deferred) => return Err(None),
        Ok(outcome) => Executed { shard: Arc::clone(shard), outcome, resent: false }.nonsense(),
        Err(error) => Err(error),
    })
}

fn reply(shard: &Arc<str>, outcome: AccountOutcome) -> AccountReply {
    let located = |account: Account| Located { shard: Arc::clone(shard), value: wire::Account::from(&account) };
    match outcome {
        AccountOutcome::Created(account) => AccountReply::Created(located(account)),
        AccountOutcome::Replayed(account) => AccountReply::Replayed(located(account)),
        AccountOutcome::Updated(account) => AccountReply::Updated(located(account)),
        AccountOutcome::Conflict { field } => AccountReply::Conflict { field },
        AccountOutcome::NotFound => AccountReply::NotFound,
        AccountOutcome::Refused { refused, .. } => AccountReply::Refused { refused },
    }
}
