//! Answers.

use ledger::{
    Account, Refused,
    outcome::{
        AccountOutcome, AtomicOutcome, DebitAfter, Decided, MetadataErased, NotOwner, Outcome, Reason, Reply,
        Settled, TransferAnswer, TransferOutcome, TransferState,
    },
};

use super::{
    BadMessage,
    account::{hold_outcome_from_wire, hold_outcome_to_wire},
    account_id, name_from_wire, name_to_wire, refused_from_wire, refused_to_wire, verdict_from_wire, verdict_to_wire,
};
use crate::generated::{self as wire, not_executed::Reason as WireReason, operation_result::Outcome as Message};

impl From<Reason> for WireReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Overloaded => Self::Overloaded,
            Reason::Unavailable => Self::Unavailable,
            Reason::Deadline => Self::Deadline,
            Reason::ShuttingDown => Self::ShuttingDown,
            Reason::Internal => Self::Internal,
        }
    }
}

impl From<WireReason> for Reason {
    fn from(reason: WireReason) -> Self {
        match reason {
            WireReason::Overloaded => Self::Overloaded,
            WireReason::Unavailable => Self::Unavailable,
            WireReason::Deadline => Self::Deadline,
            WireReason::ShuttingDown => Self::ShuttingDown,
            WireReason::Internal => Self::Internal,
        }
    }
}

impl From<Reply> for wire::OperationResult {
    fn from(reply: Reply) -> Self {
        let outcome = match reply {
            Reply::Outcome(outcome) => outcome_to_wire(outcome),
            Reply::NotExecuted { reason, detail } => {
                Message::NotExecuted(wire::NotExecuted { reason: WireReason::from(reason).into(), detail })
            }
            Reply::Unknown => Message::Unknown(wire::OutcomeUnknown {}),
        };
        Self { outcome: Some(outcome) }
    }
}

fn outcome_to_wire(outcome: Outcome) -> Message {
    match outcome {
        Outcome::Account(outcome) => Message::Account(account_to_wire(outcome)),
        Outcome::Transfer(outcome) => Message::Transfer(transfer_to_wire(outcome)),
        Outcome::Hold(outcome) => Message::Hold(hold_outcome_to_wire(outcome)),
        Outcome::Atomic(AtomicOutcome { items, culprit }) => Message::Atomic(wire::AtomicOutcome {
            items: items.into_iter().map(transfer_to_wire).collect(),
            failed: culprit.is_some(),
            culprit: culprit.and_then(|index| u32::try_from(index).ok()).unwrap_or(0),
        }),
        Outcome::Decided(Decided { verdict, at_us, replayed }) => {
            let (credited, refusal, side) = verdict_to_wire(verdict);
            Message::Decide(wire::DecideOutcome { credited, refusal, side, replayed, decided_at_us: at_us })
        }
        Outcome::Settled(Settled { state, debit_after, replayed }) => {
            let (status, refusal, side, finished_at_us) = state_to_columns(state);
            let debit_after = debit_after.map(Into::into);
            Message::Settle(wire::SettleOutcome { status, refusal, side, finished_at_us, replayed, debit_after })
        }
        Outcome::MetadataErased(erased) => Message::MetadataErased(wire::MetadataErased {
            found: erased != MetadataErased::NotFound,
            now: erased == MetadataErased::Now,
        }),
        Outcome::NotOwner(not_owner) => Message::NotOwner(not_owner.into()),
        Outcome::Deferred => Message::Deferred(wire::Deferred {}),
        Outcome::Undetermined(credits) => {
            Message::Undetermined(wire::Undetermined { credits: credits.iter().map(ToString::to_string).collect() })
        }
        Outcome::Illegal(detail) => {
            Message::NotExecuted(wire::NotExecuted { reason: WireReason::Internal.into(), detail })
        }
    }
}

fn account_to_wire(outcome: AccountOutcome) -> wire::AccountOutcome {
    let mut message = wire::AccountOutcome::default();
    match outcome {
        AccountOutcome::Created(account) | AccountOutcome::Updated(account) => {
            message.account = Some((&account).into());
        }
        AccountOutcome::Replayed(account) => {
            message.account = Some((&account).into());
            message.replayed = true;
        }
        AccountOutcome::Conflict { field } => field.clone_into(&mut message.conflict_field),
        AccountOutcome::NotFound => {}
        AccountOutcome::Refused { account, refused } => {
            message.account = Some((&account).into());
            message.refusal = refused_to_wire(refused).0;
        }
    }
    message
}

