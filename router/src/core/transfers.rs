//! Transfers: one, a batch, an atomic group, or a dry run. A single one is a batch of one.
//!
//! [`plan`] says what may run at the same time; [`item`] is one transfer between its request and its reply; this file runs the waves. One rule
//! holds everywhere: *not executed* is said only of a transfer none of whose steps can have taken effect.

mod item;
mod plan;

use std::sync::Arc;

use futures_util::future::join_all;
use ledger::{
    Account,
    operation::{Decide, Operation, Verdict},
    outcome::{AtomicOutcome, Decided, Outcome, TransferAnswer, TransferOutcome, TransferState},
};
use tokio::time::Instant;

use self::{
    item::{Item, ItemReply},
    plan::{Fate, Line, Placement, Standing, hold_back, plan_wave},
};
use super::{
    Core,
    call::{CallError, Deadline},
    handover::Load,
    metrics,
    reply::{AtomicReply, NewTransfer, TransferReply},
    rerouting::{Learnt, Reroutes, dry_run_at_owner},
    saga::{self, Patience},
    shard::{Answers, ByShard, Shard, Urgency, View, wire_bytes},
};

impl Core {
    /// Runs one transfer.
    pub async fn transfer(&self, transfer: NewTransfer, deadline: Deadline) -> Result<TransferReply, CallError> {
        let reply = run(self, vec![transfer], deadline).await.pop().unwrap_or(Err(CallError::ShuttingDown));
        metrics::count_transfer(reply.as_ref());
        reply
    }

    /// Runs transfers as if one after another. Returns one reply each, in order. Their (id, debit) must differ.
    pub async fn transfer_batch(
        &self,
        transfers: Vec<NewTransfer>,
        deadline: Deadline,
    ) -> Vec<Result<TransferReply, CallError>> {
        let replies = run(self, transfers, deadline).await;
        replies.iter().for_each(|reply| metrics::count_transfer(reply.as_ref()));
        replies
    }

    /// Runs all of the transfers or none.
    pub async fn transfer_atomic(
        &self,
        transfers: Vec<NewTransfer>,
        deadline: Deadline,
    ) -> Result<AtomicReply, CallError> {
        let count = transfers.len();
        let reply = run_atomic(self, transfers, deadline).await;
        metrics::count_atomic(&reply, count);
        reply
    }

    /// The answer that the transfer would get now. A new transfer that would be posted is answered `Posted`, a replay as it is stored. Nothing is
    /// stored.
    ///
    /// A transfer between shards is asked about at its source and then at its destination, as its saga would be. The two are not asked at
    /// the same moment; nor are the steps of the saga.
    pub async fn dry_run_transfer(
        &self,
        order: &NewTransfer,
        deadline: Deadline,
    ) -> Result<TransferReply, CallError> {
        let asked = dry_run_at_owner(self, &order.debit, deadline, |view| first_step(order, view)).await?;
        let answer = match asked.outcome {
            Outcome::Transfer(TransferOutcome::Done(answer)) => answer,
            Outcome::Transfer(outcome) => return Ok(outcome.into()),
            _ => return asked.nonsense(),
        };
        if answer.replayed || answer.state != TransferState::Pending {
            return Ok(TransferOutcome::Done(answer).into());
        }
        let asked = dry_run_at_owner(self, &order.credit, deadline, |_| second_step(order, &answer)).await?;
        let Outcome::Decided(Decided { verdict, at_us, .. }) = asked.outcome else { return asked.nonsense() };
        let state = match verdict {
            Verdict::Credited => TransferState::Posted { at_us },
            Verdict::Refused(refused) => TransferState::Rejected { refused, at_us },
        };
        Ok(TransferReply::Done(TransferAnswer { state, ..answer }))
    }
}

// === a batch ===

