//! Opening and changing accounts.

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::{
    Account,
    operation::{CreateAccount, Operation, UpdateAccount},
    outcome::{AccountOutcome, NotOwner, Outcome},
};

use super::{
    Core,
    call::{CallError, Deadline},
    handover::Load,
    reply::{AccountReply, Located},
    rerouting::{Learnt, OwnerAnswer, Reroutes, execute_at_owner},
    shard::{Answer, Answers, ByShard, Urgency},
};

impl Core {
    /// Opens accounts independently of each other. Returns one reply each, in order.
    pub async fn create_accounts(
        &self,
        accounts: Vec<CreateAccount>,
        deadline: Deadline,
    ) -> Vec<Result<AccountReply, CallError>> {
        let mut replies: Vec<Option<Result<AccountReply, CallError>>> = vec![None; accounts.len()];
        let mut open: Vec<usize> = (0..accounts.len()).collect();
        let mut reroutes = Reroutes::new(deadline);
        while !open.is_empty() {
            let view = self.view();
            let mut groups: ByShard<Vec<usize>> = ByShard::default();
            for index in open.drain(..) {
                groups.entry(view.route(&accounts[index].id)).push(index);
            }
            let calls = groups.into_iter().map(|(shard, indices)| {
                let shard = Arc::clone(view.shard(shard));
                let operation = |index: &usize| Operation::CreateAccount(accounts[*index].clone());
                let operations = indices.iter().map(operation).collect();
                async move {
                    let Answers { answers, resent, .. } =
                        shard.execute(Urgency::New, operations, false, deadline).await;
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
                learnt = learnt.and(self.learn(shard.id(), &refusals));
            }
            let bytes =
                open.iter().map(|&index| size_of::<CreateAccount>() + accounts[index].metadata.as_str().len());
            let load = Load { operations: open.len(), bytes: bytes.sum() };
            if !open.is_empty() && !self.again(&mut reroutes, &learnt, load).await {
                let view = self.view();
                for index in open.drain(..) {
                    let shard = Arc::clone(view.shard(view.route(&accounts[index].id)).id());
                    replies[index] = Some(Err(CallError::Unavailable { shard }));
                }
            }
        }
        // An account that has left `open` has its reply.
        replies.into_iter().map(|reply| reply.unwrap_or(Err(CallError::ShuttingDown))).collect()
    }

    /// Changes an account. The operation is sent once at most, because an account keeps no id that would tell a repetition.
    pub async fn update_account(&self, update: UpdateAccount, deadline: Deadline) -> Result<AccountReply, CallError> {
        let answer =
            execute_at_owner(self, &update.id, deadline, |_| Operation::UpdateAccount(update.clone())).await?;
        match answer.outcome {
            Outcome::Account(outcome) => Ok(match reply(&answer.shard, outcome) {
                // The wire has one outcome for an account that was opened and one that was changed.
                AccountReply::Created(account) => AccountReply::Updated(account),
                reply => reply,
            }),
            _ => answer.nonsense(),
        }
    }
}

/// `Err`: the operation was not executed and has to be sent again, to another shard if this one does not own the slot.
fn read(shard: &Arc<str>, answer: Answer) -> Result<Result<AccountReply, CallError>, Option<NotOwner>> {
    Ok(match answer {
        Ok(Outcome::Account(outcome)) => Ok(reply(shard, outcome)),
        Ok(Outcome::NotOwner(not_owner)) => return Err(Some(not_owner)),
        Ok(Outcome::Deferred) => return Err(None),
        Ok(outcome) => OwnerAnswer { shard: Arc::clone(shard), outcome, resent: false }.nonsense(),
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
