//! Transfers: one, a batch, or an atomic group. A single one is a batch of one.
//!
//! [`plan`] says what may go together; this file runs the waves and keeps what each transfer's client will be told;
//! [`recall`] spares a batch that is sent again the waves that it has behind it. The
//! rule that nothing may soften: `not executed` is said only of a transfer none of whose steps can have taken effect.

mod atomic;
mod item;
mod plan;
mod recall;

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::{Account, operation::Operation, outcome::Outcome};
use tokio::time::Instant;

pub use self::atomic::run as run_atomic;
use self::{
    item::Item,
    plan::{Fate, Line, Placement, Standing, hold_back, plan_wave},
};
use crate::{
    saga::{self, Patience},
    service::{CallError, Core, Deadline, Learnt, Load, NewTransfer, Reroutes, TransferReply, count_wave},
    shard::{Answers, ByShard, Urgency, View},
};

type Reply = Result<TransferReply, CallError>;

/// Runs transfers as if one after another, and answers each, in order.
pub async fn run(core: &Core, transfers: Vec<NewTransfer>, deadline: Deadline) -> Vec<Reply> {
    let mut batch = Batch::new(core, transfers, deadline);
    let mut reroutes = Reroutes::new(deadline);
    while !batch.open.is_empty() {
        if let Some(error) = core.closing() {
            batch.give_up(|_| error.clone());
            break;
        }
        if Instant::now() >= deadline {
            batch.give_up(|shard| CallError::Deadline { shard });
            break;
        }
        let view = core.view();
        let before = batch.open.len();
        let learnt = batch.wave(&view).await;
        count_wave();
        if batch.is_sent_again() {
            batch.recall(core).await;
        }
        if batch.open.len() < before {
            continue;
        }
        let goes_on = if batch.waits_for_verdicts() {
            core.again_after_verdicts(&mut reroutes).await
        } else {
            core.again(&mut reroutes, &learnt, batch.load()).await
        };
        if !goes_on {
            // With every route known, the shards put off what is left.
            batch.give_up(|shard| match learnt {
                Learnt::Owners => CallError::Deferred { shard },
                Learnt::Arriving(_) | Learnt::Unknown => CallError::Unavailable { shard },
            });
        }
    }
    batch.items.into_iter().map(Item::into_reply).collect()
}

/// The transfers of one request.
struct Batch<'a> {
    core: &'a Core,
    deadline: Deadline,
    items: Vec<Item>,
    /// Items with something left to do, in request order, and those whose unknown outcome others depend on.
    open: Vec<usize>,
    /// What is stored of it was asked for.
    recalled: bool,
}

/// What one shard executes in a wave.
#[derive(Default)]
struct Group {
    operations: Vec<Operation>,
    /// Places in `open`, and whether the credit account's shard is cut off or crowded.
    places: Vec<(usize, bool)>,
}

impl<'a> Batch<'a> {
    fn new(core: &'a Core, transfers: Vec<NewTransfer>, deadline: Deadline) -> Self {
        let moved: i128 = transfers.iter().map(|transfer| i128::from(transfer.amount)).sum();
        let is_large = moved > i128::from(Account::HALF_FULL);
        let is_alone = transfers.len() == 1;
        let items: Vec<Item> =
            transfers.into_iter().map(|transfer| Item::new(transfer, is_large, is_alone)).collect();
        let open = (0..items.len()).collect();
        Self { core, deadline, items, open, recalled: false }
    }

    /// Runs one wave. Returns what is known of the owners of slots that shards have refused.
    async fn wave(&mut self, view: &View) -> Learnt {
        let lines: Vec<Line> = self.open.iter().map(|&index| self.items[index].line(view)).collect();
        let placements = plan_wave(&lines, self.core.config.max_batch_operations);
        let (mut fates, learnt) = self.execute(view, &lines, &placements).await;
        let held = hold_back(&lines, &fates);
        for (fate, held) in fates.iter_mut().zip(held) {
            if held {
                *fate = Fate::Done;
            }
        }
        self.decide_and_settle(&fates).await;
        self.close_finished();
        learnt
    }

    // === the first phase: local transfers and reserves ===

