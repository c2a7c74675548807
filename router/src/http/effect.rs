//! The line that a request leaves in the log if it had an effect, or if its effect is unknown. The log adds the request, its key, and the
//! transfer or hold that it names (`trace`). A replay, a refusal that stores nothing and a read leave no line.
//!
//! If the router has sent an operation again, because the answer to the first sending was lost, the result that is found may be the request's own.
//! It leaves a line then, with `sent_again`.
//!
//! The lines are written where the core's reply comes in, within the task that outlives a client that hangs up. `docs/operations/logs.md` describes
//! them.

use ledger::{
    Refused,
    outcome::{HoldAnswer, MetadataErased, TransferAnswer, TransferState},
};
use uuid::Uuid;

use crate::{
    core::{
        call::CallError,
        reply::{AccountReply, AtomicReply, HoldReply, ReleaseReply, TransferReply},
    },
    trace,
};

/// Ids that the line of a batch names at most.
const NAMED_IDS: usize = 100;

/// What became of one thing that a request ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It is done, and was not done before.
    Done(&'static str),
    /// It is refused, and the refusal is stored.
    Rejected(&'static str),
    /// It goes on without the request.
    Pending,
    Unknown,
    None,
}

/// Whether an operation of the request was sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SentAgain(bool);

impl SentAgain {
    fn by_this_request() -> Self {
        Self(trace::was_sent_again())
    }

    /// Whether a result that was stored before the last sending is an earlier request's for certain.
    fn is_of_earlier_request(self, replayed: bool) -> bool {
        replayed && !self.0
    }

    /// The member of the line, absent unless it is so.
    fn member(self) -> Option<bool> {
        self.0.then_some(true)
    }
}

impl Effect {
    fn of_transfer(reply: Result<&TransferReply, &CallError>, again: SentAgain) -> Self {
        match reply {
            Ok(TransferReply::Done(answer) | TransferReply::Pending(answer)) => Self::of_answer(answer, again),
            Ok(
                TransferReply::Mismatch { .. }
                | TransferReply::DebitNotFound
                | TransferReply::HoldNotFound
                | TransferReply::NotStored(_),
            ) => Self::None,
            Err(error) => Self::of_error(error),
        }
    }

    fn of_answer(answer: &TransferAnswer, again: SentAgain) -> Self {
        match answer.state {
            // An earlier request began it, and its effect is not known yet.
            TransferState::Pending => Self::Pending,
            _ if again.is_of_earlier_request(answer.replayed) => Self::None,
            TransferState::Posted { .. } => Self::Done("posted"),
            TransferState::Rejected { refused: Refused { refusal, .. }, .. } => Self::Rejected(refusal.as_str()),
        }
    }

    fn of_error(error: &CallError) -> Self {
        if error.is_not_executed() { Self::None } else { Self::Unknown }
    }

    /// `changed`: the outcome to log for a change.
    fn of_account(reply: Result<&AccountReply, &CallError>, changed: &'static str, again: SentAgain) -> Self {
        match reply {
            Ok(AccountReply::Created(_)) => Self::Done("opened"),
            Ok(AccountReply::Updated(_)) => Self::Done(changed),
            Ok(AccountReply::Replayed(_)) if again.0 => Self::Done("opened"),
            Ok(
                AccountReply::Replayed(_)
                | AccountReply::Conflict { .. }
                | AccountReply::NotFound
                | AccountReply::Refused { .. },
            ) => Self::None,
            Err(error) => Self::of_error(error),
        }
    }

    /// Writes the line of a request that ordered one thing.
    fn log(self, error: Option<&CallError>, again: SentAgain) {
        let sent_again = again.member();
        match self {
            Self::None => {}
            Self::Done(outcome) => tracing::info!(outcome, sent_again, "request carried out"),
            Self::Rejected(code) => tracing::info!(outcome = "rejected", code, sent_again, "request carried out"),
            Self::Pending => tracing::info!(outcome = "pending", sent_again, "request answered before its end"),
            Self::Unknown => {
                let error = error.map(ToString::to_string).unwrap_or_default();
                tracing::warn!(outcome = "unknown", error, sent_again, "the effect of a request is unknown");
            }
        }
    }
}

/// A transfer, capture or reversal was answered.
pub fn transfer(reply: &Result<TransferReply, CallError>) {
    let again = SentAgain::by_this_request();
    Effect::of_transfer(reply.as_ref(), again).log(reply.as_ref().err(), again);
}

/// Placing a hold was answered.
pub fn hold(reply: &Result<HoldReply, CallError>) {
    let again = SentAgain::by_this_request();
    let effect = match reply {
        Ok(HoldReply::Placed(HoldAnswer { replayed, .. })) if again.is_of_earlier_request(*replayed) => Effect::None,
        Ok(HoldReply::Placed(HoldAnswer { refused: Some(refused), .. })) => {
            Effect::Rejected(refused.refusal.as_str())
        }
        Ok(HoldReply::Placed(_)) => Effect::Done("held"),
        Ok(HoldReply::Mismatch { .. } | HoldReply::DebitNotFound) => Effect::None,
        Err(error) => Effect::of_error(error),
    };
    effect.log(reply.as_ref().err(), again);
}

/// Releasing a hold was answered.
pub fn release(reply: &Result<ReleaseReply, CallError>) {
    let again = SentAgain::by_this_request();
    let effect = match reply {
        Ok(ReleaseReply::Released { replayed, .. }) if !again.is_of_earlier_request(*replayed) => {
            Effect::Done("released")
        }
        Ok(_) => Effect::None,
        Err(error) => Effect::of_error(error),
    };
    effect.log(reply.as_ref().err(), again);
}

/// Erasing the metadata of a transfer or hold was answered.
pub fn erasure(reply: &Result<MetadataErased, CallError>) {
    let again = SentAgain::by_this_request();
    let effect = match reply {
        // A repetition leaves a line as well: the first request may have erased only one of two copies, and after a restore an operator repeats
        // the erasures that the log lists.
        Ok(MetadataErased::Now | MetadataErased::Nothing) => Effect::Done("erased"),
        Ok(MetadataErased::NotFound) => Effect::None,
        Err(error) => Effect::of_error(error),
    };
    effect.log(reply.as_ref().err(), again);
}

/// Opening or changing one account was answered.
pub fn account(id: &str, reply: Result<&AccountReply, &CallError>) {
    log_account(id, reply, "changed");
}

/// Erasing the metadata of an account was answered.
pub fn account_erasure(id: &str, reply: Result<&AccountReply, &CallError>) {
    log_account(id, reply, "erased");
}

fn log_account(id: &str, reply: Result<&AccountReply, &CallError>, changed: &'static str) {
    let again = SentAgain::by_this_request();
    let sent_again = again.member();
    match Effect::of_account(reply, changed, again) {
        Effect::None => {}
        Effect::Done(outcome) => tracing::info!(outcome, account = id, sent_again, "request carried out"),
        Effect::Rejected(_) | Effect::Pending | Effect::Unknown => {
            let error = reply.err().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(
                outcome = "unknown",
                account = id,
                error,
                sent_again,
                "the effect of a request is unknown"
            );
        }
    }
}

/// A batch of transfers was answered.
pub fn transfers(ids: &[Uuid], replies: &[Result<TransferReply, CallError>]) {
    let again = SentAgain::by_this_request();
    let effects = replies.iter().map(|reply| Effect::of_transfer(reply.as_ref(), again));
    BatchEffects::of(ids.iter().zip(effects)).log("transfers", again);
}

/// An atomic batch of transfers was answered.
pub fn atomic(ids: &[Uuid], reply: &Result<AtomicReply, CallError>) {
    let again = SentAgain::by_this_request();
    let batch = match reply {
        Ok(AtomicReply::Stored(items)) => {
            BatchEffects::of(ids.iter().zip(items.iter().map(|item| Effect::of_transfer(Ok(item), again))))
        }
        Ok(AtomicReply::Failed { .. } | AtomicReply::CrossShard) => BatchEffects::default(),
        Err(error) => BatchEffects::of(ids.iter().map(|id| (id, Effect::of_error(error)))),
    };
    batch.log("transfers", again);
}

/// A batch of accounts was answered.
pub fn accounts<'r>(replies: impl Iterator<Item = (&'r str, Result<&'r AccountReply, &'r CallError>)>) {
    let again = SentAgain::by_this_request();
    BatchEffects::of(replies.map(|(id, reply)| (id, Effect::of_account(reply, "changed", again))))
        .log("accounts", again);
}

