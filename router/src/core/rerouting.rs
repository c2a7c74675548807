//! Following a slot to the shard that owns it: what a refusal teaches, how long a request waits before it is sent again, and one operation
//! at the owner of its account.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger::{
    AccountId,
    operation::Operation,
    outcome::{NotOwner, Outcome},
};
use shard_map::Slot;
use tokio::time::{Instant, timeout_at};

use super::{
    Core,
    call::{CallError, Deadline, Pace},
    handover::{Arriving, Load, Waited},
    metrics,
    shard::{Answers, Shard, Urgency, View, wire_bytes},
};

/// The limit for the shards to report what they own. A shard that is down must not delay what the others report.
const OWNERSHIP_TIMEOUT: Duration = Duration::from_secs(1);

/// What a router knows after shards have refused operations for slots that they do not own.
#[derive(Clone)]
pub enum Learnt {
    /// The router knows another owner of each refused slot.
    Owners,
    /// The new owner of a slot has not received it yet.
    Arriving(Arriving),
    /// The router does not know the owner of at least one slot, and has to ask every shard.
    Unknown,
}

impl Learnt {
    /// Combines what is known of the slots of both.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Owners, other) => other,
            (Self::Arriving(_), Self::Unknown) => Self::Unknown,
            (one, _) => one,
        }
    }
}

/// How often a request has been sent elsewhere.
#[derive(Debug)]
pub struct Reroutes {
    attempts: u32,
    pace: Pace,
    /// The pauses of a request that waits for the verdicts of other transfers.
    verdict_pace: Pace,
    deadline: Deadline,
    until: Instant,
}

impl Reroutes {
    /// How long a request waits for the owner of a slot, unless its deadline comes first. A cut-over takes less unless a node or a database
    /// fails.
    const LONGEST: Duration = Duration::from_secs(10);
    const PAUSE_MIN: Duration = Duration::from_millis(4);
    const PAUSE_MAX: Duration = Duration::from_millis(30);
    /// A verdict takes some milliseconds, or until a slow shard answers. Each question makes the shard look ids up.
    const VERDICT_PAUSE_MIN: Duration = Duration::from_millis(10);
    const VERDICT_PAUSE_MAX: Duration = Duration::from_millis(250);

    pub fn new(deadline: Deadline) -> Self {
        let until = Instant::now() + Self::LONGEST;
        let pace = Pace::new(Self::PAUSE_MIN, Self::PAUSE_MAX);
        let verdict_pace = Pace::new(Self::VERDICT_PAUSE_MIN, Self::VERDICT_PAUSE_MAX);
        Self { attempts: 0, pace, verdict_pace, deadline, until }
    }
}

impl Core {
    /// Records the refusals of a shard that does not own the slots. Nothing was executed for them.
    pub fn learn(&self, shard: &str, refusals: &[NotOwner]) -> Learnt {
        if refusals.is_empty() {
            return Learnt::Owners;
        }
        metrics::wrong_route(shard, refusals.len());
        self.routing.learn_not_owners(shard, refusals);
        let view = self.view();
        refusals.iter().fold(Learnt::Owners, |learnt, refusal| learnt.and(learnt_of(&view, shard, refusal)))
    }

    /// Waits before a request is sent once more. The first time, if the owners are known, there is no wait. `load` is what is sent
    /// again. False: the request is not sent any more.
    pub async fn again(&self, reroutes: &mut Reroutes, learnt: &Learnt, load: Load) -> bool {
        reroutes.attempts += 1;
        match learnt {
            Learnt::Owners if reroutes.attempts == 1 => return true,
            Learnt::Arriving(arriving) => {
                match self.handovers.wait(arriving, load, reroutes.until.min(reroutes.deadline)).await {
                    Waited::Arrived => return true,
                    Waited::Refused => return false,
                    // The shard's lane has not noticed yet.
                    Waited::AlreadyArrived => {}
                }
            }
            Learnt::Owners | Learnt::Unknown => {}
        }
        if Instant::now() >= reroutes.until || !reroutes.pace.pause(reroutes.deadline).await {
            return false;
        }
        if matches!(learnt, Learnt::Unknown) {
            self.refresh(reroutes.deadline).await;
        }
        true
    }

