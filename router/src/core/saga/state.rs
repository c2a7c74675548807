//! The states of a saga: a transfer between accounts of different shards.
//!
//! Pure: a state and an event give the next state or an explicit illegal event. Nothing is inferred from time: a deadline is no event, because
//! it proves nothing about what the shards did. A lost answer is no event either: the state stays as it was, and the same step taken again
//! is answered from what is stored.
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
    /// The source recorded the verdict: the final state of the transfer.
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
mod tests {
    use ledger::{Refusal, Refused};

    use super::*;

    const FROZEN: Refused = Refused { refusal: Refusal::AccountFrozen, side: None };
    const CLOSED: Refused = Refused { refusal: Refusal::AccountClosed, side: None };

    fn states() -> Vec<SagaState> {
        vec![
            SagaState::Unreserved,
            SagaState::Reserved,
            SagaState::Credited,
            SagaState::Refused { refused: FROZEN },
            SagaState::Posted { at_us: 7 },
            SagaState::Rejected { refused: FROZEN, at_us: 7 },
        ]
    }

    fn events() -> Vec<Event> {
        let transfers = [
            TransferState::Pending,
            TransferState::Posted { at_us: 7 },
            TransferState::Posted { at_us: 8 },
            TransferState::Rejected { refused: FROZEN, at_us: 7 },
            TransferState::Rejected { refused: CLOSED, at_us: 7 },
        ];
        let verdicts = [Verdict::Credited, Verdict::Refused(FROZEN), Verdict::Refused(CLOSED)];
        let mut events = Vec::from(transfers.map(Event::Stored));
        events.extend(verdicts.map(Event::Decided));
        events.extend(transfers.map(Event::Settled));
        events
    }

    /// How far a saga is. No event may take it back.
    fn progress(state: SagaState) -> u8 {
        match state {
            SagaState::Unreserved => 0,
            SagaState::Reserved => 1,
            SagaState::Credited | SagaState::Refused { .. } => 2,
            SagaState::Posted { .. } | SagaState::Rejected { .. } => 3,
        }
    }

    #[test]
    fn the_way_to_posted_and_the_way_to_rejected() {
        let walk =
            |events: &[Event]| events.iter().fold(SagaState::Unreserved, |state, event| state.next(*event).unwrap());
        assert_eq!(
            walk(&[
                Event::Stored(TransferState::Pending),
                Event::Decided(Verdict::Credited),
                Event::Settled(TransferState::Posted { at_us: 9 }),
            ]),
            SagaState::Posted { at_us: 9 }
        );
        assert_eq!(
            walk(&[
                Event::Stored(TransferState::Pending),
                Event::Decided(Verdict::Refused(FROZEN)),
                Event::Decided(Verdict::Refused(FROZEN)),
                Event::Settled(TransferState::Rejected { refused: FROZEN, at_us: 9 }),
            ]),
            SagaState::Rejected { refused: FROZEN, at_us: 9 }
        );
    }

    #[test]
    fn no_event_takes_a_saga_back() {
        for state in states() {
            for event in events() {
                if let Ok(next) = state.next(event) {
                    assert!(progress(next) >= progress(state), "{state:?} {event:?} {next:?}");
                }
            }
        }
    }

    #[test]
    fn a_verdict_never_changes() {
        for state in states() {
            let Some(verdict) = state.verdict() else { continue };
            for event in events() {
                if let Ok(next) = state.next(event) {
                    assert_eq!(next.verdict(), Some(verdict), "{state:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_but_a_verdict_moves_a_reserved_saga() {
        for event in events() {
            let moved = SagaState::Reserved.next(event);
            assert_eq!(moved.is_ok(), matches!(event, Event::Decided(_)), "{event:?}");
        }
    }

    #[test]
    fn what_has_ended_stays_as_it_is() {
        for state in states().into_iter().filter(|state| state.next_step().is_none()) {
            for event in events() {
                match state.next(event) {
                    Ok(next) => assert_eq!(next, state, "{event:?}"),
                    Err(illegal) => assert_eq!((illegal.state, illegal.event), (state, event)),
                }
            }
        }
    }

    #[test]
    fn repeating_a_step_is_harmless() {
        for state in states() {
            for event in events() {
                // A reserve's answer ends the reserving; every later answer may come twice.
                if matches!(event, Event::Stored(_)) {
                    continue;
                }
                if let Ok(next) = state.next(event) {
                    assert_eq!(next.next(event), Ok(next), "{state:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn money_in_transit_always_has_a_way_on() {
        for (state, step) in [
            (SagaState::Reserved, Step::Decide),
            (SagaState::Credited, Step::Settle),
            (SagaState::Refused { refused: FROZEN }, Step::Compensate),
        ] {
            assert_eq!(state.next_step(), Some(step));
        }
    }

    #[test]
    fn only_the_reserve_can_be_undone() {
        for step in [Step::Decide, Step::Settle, Step::Compensate] {
            assert_eq!(step.undone_by(), None);
        }
        assert_eq!(Step::Reserve.undone_by(), Some(Step::Compensate));
    }
}
