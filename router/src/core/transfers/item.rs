//! One transfer of a request: what is known of it, and the answer that its client will get.

use std::sync::Arc;

use ledger::{
    AccountId,
    operation::{Operation, Transfer},
    outcome::{Outcome, TransferAnswer, TransferOutcome, TransferState},
};

use super::plan::{AccountKey, Fate, Line, Standing};
use crate::core::{
    call::CallError,
    reply::{NewTransfer, TransferReply},
    saga::{Event, Saga, SagaState},
    shard::{Answer, Shard, View},
};

/// The answer to one transfer of a request.
pub type ItemReply = Result<TransferReply, CallError>;

/// A transfer between its request and its reply.
pub struct Item {
    transfer: NewTransfer,
    debit: AccountKey,
    credit: AccountKey,
    progress: Progress,
    /// The shard that may have executed it in a sending whose answer was lost. Later answers do not change that.
    resent_to: Option<Arc<str>>,
    defer_limited: bool,
    /// As in [`Line::is_large`].
    is_large: bool,
    /// Whether it is refused depends on transfers to these accounts, among others, whose verdicts were not known at its last turn.
    waits_for: Vec<AccountId>,
    /// Whether the decision of its reserve was put off at its last turn, until verdicts of other transfers are known.
    is_put_off: bool,
}

enum Progress {
    /// Nothing of it is known to have been executed.
    New,
    /// With the answer of the reserve.
    Reserved(TransferAnswer),
    /// The outcome is unknown; the reply says so.
    Lost(ItemReply),
    Finished(ItemReply),
}

impl Item {
    pub fn new(transfer: NewTransfer, is_large: bool) -> Self {
        Self {
            debit: AccountKey::of(&transfer.debit),
            credit: AccountKey::of(&transfer.credit),
            progress: Progress::New,
            resent_to: None,
            defer_limited: false,
            is_large,
            waits_for: Vec::new(),
            is_put_off: false,
            transfer,
        }
    }

    pub fn is_new(&self) -> bool {
        matches!(self.progress, Progress::New)
    }

    pub fn waits_for_verdicts(&self) -> bool {
        match self.progress {
            Progress::New => !self.waits_for.is_empty(),
            Progress::Reserved(_) => self.is_put_off,
            Progress::Lost(_) | Progress::Finished(_) => false,
        }
    }

    /// Ends the transfer if it waits for verdicts of shards that are all cut off.
    pub fn end_if_verdicts_are_cut_off(&mut self, view: &View) {
        let shard_of = |account: &AccountId| view.shard(view.route(account));
        if self.is_new()
            && let Some(first) = self.waits_for.first()
            && self.waits_for.iter().all(|account| shard_of(account).is_cut_off())
        {
            let shard = Arc::clone(shard_of(first).id());
            self.end(Err(CallError::Undetermined { shard }));
        }
    }

    /// The error for a transfer that was put off until the deadline.
    pub fn put_off_error(&self, view: &View) -> Option<CallError> {
        let account = self.waits_for.first()?;
        Some(CallError::Undetermined { shard: Arc::clone(view.shard(view.route(account)).id()) })
    }

    pub fn is_finished(&self) -> bool {
        matches!(self.progress, Progress::Finished(_))
    }

    pub fn is_lost(&self) -> bool {
        matches!(self.progress, Progress::Lost(_))
    }

    /// Whether it is answered from what an earlier request has stored.
    pub fn is_replay(&self) -> bool {
        match &self.progress {
            Progress::Reserved(answer)
            | Progress::Finished(Ok(TransferReply::Done(answer)))
            | Progress::Lost(Ok(TransferReply::Pending(answer))) => answer.replayed,
            Progress::New | Progress::Lost(_) | Progress::Finished(_) => false,
        }
    }

    pub fn into_reply(self) -> ItemReply {
        match self.progress {
            Progress::Finished(reply) | Progress::Lost(reply) => reply,
            Progress::Reserved(answer) => Ok(TransferReply::Pending(answer)),
            // The task that runs a batch ends its open items first.
            Progress::New => Err(CallError::ShuttingDown),
        }
    }

