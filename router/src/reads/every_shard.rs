//! Questions to every shard, each about the slots that this router takes it for the owner of.
//!
//! A shard answers for all of its slots or names those it does not own; then all shards are asked again under the routes
//! learnt. So the answers together have each slot exactly once, also while slots move.

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::outcome::NotOwner;

use crate::{
    service::{CallError, Core, Deadline, Learnt, Load, Reroutes},
    shard::Shard,
};

/// A question about the accounts of some slots.
pub trait Question: Sync {
    type Answer: Send;

    fn ask(
        &self,
        shard: &Shard,
        slots: Vec<wire::SlotRange>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Self::Answer, CallError>> + Send;

    /// The slots the shard does not own.
    fn not_owner(answer: &Self::Answer) -> &[wire::NotOwner];
}

/// What one shard said.
pub struct Said<A> {
    pub shard: Arc<str>,
    pub answer: Result<A, CallError>,
}

/// Asks every shard that has slots.
pub async fn ask<Q: Question>(core: &Core, question: &Q, deadline: Deadline) -> Vec<Said<Q::Answer>> {
    let mut reroutes = Reroutes::new(deadline);
    loop {
        let asked = core.view().shards_with_slots().into_iter().map(|(shard, slots)| async move {
            let answer = question.ask(&shard, slots.into_iter().map(wire::SlotRange::from).collect(), deadline).await;
            Said { shard: Arc::clone(shard.id()), answer }
        });
        let mut said = join_all(asked).await;
        let (mut rerouted, mut learnt) = (false, Learnt::Owners);
        for Said { shard, answer } in &mut said {
            let refusals = answer.as_ref().map_or(&[][..], Q::not_owner);
            if refusals.is_empty() {
                continue;
            }
            match refusals.iter().cloned().map(NotOwner::try_from).collect::<Result<Vec<_>, _>>() {
                Ok(refusals) => {
                    rerouted = true;
                    learnt = learnt.and(core.learn(shard, &refusals));
                    // Stands if the routes cannot be put right in time.
                    *answer = Err(CallError::Unavailable { shard: Arc::clone(shard) });
                }
                Err(reason) => *answer = Err(CallError::nonsense(shard, reason)),
            }
        }
        if !rerouted || !core.again(&mut reroutes, &learnt, Load::READ).await {
            return said;
        }
    }
}
