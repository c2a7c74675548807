//! The states of a saga: a transfer between accounts of different shards.
//!
//! Pure: a state and an event give the next state or an explicit illegal event. Nothing is inferred from time: a deadline
//! is no event here, because it says nothing about what the shards did. Nor is a lost answer: the state stays as it was,
//! and the same step taken again is answered from what is stored.
//!
//! ```text
//!            reserve            decide               settle
//! Unreserved ───────> Reserved ─────────> Credited ───────────> Posted
//!      │                 │    (register)
//!      │                 └──────────────> Refused  ───────────> Rejected
//!      └──> Posted · Rejected                       compensate
//! ```

use ledger::{Refused, operation::Verdict, outcome::TransferState};

/// What is known of a saga. Each state holds only what that state needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SagaState {
    /// No reserve is known to be stored.
    Unreserved,
    /// The payer's money is in transit at the source. From here on the saga ends with a verdict and not without one.
    Reserved,
    /// The register says yes: the payee has the money. Only forward from here.
    Credited,
    /// The register says no: the payer gets the money back.
    Refused { refused: Refused },
    /// Final: the money has arrived, and the source knows.
    Posted { at_us: i64 },
    /// Final: refused outright by the debit side, or compensated.
    Rejected { refused: Refused, at_us: i64 },
}

/// What a shard answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The source has the transfer stored, now or from before, in this state.
    Stored(TransferState),
    /// The register's verdict.
    Decided(Verdict),
    /// The source took note of the verdict: the transfer's final state.
    Settled(TransferState),
}

/// An event that the state it came in does not allow. A participant broke the protocol: the saga is left as it is, for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("INV-3: a saga in state {state:?} cannot take {event:?}")]
pub struct IllegalEvent {
    pub state: SagaState,
    pub event: Event,
}

/// A step of a saga. Each is one operation on one shard, idempotent by (transfer id, debit account).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Source: payer to in-transit.
    Reserve,
    /// Destination: the write-once verdict, and in-transit to payee in the same commit.
    Decide,
    /// Source: the transfer is posted.
    Settle,
    /// Source: in-transit back to the payer; the transfer is rejected.
    Compensate,
}

impl Step {
    pub const ALL: [Self; 4] = [Self::Reserve, Self::Decide, Self::Settle, Self::Compensate];

    /// Every step with its compensation, if it has one.
    pub fn undone_by(self) -> Option<Self> {
        match self {
            // Until the verdict the money belongs to neither account, and a refusal sends it back.
            Self::Reserve => Some(Self::Compensate),
            // The verdict is written once. Giving up means writing `refused` before another driver has written `credited`.
            Self::Decide => None,
            // These record a verdict, and it stands.
            Self::Settle | Self::Compensate => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Decide => "decide",
            Self::Settle => "settle",
            Self::Compensate => "compensate",
        }
    }
}

impl SagaState {
    /// What to do next; `None` for a saga that has ended.
    pub fn next_step(self) -> Option<Step> {
        match self {
            Self::Unreserved => Some(Step::Reserve),
            Self::Reserved => Some(Step::Decide),
            Self::Credited => Some(Step::Settle),
            Self::Refused { .. } => Step::Reserve.undone_by(),
            Self::Posted { .. } | Self::Rejected { .. } => None,
        }
    }

    /// The transition function.
    pub fn next(self, event: Event) -> Result<Self, IllegalEvent> {
        match (self, event) {
            // The reserve's answer, or a repeated reserve's: the shard answers both from what it stored.
            (Self::Unreserved, Event::Stored(state)) => Ok(match state {
                TransferState::Pending => Self::Reserved,
                TransferState::Posted { at_us } => Self::Posted { at_us },
                TransferState::Rejected { refused, at_us } => Self::Rejected { refused, at_us },
            }),

            // The verdict can be read any number of times; it never changes.
            (Self::Reserved | Self::Credited, Event::Decided(Verdict::Credited)) => Ok(Self::Credited),
            (Self::Reserved, Event::Decided(Verdict::Refused(refused))) => Ok(Self::Refused { refused }),
            (Self::Refused { refused }, Event::Decided(Verdict::Refused(again))) if again == refused => Ok(self),

            // The end. The source answers a repeated settlement with the time of the first.
            (Self::Credited, Event::Settled(TransferState::Posted { at_us })) => Ok(Self::Posted { at_us }),
            (Self::Refused { refused }, Event::Settled(TransferState::Rejected { refused: stored, at_us }))
                if stored == refused =>
            {
                Ok(Self::Rejected { refused, at_us })
            }
            (Self::Posted { at_us }, Event::Settled(TransferState::Posted { at_us: again })) if again == at_us => {
                Ok(self)
            }
            (
                Self::Rejected { refused, at_us },
                Event::Settled(TransferState::Rejected { refused: stored, at_us: again }),
            ) if (stored, again) == (refused, at_us) => Ok(self),

            (state, event) => Err(IllegalEvent { state, event }),
        }
    }

    /// The verdict, once it is known.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Credited | Self::Posted { .. } => Some(Verdict::Credited),
            Self::Refused { refused } | Self::Rejected { refused, .. } => Some(Verdict::Refused(refused)),
            Self::Unreserved | Self::Reserved => None,
        }
    }

    /// How the transfer stands for its client.
    pub fn transfer_state(self) -> TransferState {
        match self {
            Self::Posted { at_us } => TransferState::Posted { at_us },
            Self::Rejected { refused, at_us } => TransferState::Rejected { refused, at_us },
            Self::Unreserved | Self::Reserved | Self::Credited | Self::Refused { .. } => TransferState::Pending,
        }
    }
}

#[cfg(test)]
mod tests;