    /// Waits before a request is sent once more whose answer depends on the verdicts of other transfers. False: it is not sent any more.
    pub async fn again_after_verdicts(&self, reroutes: &mut Reroutes) -> bool {
        reroutes.verdict_pace.pause(reroutes.deadline).await
    }

    /// Asks all shards which slots they own. A call during a refresh waits for its end.
    pub async fn refresh(&self, deadline: Deadline) {
        let seen = self.refreshes.load(Ordering::Acquire);
        let Ok(_turn) = timeout_at(deadline, self.refreshing.lock()).await else { return };
        if self.refreshes.load(Ordering::Acquire) != seen {
            return;
        }
        let until = deadline.min(Instant::now() + OWNERSHIP_TIMEOUT);
        let ask = |shard: Arc<Shard>| async move {
            shard
                .read(until, |mut node| async move { node.get_ownership(wire::GetOwnershipRequest::default()).await })
                .await
        };
        let answers = self.view().ask_all(ask).await;
        let owned: Vec<_> = answers.into_iter().filter_map(|(shard, owned)| Some((shard, owned.ok()?))).collect();
        metrics::refreshed(owned.len());
        self.routing.merge_ownership(owned);
        self.refreshes.fetch_add(1, Ordering::Release);
    }
}

/// What is known of a slot that `shard` has refused.
fn learnt_of(view: &View, shard: &str, refusal: &NotOwner) -> Learnt {
    const INCOMING: u8 = 3;
    let Some(slot) = Slot::new(refusal.slot) else { return Learnt::Unknown };
    let owner = view.owner(slot);
    if **owner.id() != *shard {
        Learnt::Owners
    } else if refusal.state == INCOMING {
        Learnt::Arriving(Arriving { slot, epoch: refusal.epoch, shard: Arc::clone(owner) })
    } else {
        Learnt::Unknown
    }
}

// === one operation at the owner of its account ===

/// The answer of the shard that owns the account.
#[derive(Debug)]
pub struct OwnerAnswer {
    pub shard: Arc<str>,
    /// Neither `NotOwner` nor `Deferred` nor `Undetermined`.
    pub outcome: Outcome,
    /// A sending whose answer was lost may take effect, or have taken effect. An outcome that stores nothing proves nothing about it.
    pub resent: bool,
}

impl OwnerAnswer {
    /// The reply for an outcome that stores nothing, unless a lost sending may yet make it wrong.
    pub fn nothing_stored<T>(self, reply: T) -> Result<T, CallError> {
        if self.resent { Err(CallError::OutcomeUnknown { shard: self.shard }) } else { Ok(reply) }
    }

    /// The error for an outcome that does not answer the operation.
    pub fn nonsense<T>(self) -> Result<T, CallError> {
        Err(CallError::other_question(&self.shard, &self.outcome))
    }
}

/// Executes one operation at the shard that owns the account. It is sent to another shard if the account has moved there, and again if
/// another operation has to finish first. `operation` makes it for the routes of the moment.
pub async fn execute_at_owner(
    core: &Core,
    account: &AccountId,
    deadline: Deadline,
    operation: impl Fn(&View) -> Operation,
) -> Result<OwnerAnswer, CallError> {
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
        let Answers { mut answers, resent, .. } = shard.execute(Urgency::New, operations, false, deadline).await;
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
                return Ok(OwnerAnswer { shard, outcome, resent: resent_to.is_some() });
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

/// Executes a dry run of the operation at the shard that owns the account: the answer as things stand, with nothing stored.
pub async fn dry_run_at_owner(
    core: &Core,
    account: &AccountId,
    deadline: Deadline,
    operation: impl Fn(&View) -> Operation,
) -> Result<OwnerAnswer, CallError> {
    let asked = execute_at_owner(core, account, deadline, |view| Operation::DryRun(Box::new(operation(view)))).await;
    match asked {
        // A dry run has no effect, so that none can be unknown.
        Ok(answer) => Ok(OwnerAnswer { resent: false, ..answer }),
        Err(CallError::OutcomeUnknown { shard }) => Err(CallError::Unavailable { shard }),
        Err(error) => Err(error),
    }
}

/// "Not executed" is true of the last sending, and proves nothing about an earlier one.
fn unless_resent(error: CallError, resent_to: Option<Arc<str>>) -> CallError {
    match resent_to {
        Some(shard) if error.is_not_executed() => CallError::OutcomeUnknown { shard },
        _ => error,
    }
}