/// (status, refusal, side, finished_at_us), with 0 for none.
pub fn state_to_columns(state: TransferState) -> (u32, u32, u32, i64) {
    let (refusal, side) = state.refused().map_or((0, 0), refused_to_wire);
    (state.code().into(), refusal, side, state.finished_at_us().unwrap_or(0))
}

/// A transfer's state from its status code, refusal and time of finishing.
pub fn state_from_wire(
    status: u32,
    refusal: u32,
    side: u32,
    finished_at_us: i64,
) -> Result<TransferState, BadMessage> {
    match u8::try_from(status) {
        Ok(TransferState::PENDING) => Ok(TransferState::Pending),
        Ok(TransferState::POSTED) => Ok(TransferState::Posted { at_us: finished_at_us }),
        Ok(TransferState::REJECTED) => {
            Ok(TransferState::Rejected { refused: refused_from_wire(refusal, side)?, at_us: finished_at_us })
        }
        _ => Err(BadMessage::Bad { field: "status", reason: format!("{status} is no transfer status") }),
    }
}

/// The refusal that a pending transfer is presumed to get, if any.
pub fn presumed_from_wire(state: TransferState, refusal: u32, side: u32) -> Result<Option<Refused>, BadMessage> {
    if state == TransferState::Pending && refusal != 0 {
        refused_from_wire(refusal, side).map(Some)
    } else {
        Ok(None)
    }
}

fn transfer_to_wire(outcome: TransferOutcome) -> wire::TransferOutcome {
    match outcome {
        TransferOutcome::Done(answer) => {
            let (status, refusal, side, finished_at_us) = state_to_columns(answer.state);
            let (refusal, side) = answer.presumed.map_or((refusal, side), refused_to_wire);
            wire::TransferOutcome {
                status,
                refusal,
                side,
                replayed: answer.replayed,
                mismatch_field: String::new(),
                cross_shard: answer.cross_shard,
                debit_after: answer.debit_after.map(Into::into),
                created_at_us: answer.created_at_us,
                finished_at_us,
                stored: true,
                amount: answer.amount,
                hold_not_found: false,
                ordered_by: name_to_wire(answer.ordered_by.as_ref()),
            }
        }
        TransferOutcome::Mismatch { field } => {
            wire::TransferOutcome { mismatch_field: field.to_owned(), ..Default::default() }
        }
        TransferOutcome::DebitNotFound => wire::TransferOutcome::default(),
        TransferOutcome::HoldNotFound => wire::TransferOutcome { hold_not_found: true, ..Default::default() },
        TransferOutcome::NotStored(refused) => {
            let (refusal, side) = refused_to_wire(refused);
            wire::TransferOutcome { refusal, side, ..Default::default() }
        }
    }
}

fn transfer_from_wire(message: wire::TransferOutcome) -> Result<TransferOutcome, BadMessage> {
    if !message.mismatch_field.is_empty() {
        return Ok(TransferOutcome::Mismatch { field: field_name(&message.mismatch_field) });
    }
    if message.hold_not_found {
        return Ok(TransferOutcome::HoldNotFound);
    }
    if !message.stored {
        return if message.refusal == 0 {
            Ok(TransferOutcome::DebitNotFound)
        } else {
            Ok(TransferOutcome::NotStored(refused_from_wire(message.refusal, message.side)?))
        };
    }
    let state = state_from_wire(message.status, message.refusal, message.side, message.finished_at_us)?;
    Ok(TransferOutcome::Done(TransferAnswer {
        state,
        amount: message.amount,
        presumed: presumed_from_wire(state, message.refusal, message.side)?,
        cross_shard: message.cross_shard,
        debit_after: message.debit_after.map(TryInto::try_into).transpose()?,
        created_at_us: message.created_at_us,
        replayed: message.replayed,
        ordered_by: name_from_wire(&message.ordered_by)?,
    }))
}

impl From<DebitAfter> for wire::DebitAfter {
    fn from(after: DebitAfter) -> Self {
        Self {
            posted: after.posted,
            held: after.held,
            overdraft: Some(after.overdraft.into()),
            version: after.version,
        }
    }
}

impl TryFrom<wire::DebitAfter> for DebitAfter {
    type Error = BadMessage;