    async fn execute(&mut self, view: &View, lines: &[Line], placements: &[Placement]) -> (Vec<Fate>, Learnt) {
        let mut fates = vec![Fate::Done; lines.len()];
        let mut groups: ByShard<Group> = ByShard::default();
        for (place, (line, placement)) in lines.iter().zip(placements).enumerate() {
            let item = &mut self.items[self.open[place]];
            match placement {
                Placement::Execute { defer_insufficient, defer_limited } => {
                    item.decide_with(*defer_limited);
                    let crosses = line.source != line.destination;
                    let operation = item.operation(crosses, *defer_insufficient, *defer_limited);
                    let destination = view.shard(line.destination);
                    let is_in_vain = crosses && (destination.is_cut_off() || destination.is_crowded());
                    let group = groups.entry(line.source);
                    // An earlier request with the same id is answered all the same: a dry run finds what is stored.
                    group.operations.push(if is_in_vain {
                        Operation::DryRun(Box::new(operation))
                    } else {
                        operation
                    });
                    group.places.push((place, is_in_vain));
                }
                Placement::Decide { defer_limited } => {
                    item.decide_with(*defer_limited);
                    fates[place] = Fate::Reserved;
                }
                Placement::Wait if line.standing == Standing::New => fates[place] = Fate::PutOff,
                Placement::Wait => {}
                Placement::Abandon if line.standing == Standing::New => {
                    let shard = Arc::clone(view.shard(line.source).id());
                    item.end(Err(CallError::Unavailable { shard }));
                }
                Placement::Abandon => {}
            }
        }
        // Alone, an operation has nothing to keep its order with.
        let ordered = self.items.len() > 1;
        let deadline = self.deadline;
        let calls = groups.into_iter().map(|(shard, Group { operations, places })| {
            let shard = Arc::clone(view.shard(shard));
            async move {
                let Answers { answers, resent } = shard.execute(Urgency::New, operations, ordered, deadline).await;
                (shard, places, answers, resent)
            }
        });
        let mut learnt = Learnt::Owners;
        for (shard, places, answers, resent) in join_all(calls).await {
            let mut refusals = Vec::new();
            for ((place, is_in_vain), answer) in places.into_iter().zip(answers) {
                let item = &mut self.items[self.open[place]];
                if resent && !is_in_vain {
                    item.resent(&shard);
                }
                fates[place] = match answer {
                    Ok(Outcome::NotOwner(refusal)) => {
                        refusals.push(refusal);
                        Fate::PutOff
                    }
                    answer if is_in_vain => item.refuse_unless_stored(view.shard(lines[place].destination), answer),
                    answer => item.absorb(&shard, answer),
                };
            }
            learnt = learnt.and(self.core.learn(shard.id(), &refusals));
        }
        for (place, fate) in fates.iter_mut().enumerate().filter(|(_, fate)| **fate == Fate::PutOff) {
            let item = &mut self.items[self.open[place]];
            item.end_if_verdicts_are_cut_off(view);
            if !item.is_new() {
                *fate = Fate::Done;
            }
        }
        (fates, learnt)
    }

    // === the other two phases, of those that crossed shards ===

    async fn decide_and_settle(&mut self, fates: &[Fate]) {
        let (mut indices, mut sagas) = (Vec::new(), Vec::new());
        for (&index, fate) in self.open.iter().zip(fates) {
            if *fate == Fate::Reserved {
                indices.push(index);
                sagas.push(self.items[index].saga());
            }
        }
        if sagas.is_empty() {
            return;
        }
        saga::finish(self.core, &mut sagas, Patience::UntilDeadline, self.deadline).await;
        for (index, saga) in indices.into_iter().zip(sagas) {
            self.items[index].conclude(saga);
        }
    }

    /// Whether nothing but verdicts of other transfers is missing.
    fn waits_for_verdicts(&self) -> bool {
        self.open.iter().all(|&index| self.items[index].waits_for_verdicts())
    }

    /// What is left of the batch.
    fn load(&self) -> Load {
        let bytes = self.open.iter().map(|&index| self.items[index].bytes()).sum();
        Load { operations: self.open.len(), bytes }
    }

    /// Keeps what is open, and what others have to be kept away from as long as there are others.
    fn close_finished(&mut self) {
        let items = &self.items;
        self.open.retain(|&index| !items[index].is_finished());
        if self.open.iter().all(|&index| items[index].is_lost()) {
            self.open.clear();
        }
    }

    /// Ends the batch early. What is reserved stays under way without it.
    fn give_up(&mut self, error: impl Fn(Arc<str>) -> CallError) {
        let view = self.core.view();
        for index in std::mem::take(&mut self.open) {
            let item = &mut self.items[index];
            if item.is_new() {
                let shard = Arc::clone(item.source(&view).id());
                let error = item.put_off_error(&view).unwrap_or_else(|| error(shard));
                item.end(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests;