/// What became of the items of a batch.
#[derive(Debug, Default)]
struct BatchEffects {
    done: usize,
    rejected: usize,
    pending: usize,
    unknown: usize,
    none: usize,
    /// Ids of items that are pending or unknown, and of the others that had an effect; at most [`NAMED_IDS`] of each.
    open: Vec<String>,
    ended: Vec<String>,
}

impl BatchEffects {
    fn of<Id: ToString>(items: impl Iterator<Item = (Id, Effect)>) -> Self {
        let mut batch = Self::default();
        for (id, effect) in items {
            let (count, ids) = match effect {
                Effect::None => {
                    batch.none += 1;
                    continue;
                }
                Effect::Done(_) => (&mut batch.done, &mut batch.ended),
                Effect::Rejected(_) => (&mut batch.rejected, &mut batch.ended),
                Effect::Pending => (&mut batch.pending, &mut batch.open),
                Effect::Unknown => (&mut batch.unknown, &mut batch.open),
            };
            *count += 1;
            if ids.len() < NAMED_IDS {
                ids.push(id.to_string());
            }
        }
        batch
    }

    fn log(&self, what: &'static str, again: SentAgain) {
        let Self { done, rejected, pending, unknown, none, open, ended } = self;
        let with_effect = done + rejected + pending + unknown;
        if with_effect == 0 {
            return;
        }
        let ids = open.iter().chain(ended).take(NAMED_IDS).map(String::as_str).collect::<Vec<_>>();
        let sent_again = again.member();
        let (ids, unnamed) = (ids.join(" "), with_effect - ids.len());
        if *unknown > 0 {
            tracing::warn!(
                what,
                done,
                rejected,
                pending,
                unknown,
                without_effect = none,
                ids,
                unnamed,
                sent_again,
                "the effect of some items of a batch is unknown"
            );
        } else {
            tracing::info!(
                what,
                done,
                rejected,
                pending,
                unknown,
                without_effect = none,
                ids,
                unnamed,
                sent_again,
                "batch carried out"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use ledger::Refusal;

    use super::*;

    fn answer(state: TransferState, replayed: bool) -> TransferReply {
        TransferReply::Done(TransferAnswer {
            state,
            amount: 1,
            presumed: None,
            cross_shard: false,
            debit_after: None,
            created_at_us: 1,
            replayed,
            ordered_by: None,
        })
    }

    #[test]
    fn what_had_an_effect_or_may_have_had_one_leaves_a_line() {
        let unknown = CallError::OutcomeUnknown { shard: "s0".into() };
        let unavailable = CallError::Unavailable { shard: "s0".into() };
        let posted = TransferState::Posted { at_us: 2 };
        let rejected = TransferState::Rejected { refused: Refused::debit(Refusal::AccountFrozen), at_us: 2 };
        for (reply, effect) in [
            (Ok(answer(posted, false)), Effect::Done("posted")),
            (Ok(answer(rejected, false)), Effect::Rejected("account_frozen")),
            (Ok(answer(TransferState::Pending, false)), Effect::Pending),
            (Ok(answer(TransferState::Pending, true)), Effect::Pending),
            (Err(unknown), Effect::Unknown),
            (Ok(answer(posted, true)), Effect::None),
            (Ok(TransferReply::Mismatch { field: "amount" }), Effect::None),
            (Err(unavailable), Effect::None),
        ] {
            assert_eq!(Effect::of_transfer(reply.as_ref(), SentAgain(false)), effect, "{reply:?}");
        }
    }

    #[test]
    fn a_stored_result_that_may_be_of_the_own_first_sending_leaves_a_line() {
        let posted = Ok(answer(TransferState::Posted { at_us: 2 }, true));
        assert_eq!(Effect::of_transfer(posted.as_ref(), SentAgain(true)), Effect::Done("posted"));
        let mismatch = Ok(TransferReply::Mismatch { field: "amount" });
        assert_eq!(Effect::of_transfer(mismatch.as_ref(), SentAgain(true)), Effect::None);
    }

    #[test]
    fn a_batch_names_what_is_open_first_and_not_too_much() {
        let items = (0..250).map(|id| (id, if id == 249 { Effect::Unknown } else { Effect::Done("posted") }));
        let batch = BatchEffects::of(items);
        assert_eq!(
            (batch.done, batch.unknown, batch.open, batch.ended.len()),
            (249, 1, vec!["249".to_owned()], NAMED_IDS)
        );
    }
}
