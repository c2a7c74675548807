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
