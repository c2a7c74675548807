//! Drives sagas from any step to their end, in batches: all that goes to one shard at one moment goes in one
//! submission, and no saga waits for another one's shard.
//!
//! A step that was not answered, or was refused, is taken again, which is harmless because the shards answer it from what is stored. A
//! time-out is never a verdict: at the deadline the sagas are left where they are, and recovery goes on from there.

use std::{sync::Arc, time::Duration};

use futures_util::{
    future::{BoxFuture, FutureExt},
    stream::{FuturesUnordered, StreamExt},
};
use ledger::{
    operation::Operation,
    outcome::{NotOwner, Outcome},
};
use tokio::time::Instant;

use super::{Event, Saga, Step};
use crate::core::{
    Core,
    call::{CallError, Deadline, Pace},
    handover::{Load, Waited},
    metrics::{self, SagasInFlight, StepEnd},
    rerouting::Learnt,
    shard::{Answer, Answers, ByShard, Shard, Urgency},
};

/// First and longest pause before a step is taken again.
const AGAIN_MIN: Duration = Duration::from_millis(10);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// An event that the driver of sagas reacts to.
enum Happened {
    Answered {
        shard: Arc<Shard>,
        steps: Vec<(usize, Step)>,
        answers: Vec<Answer>,
        took: Duration,
        pace: Pace,
    },
    /// The pause of these sagas is over; `None` when the deadline came first.
    Rested(Option<(Vec<usize>, Pace)>),
}

/// What an answer means.
enum StepAnswer {
    Take(Event),
    /// Another shard owns the slot now.
    Elsewhere(NotOwner),
    /// Take the step again.
    Again,
    /// The step has to wait for another operation, which the driver of the saga knows.
    PutOff,
    /// This router is shutting down. Another router goes on.
    Stop,
    Park(String),
}

/// What to do about a shard that cannot take a step now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Try again until the deadline, unless the shard is cut off: a client waits.
    UntilDeadline,
    /// Leave the saga. It will be due again, and others must not wait behind a shard that is down.
    Once,
}

/// Drives all sagas until each has ended or is parked, or patience or the time until the deadline runs out.
pub async fn finish(core: &Core, sagas: &mut [Saga], patience: Patience, deadline: Deadline) {
    let _counted = SagasInFlight::new(sagas.len());
    let mut drive = Drive { core, sagas, patience, deadline, under_way: FuturesUnordered::new() };
    let everyone = (0..drive.sagas.len()).collect();
    drive.send(everyone, None);
    while let Some(happened) = drive.under_way.next().await {
        match happened {
            Happened::Rested(Some((sagas, pace))) => drive.send(sagas, Some(pace)),
            Happened::Rested(None) => {}
            Happened::Answered { shard, steps, answers, took, pace } => {
                drive.absorb(&shard, steps, answers, took, pace)
            }
        }
    }
}

struct Drive<'a> {
    core: &'a Core,
    sagas: &'a mut [Saga],
    patience: Patience,
    deadline: Deadline,
    under_way: FuturesUnordered<BoxFuture<'a, Happened>>,
}

/// The steps for one shard.
#[derive(Default)]
struct ShardSteps {
    operations: Vec<Operation>,
    steps: Vec<(usize, Step)>,
}

