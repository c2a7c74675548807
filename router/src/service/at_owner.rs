//! One operation at the shard that owns its account: sent elsewhere when the account turns out to live there, and again
//! when something else has to finish first.

use std::sync::Arc;

use ledger::{
    AccountId,
    operation::Operation,
    outcome::{NotOwner, Outcome},
};

use super::{CallError, Core, Deadline, Load, Reroutes};
use crate::shard::{Answers, Urgency, View, wire_bytes};

/// What the owner answered.
#[derive(Debug)]
pub struct Executed {
    pub shard: Arc<str>,
    /// Neither `NotOwner` nor `Deferred` nor `Undetermined`.
    pub outcome: Outcome,
    /// A sending whose answer was lost may take effect, or have taken effect, all the same: an outcome that stores nothing
    /// says nothing about it.
    pub resent: bool,
}

impl Executed {
    /// An outcome that stores nothing: the answer, unless a lost sending may yet make it wrong.
    pub fn nothing_stored<T>(self, reply: T) -> Result<T, CallError> {
        if self.resent { Err(CallError::OutcomeUnknown { shard: self.shard }) } else { Ok(reply) }
    }

    /// The shard answered what it was not asked.
    pub fn nonsense<T>(self) -> Result<T, CallError> {
        Err(CallError::beside_the_question(&self.shard, &self.outcome))
    }
}

/// Executes the operation that `operation` makes of the routes as they are now.
pub async fn execute(
    core: &Core,
    account: &AccountId,
    deadline: Deadline,
    operation: impl Fn(&View) -> Operation,
) -> Result<Executed, CallError> {
    let mut reroutes = Reroutes::new(deadline);
    let mut resent_to: Option<Arc<str>> = None;
    loop {
        // The shard of a transfer whose verdict has to be known first.
        let mut undetermined: Option<Arc<str>> = None;
        let view = core.view();
        let shard = view.shard(view.route(account));
        let operation = operation(&view);
        let load = Load { operations: 1, bytes: wire_bytes(&operation) };
        let operations = vec![operation];
        let Answers { mut answers, resent } = shard.execute(Urgency::New, operations, false, deadline).await;
        if resent {
            resent_to = Some(Arc::clone(shard.id()));
        }
        let put_off: Option<NotOwner> = match answers.pop() {
            Some(Ok(Outcome::NotOwner(not_owner))) => Some(not_owner),
            Some(Ok(Outcome::Deferred)) => None,
            Some(Ok(Outcome::Undetermined(credits))) => {
                let shards: Vec<_> = credits.iter().map(|credit| view.shard(view.route(credit))).collect();
                undetermined = shards.first().map(|shard| Arc::clone(shard.id()));
                if let Some(shard) = undetermined.clone()
                    && shards.iter().all(|shard| shard.is_cut_off())
                {
                    return Err(unless_resent(CallError::Undetermined { shard }, resent_to));
                }
                None
            }
            Some(Ok(outcome)) => {
                let shard = Arc::clone(shard.id());
                return Ok(Executed { shard, outcome, resent: resent_to.is_some() });
            }
            Some(Err(error)) => return Err(unless_resent(error, resent_to)),
            None => return Err(CallError::OutcomeUnknown { shard: Arc::clone(shard.id()) }),
        };
        let learnt = core.learn(shard.id(), put_off.as_slice());
        let goes_on = match undetermined {
            Some(_) => core.again_after_verdicts(&mut reroutes).await,
            None => core.again(&mut reroutes, &learnt, load).await,
        };
        if !goes_on {
            let shard = Arc::clone(shard.id());
            let error = match put_off {
                Some(_) => CallError::Unavailable { shard },
                None => match undetermined {
                    Some(shard) => CallError::Undetermined { shard },
                    None => CallError::Deferred { shard },
                },
            };
            return Err(unless_resent(error, resent_to));
        }
    }
}

/// `Not executed` is said of the last sending; of an earlier one it proves nothing.
fn unless_resent(error: CallError, resent_to: Option<Arc<str>>) -> CallError {
    match resent_to {
        Some(shard) if error.is_not_executed() => CallError::OutcomeUnknown { shard },
        _ => error,
    }
}