    fn try_from(message: wire::DebitAfter) -> Result<Self, BadMessage> {
        Ok(Self {
            posted: message.posted,
            held: message.held,
            overdraft: message.overdraft.ok_or(BadMessage::Missing("overdraft"))?.into(),
            version: message.version,
        })
    }
}

impl TryFrom<wire::OperationResult> for Reply {
    type Error = BadMessage;

    fn try_from(message: wire::OperationResult) -> Result<Self, BadMessage> {
        let outcome = match message.outcome.ok_or(BadMessage::Missing("outcome"))? {
            Message::Account(message) => Outcome::Account(account_from_wire(message)?),
            Message::Transfer(message) => Outcome::Transfer(transfer_from_wire(message)?),
            Message::Atomic(message) => Outcome::Atomic(AtomicOutcome {
                items: message.items.into_iter().map(transfer_from_wire).collect::<Result<_, _>>()?,
                culprit: message.failed.then_some(message.culprit as usize),
            }),
            Message::Decide(message) => Outcome::Decided(Decided {
                verdict: verdict_from_wire(message.credited, message.refusal, message.side)?,
                at_us: message.decided_at_us,
                replayed: message.replayed,
            }),
            Message::Settle(message) => Outcome::Settled(Settled {
                state: state_from_wire(message.status, message.refusal, message.side, message.finished_at_us)?,
                debit_after: message.debit_after.map(TryInto::try_into).transpose()?,
                replayed: message.replayed,
            }),
            Message::Hold(message) => Outcome::Hold(hold_outcome_from_wire(message)?),
            Message::MetadataErased(message) => Outcome::MetadataErased(match (message.found, message.now) {
                (false, _) => MetadataErased::NotFound,
                (true, false) => MetadataErased::Nothing,
                (true, true) => MetadataErased::Now,
            }),
            Message::NotOwner(message) => Outcome::NotOwner(message.try_into()?),
            Message::Deferred(_) => Outcome::Deferred,
            Message::Undetermined(message) => Outcome::Undetermined(
                message.credits.iter().map(|id| account_id(id, "undetermined.credits")).collect::<Result<_, _>>()?,
            ),
            Message::NotExecuted(message) => {
                let reason = message.reason().into();
                return Ok(Self::NotExecuted { reason, detail: message.detail });
            }
            Message::Unknown(_) => return Ok(Self::Unknown),
        };
        Ok(Self::Outcome(outcome))
    }
}

impl From<NotOwner> for wire::NotOwner {
    fn from(NotOwner { slot, state, epoch, owner }: NotOwner) -> Self {
        Self { slot: slot.into(), state: state.into(), epoch, owner }
    }
}

impl TryFrom<wire::NotOwner> for NotOwner {
    type Error = BadMessage;

    fn try_from(message: wire::NotOwner) -> Result<Self, BadMessage> {
        let small = |field, value: u32| BadMessage::Bad { field, reason: format!("{value} is out of range") };
        Ok(Self {
            slot: u16::try_from(message.slot).map_err(|_| small("slot", message.slot))?,
            state: u8::try_from(message.state).map_err(|_| small("state", message.state))?,
            epoch: message.epoch,
            owner: message.owner,
        })
    }
}

fn account_from_wire(message: wire::AccountOutcome) -> Result<AccountOutcome, BadMessage> {
    if !message.conflict_field.is_empty() {
        return Ok(AccountOutcome::Conflict { field: field_name(&message.conflict_field) });
    }
    let Some(account) = message.account else {
        return Ok(AccountOutcome::NotFound);
    };
    let account = Account::try_from(account)?;
    if message.refusal != 0 {
        let Refused { refusal, .. } = refused_from_wire(message.refusal, 0)?;
        return Ok(AccountOutcome::Refused { account, refused: Refused::whole(refusal) });
    }
    // Created and updated look alike; the caller knows which one it asked for.
    Ok(if message.replayed { AccountOutcome::Replayed(account) } else { AccountOutcome::Created(account) })
}

/// The names of fields that can differ, as the ledger spells them.
pub(super) fn field_name(text: &str) -> &'static str {
    const FIELDS: [&str; 11] = [
        "credit",
        "amount",
        "asset",
        "metadata",
        "overdraft",
        "max_balance",
        "debit",
        "hold",
        "reverses",
        "final",
        "expires_in_s",
    ];
    FIELDS.into_iter().find(|field| *field == text).unwrap_or("content")
}