impl Drive<'_> {
    /// Sends the next step of each of these sagas, those for one shard together. `pace` goes on where a retry left off.
    fn send(&mut self, sagas: Vec<usize>, pace: Option<Pace>) {
        let view = self.core.view();
        let mut groups: ByShard<ShardSteps> = ByShard::default();
        for index in sagas {
            let Some((step, account, operation)) = self.sagas[index].next() else { continue };
            let group = groups.entry(view.route(account));
            group.operations.push(operation);
            group.steps.push((index, step));
        }
        let mut pace = pace;
        for (shard, ShardSteps { operations, steps }) in groups {
            let shard = Arc::clone(view.shard(shard));
            let pace = pace.take().unwrap_or_else(|| Pace::new(AGAIN_MIN, AGAIN_MAX));
            let deadline = self.deadline;
            let answered = async move {
                let begun = Instant::now();
                // A step may be sent twice: it is taken again until it is answered.
                let Answers { answers, .. } = shard.execute(Urgency::Finishing, operations, false, deadline).await;
                Happened::Answered { shard, steps, answers, took: begun.elapsed(), pace }
            };
            self.under_way.push(answered.boxed());
        }
    }

    fn absorb(&mut self, shard: &Shard, steps: Vec<(usize, Step)>, answers: Vec<Answer>, took: Duration, pace: Pace) {
        let mut ends: Vec<(Step, StepEnd, usize)> = Vec::new();
        let (mut on, mut again, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
        for ((index, step), answer) in steps.into_iter().zip(answers) {
            let saga = &mut self.sagas[index];
            if let Ok(Outcome::Settled(settled)) = &answer {
                saga.debit_after = settled.debit_after;
            }
            let end = match read(answer) {
                StepAnswer::Take(event) => match saga.state.next(event) {
                    Ok(next) => {
                        saga.state = next;
                        on.push(index);
                        StepEnd::Done
                    }
                    Err(illegal) => park(saga, shard, step, illegal.to_string()),
                },
                StepAnswer::Park(why) => park(saga, shard, step, why),
                StepAnswer::Elsewhere(refusal) => {
                    refusals.push(refusal);
                    again.push(index);
                    StepEnd::Again
                }
                StepAnswer::Again => {
                    // A shard that is cut off is not waited for: the client learns at once that the transfer is under way.
                    if self.patience == Patience::UntilDeadline && !shard.is_cut_off() {
                        again.push(index);
                    }
                    StepEnd::Again
                }
                StepAnswer::PutOff => {
                    saga.put_off = true;
                    StepEnd::Again
                }
                StepAnswer::Stop => StepEnd::Again,
            };
            match ends.iter_mut().find(|(s, e, _)| (*s, *e) == (step, end)) {
                Some((.., count)) => *count += 1,
                None => ends.push((step, end, 1)),
            }
        }
        for (step, end, count) in ends {
            metrics::step_ended(step.as_str(), end, took, count);
        }
        self.send(on, None);
        if !again.is_empty() {
            let learnt = self.core.learn(shard.id(), &refusals);
            self.rest(again, pace, learnt);
        }
    }

    /// Waits before these sagas' steps are taken again: for the slot that is on its way, or for a pause.
    fn rest(&mut self, sagas: Vec<usize>, mut pace: Pace, learnt: Learnt) {
        let (core, deadline) = (self.core, self.deadline);
        let rested = async move {
            if let Learnt::Arriving(arriving) = &learnt {
                let load = Load { operations: sagas.len(), bytes: sagas.len() * size_of::<Saga>() };
                let until = deadline.min(Instant::now() + AGAIN_MAX);
                if core.handovers.wait(arriving, load, until).await == Waited::Arrived {
                    return Happened::Rested(Some((sagas, pace)));
                }
            }
            if !pace.pause(deadline).await {
                return Happened::Rested(None);
            }
            if matches!(learnt, Learnt::Unknown) {
                core.refresh(deadline).await;
            }
            Happened::Rested(Some((sagas, pace)))
        };
        self.under_way.push(rested.boxed());
    }
}

fn read(answer: Answer) -> StepAnswer {
    match answer {
        Ok(Outcome::Decided(decided)) => StepAnswer::Take(Event::Decided(decided.verdict)),
        Ok(Outcome::Settled(settled)) => StepAnswer::Take(Event::Settled(settled.state)),
        Ok(Outcome::NotOwner(refusal)) => StepAnswer::Elsewhere(refusal),
        Ok(Outcome::Deferred | Outcome::Undetermined(_)) => StepAnswer::PutOff,
        Ok(Outcome::Illegal(why)) => StepAnswer::Park(why),
        Ok(other) => StepAnswer::Park(format!("an answer to another question: {other:?}")),
        Err(CallError::ShuttingDown) => StepAnswer::Stop,
        Err(CallError::Illegal { detail, .. } | CallError::Internal { detail, .. }) => StepAnswer::Park(detail),
        // An unknown outcome is no outcome: the step is taken again and answered from what is stored.
        Err(
            CallError::Unavailable { .. }
            | CallError::Overloaded { .. }
            | CallError::Deadline { .. }
            | CallError::Deferred { .. }
            | CallError::Undetermined { .. }
            | CallError::Unfinished { .. }
            | CallError::OutcomeUnknown { .. },
        ) => StepAnswer::Again,
    }
}

fn park(saga: &mut Saga, shard: &Shard, step: Step, why: String) -> StepEnd {
    tracing::error!(
        transfer = %saga.id.0, debit = %saga.debit, shard = %shard.id(), step = step.as_str(), why,
        "a saga cannot go on; its money stays in transit until an operator looks"
    );
    saga.parked = Some(why);
    StepEnd::Parked
}