    /// An estimate of its memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.transfer.metadata.as_str().len()
    }

    /// The debit account's shard.
    pub fn source<'v>(&self, view: &'v View) -> &'v Arc<Shard> {
        view.shard(view.route(&self.transfer.debit))
    }

    /// Sets whether its decision in this wave, if there is one, has to wait where the credit account has a limit.
    pub fn decide_with(&mut self, defer_limited: bool) {
        self.defer_limited = defer_limited;
    }

    /// Records that it was sent again.
    pub fn resent(&mut self, shard: &Shard) {
        self.resent_to = Some(Arc::clone(shard.id()));
    }

    /// The line that the plan of a wave needs.
    pub fn line(&self, view: &View) -> Line {
        Line {
            debit: self.debit,
            credit: self.credit,
            source: view.route(&self.transfer.debit),
            destination: view.route(&self.transfer.credit),
            standing: match self.progress {
                Progress::New => Standing::New,
                Progress::Reserved(_) => Standing::Reserved,
                Progress::Lost(_) | Progress::Finished(_) => Standing::Lost,
            },
            is_large: self.is_large,
        }
    }

    pub fn operation(&self, cross_shard: bool, defer_insufficient: bool, defer_limited: bool) -> Operation {
        let transfer = self.transfer.as_transfer(cross_shard);
        Operation::Transfer(Transfer { defer_insufficient, defer_limited, ..transfer })
    }

    /// Takes the answer to the execution or reserve.
    pub fn absorb(&mut self, shard: &Shard, answer: Answer) -> Fate {
        let reply = match answer {
            Ok(Outcome::Deferred) => {
                self.waits_for.clear();
                return Fate::PutOff;
            }
            Ok(Outcome::Undetermined(credits)) => {
                self.waits_for = credits;
                return Fate::PutOff;
            }
            // Also a local transfer may be answered so: its id was used for a saga before its accounts came together.
            Ok(Outcome::Transfer(TransferOutcome::Done(answer))) if answer.state == TransferState::Pending => {
                self.progress = Progress::Reserved(answer);
                return Fate::Reserved;
            }
            Ok(Outcome::Transfer(outcome)) => Ok(TransferReply::from(outcome)),
            Ok(other) => Err(CallError::other_question(shard.id(), &other)),
            Err(error) => Err(error),
        };
        self.end(reply);
        Fate::Done
    }

    /// Takes the answer of its dry run, if an earlier request has stored it.
    pub fn recall(&mut self, answer: Answer) {
        match answer {
            Ok(Outcome::Transfer(TransferOutcome::Done(answer))) if answer.replayed => match answer.state {
                TransferState::Pending => self.progress = Progress::Reserved(answer),
                _ => self.end(Ok(TransferReply::Done(answer))),
            },
            Ok(Outcome::Transfer(TransferOutcome::Mismatch { field })) => {
                self.end(Ok(TransferReply::Mismatch { field }));
            }
            // The id is free, or the shard did not answer. The item keeps its turn in a wave.
            _ => {}
        }
    }

    /// Takes the answer of a dry run, made because the credit account's shard is cut off or crowded: reserved money would stay in
    /// transit. The client gets what an earlier request has stored; otherwise nothing was executed.
    pub fn refuse_unless_stored(&mut self, destination: &Shard, answer: Answer) -> Fate {
        let error = answer.as_ref().err().cloned();
        self.recall(answer);
        if self.is_new() {
            let shard = Arc::clone(destination.id());
            self.end(Err(error.unwrap_or(if destination.is_cut_off() {
                CallError::Unavailable { shard }
            } else {
                CallError::Overloaded { shard }
            })));
        }
        if matches!(self.progress, Progress::Reserved(_)) { Fate::Reserved } else { Fate::Done }
    }

    pub fn end(&mut self, reply: ItemReply) {
        self.progress = match (reply, &self.resent_to) {
            (Err(error), None) if error.is_not_executed() => Progress::Finished(Err(error)),
            (Err(error), Some(shard)) if error.is_not_executed() => {
                Progress::Lost(Err(CallError::OutcomeUnknown { shard: Arc::clone(shard) }))
            }
            (Err(error), _) => Progress::Lost(Err(error)),
            // The account may be opened, and the lost sending take effect, after this answer was given.
            (
                Ok(TransferReply::DebitNotFound | TransferReply::HoldNotFound | TransferReply::NotStored(_)),
                Some(shard),
            ) => Progress::Lost(Err(CallError::OutcomeUnknown { shard: Arc::clone(shard) })),
            (Ok(reply), _) => Progress::Finished(Ok(reply)),
        };
    }

    pub fn saga(&self) -> Saga {
        let Progress::Reserved(answer) = &self.progress else {
            unreachable!("INV-3: only a reserved transfer is decided");
        };
        let NewTransfer { id, debit, credit, asset, purpose, .. } = &self.transfer;
        let state = SagaState::Unreserved.next(Event::Stored(answer.state)).unwrap_or(SagaState::Reserved);
        Saga {
            id: *id,
            debit: debit.clone(),
            credit: credit.clone(),
            asset: *asset,
            amount: answer.amount,
            purpose: *purpose,
            presumed: answer.presumed,
            state,
            debit_after: None,
            defer_limited: self.defer_limited,
            patient: true,
            put_off: false,
            parked: None,
            // A request with another key may continue a transfer: the register has the name that the source has.
            ordered_by: answer.ordered_by.clone(),
        }
    }

    /// Takes the end of the saga. A saga that has not ended goes on without this request.
    pub fn conclude(&mut self, saga: Saga) {
        let Progress::Reserved(answer) = &self.progress else { return };
        self.is_put_off = saga.put_off;
        if self.is_put_off {
            return;
        }
        let answer = TransferAnswer {
            state: saga.state.transfer_state(),
            debit_after: saga.debit_after.or(answer.debit_after),
            ..answer.clone()
        };
        self.progress = if saga.state.next_step().is_none() {
            Progress::Finished(Ok(TransferReply::Done(answer)))
        } else {
            // An item that depends on it must not run: what it will find is not known yet.
            Progress::Lost(Ok(TransferReply::Pending(answer)))
        };
    }
}