/// Runs transfers as if one after another, and answers each, in order.
async fn run(core: &Core, transfers: Vec<NewTransfer>, deadline: Deadline) -> Vec<ItemReply> {
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
        metrics::count_wave();
        if batch.is_sent_again() {
            batch.recall().await;
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
            // If every route is known, the shards have put the open items off.
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
    /// Places of the items with something left to do, in request order, and of those whose unknown outcome others depend on.
    open: Vec<usize>,
    /// True once the stored results of earlier requests were loaded for this batch.
    recalled: bool,
}

/// The operations that one shard executes in a wave.
#[derive(Default)]
struct ShardGroup {
    operations: Vec<Operation>,
    /// Places in `open`, and whether the credit account's shard is cut off or crowded.
    places: Vec<(usize, bool)>,
}

impl<'a> Batch<'a> {
    fn new(core: &'a Core, transfers: Vec<NewTransfer>, deadline: Deadline) -> Self {
        let moved: i128 = transfers.iter().map(|transfer| i128::from(transfer.amount)).sum();
        let is_large = moved > i128::from(Account::HALF_FULL);
        let items: Vec<Item> = transfers.into_iter().map(|transfer| Item::new(transfer, is_large)).collect();
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
        let mut groups: ByShard<ShardGroup> = ByShard::default();
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
        // A single operation has no order to keep.
        let ordered = self.items.len() > 1;
        let deadline = self.deadline;
        let calls = groups.into_iter().map(|(shard, ShardGroup { operations, places })| {
            let shard = Arc::clone(view.shard(shard));
            async move {
                let Answers { answers, resent, .. } =
                    shard.execute(Urgency::New, operations, ordered, deadline).await;
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

    // === the second and third phase: decisions and settlements of transfers between shards ===

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

    /// Whether every open item waits for verdicts of other transfers.
    fn waits_for_verdicts(&self) -> bool {
        self.open.iter().all(|&index| self.items[index].waits_for_verdicts())
    }

    /// The load of the open items.
    fn load(&self) -> Load {
        let bytes = self.open.iter().map(|&index| self.items[index].bytes()).sum();
        Load { operations: self.open.len(), bytes }
    }

    /// Removes finished items from `open`. An item whose outcome is unknown stays there as long as others do, because they must not run ahead
    /// of it.
    fn close_finished(&mut self) {
        let items = &self.items;
        self.open.retain(|&index| !items[index].is_finished());
        if self.open.iter().all(|&index| items[index].is_lost()) {
            self.open.clear();
        }
    }

    /// Ends the batch early. Reserved transfers stay under way without it.
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

    // === a batch that is sent again ===
    //
    // Only a transfer that has yet to take effect needs an order. If stored transfers waited for their turns, a repeated batch would take as
    // many waves as the first attempt, and a chain of transfers between shards that is too long for one request would never get through.

    /// Whether an item was answered from what an earlier request has stored, while others still wait. True once, because one look finds all.
    fn is_sent_again(&mut self) -> bool {
        let waiting = || self.open.iter().any(|&index| self.items[index].is_new());
        let sent_again = !self.recalled && self.items.iter().any(Item::is_replay) && waiting();
        self.recalled |= sent_again;
        sent_again
    }

    /// Gives the waiting items what is stored under their ids, found by a dry run: it answers an id in use as the transfer itself would be
    /// answered, and stores nothing where the id is free.
    async fn recall(&mut self) {
        let view = self.core.view();
        let mut groups: ByShard<(Vec<Operation>, Vec<usize>)> = ByShard::default();
        for &index in self.open.iter().filter(|&&index| self.items[index].is_new()) {
            let line = self.items[index].line(&view);
            let transfer = self.items[index].operation(line.source != line.destination, false, false);
            let (operations, indices) = groups.entry(line.source);
            operations.push(Operation::DryRun(Box::new(transfer)));
            indices.push(index);
        }
        let deadline = self.deadline;
        let calls = groups.into_iter().map(|(shard, (operations, indices))| {
            let shard = Arc::clone(view.shard(shard));
            async move { (indices, shard.execute(Urgency::New, operations, false, deadline).await.answers) }
        });
        for (indices, answers) in join_all(calls).await {
            for (index, answer) in indices.into_iter().zip(answers) {
                self.items[index].recall(answer);
            }
        }
        self.close_finished();
    }
}

// === an atomic group ===

/// Runs the group as one operation if all its accounts live on one shard.
async fn run_atomic(core: &Core, transfers: Vec<NewTransfer>, deadline: Deadline) -> Result<AtomicReply, CallError> {
    let operation =
        Operation::AtomicTransfers(transfers.iter().map(|transfer| transfer.as_transfer(false)).collect());
    let load = Load { operations: transfers.len(), bytes: wire_bytes(&operation) };
    let mut reroutes = Reroutes::new(deadline);
    loop {
        let view = core.view();
        // The shard of a transfer whose verdict has to be known first.
        let mut undetermined: Option<Arc<str>> = None;
        let Some(shard) = common_shard(&view, &transfers) else {
            return across_shards(core, transfers, deadline).await;
        };
        let operations = vec![operation.clone()];
        let Answers { mut answers, resent, .. } = shard.execute(Urgency::New, operations, false, deadline).await;
        let learnt = match answers.pop() {
            // A failed group stores nothing, so that it proves nothing about the sending that was lost.
            Some(Ok(
                Outcome::NotOwner(_)
                | Outcome::Deferred
                | Outcome::Undetermined(_)
                | Outcome::Atomic(AtomicOutcome { culprit: Some(_), .. }),
            )) if resent => {
                return Err(CallError::OutcomeUnknown { shard: Arc::clone(shard.id()) });
            }
            Some(Ok(Outcome::Atomic(outcome))) => return Ok(atomic_reply(outcome)),
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
            other => return Err(CallError::other_question(shard.id(), &other)),
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

/// Answers an atomic group whose accounts are on several shards. If it was carried out when they shared a shard, it is a replay.
async fn across_shards(
    core: &Core,
    transfers: Vec<NewTransfer>,
    deadline: Deadline,
) -> Result<AtomicReply, CallError> {
    let Some(first) = transfers.first() else { return Ok(AtomicReply::CrossShard) };
    // A group is stored as a whole or not at all: the first transfer decides.
    match core.dry_run_transfer(first, deadline).await? {
        TransferReply::Done(answer) if answer.replayed => {}
        _ => return Ok(AtomicReply::CrossShard),
    }
    let mut batch = Batch::new(core, transfers, deadline);
    batch.recall().await;
    if !batch.items.iter().all(Item::is_replay) {
        return Ok(AtomicReply::CrossShard);
    }
    batch.items.into_iter().map(Item::into_reply).collect::<Result<_, _>>().map(AtomicReply::Stored)
}

/// The error for a group that was put off until the deadline.
fn put_off(undetermined: Option<Arc<str>>, shard: &Arc<str>) -> CallError {
    match undetermined {
        Some(shard) => CallError::Undetermined { shard },
        None => CallError::Unavailable { shard: Arc::clone(shard) },
    }
}

fn common_shard<'a>(view: &'a View, transfers: &[NewTransfer]) -> Option<&'a Arc<Shard>> {
    let mut accounts = transfers.iter().flat_map(|transfer| [&transfer.debit, &transfer.credit]);
    let first = view.route(accounts.next()?);
    accounts.all(|account| view.route(account) == first).then(|| view.shard(first))
}

fn atomic_reply(outcome: AtomicOutcome) -> AtomicReply {
    let items = outcome.items.into_iter().map(Into::into).collect();
    match outcome.culprit {
        Some(culprit) => AtomicReply::Failed { culprit, items },
        None => AtomicReply::Stored(items),
    }
}

// === a dry run ===

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
        patient: true,
        ordered_by: None,
    })
}

#[cfg(test)]
mod tests;
