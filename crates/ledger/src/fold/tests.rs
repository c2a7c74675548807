use super::*;
use crate::{
    AssetCode, Limit, Metadata, Refusal, Refused,
    booking::Extra,
    samples::{account_id, booking, capture, leg, number, opening, refusal, with},
};

/// alice at version 3, head 30, with 100 posted and 20 held.
fn alice() -> Account {
    let opened = open_account(&opening("alice", 10)).unwrap();
    Account { posted: 100, held: 20, version: 3, head: Position(30), ..opened }
}

/// alice pays 5.
fn paid() -> Booking {
    Booking { payer_leg: Some(leg(4, 30, 95, 20)), ..booking(40, BookingKind::Posted, 5) }
}

/// What is wrong with a booking of alice, in a word.
fn verdict(edit: impl FnOnce(&mut Booking)) -> &'static str {
    let mut booking = paid();
    edit(&mut booking);
    let mut account = alice();
    let applied = apply_leg(&mut account, &booking, Party::Payer);
    if applied != Ok(true) {
        assert_eq!(account, alice(), "a booking that was not applied changes nothing");
    }
    match applied {
        Ok(true) => "applied",
        Ok(false) => "included",
        Err(FoldError::Version { .. }) => "version",
        Err(FoldError::Chain { .. }) => "chain",
        Err(FoldError::Balance { what, .. } | FoldError::Content { what, .. }) => what,
        Err(FoldError::Hold { .. }) => "hold",
    }
}

fn leg_of(booking: &mut Booking) -> &mut Leg {
    booking.payer_leg.as_mut().unwrap()
}

#[test]
fn a_leg_is_applied_once_and_only_where_it_continues_the_account() {
    type Edit = fn(&mut Booking);
    let table: &[(Edit, &str)] = &[
        (|_| {}, "applied"),
        (|it| it.payer_leg = None, "included"),
        (|it| leg_of(it).version = 3, "included"),
        (|it| leg_of(it).version = 1, "included"),
        (|it| leg_of(it).version = 5, "version"),
        (|it| leg_of(it).previous = Position(29), "chain"),
        (|it| leg_of(it).posted = 96, "posted"),
        (|it| leg_of(it).held = 19, "held"),
        (|it| leg_of(it).overdraft = Limit::ZERO, "another overdraft is in force"),
        (|it| it.amount = 6, "posted"),
        (|it| it.asset = AssetCode::new("EUR").unwrap(), "it is of another asset"),
        (|it| it.kind = BookingKind::Rejected, "its kind has no such leg"),
        (|it| it.extra = capture(7), "held"),
        (|it| (it.extra, leg_of(it).held) = (capture(7), 15), "applied"),
        (|it| (it.kind, leg_of(it).posted) = (BookingKind::Updated, 100), "an update without attributes"),
    ];
    for (number, (edit, expected)) in table.iter().enumerate() {
        assert_eq!(verdict(edit), *expected, "row {number}");
    }
}

#[test]
fn each_kind_changes_what_it_says() {
    use BookingKind::{Compensated, Credited, HoldCaptured, HoldExpired, HoldPlaced, HoldReleased, Posted, Reserved};
    for (kind, party, is_capture, expected) in [
        (Posted, Party::Payer, false, (93, 20)),
        (Posted, Party::Payer, true, (93, 13)),
        (Posted, Party::Payee, false, (107, 20)),
        (Posted, Party::Payee, true, (107, 20)),
        (Reserved, Party::Payer, false, (93, 20)),
        (Reserved, Party::Payer, true, (93, 13)),
        (Compensated, Party::Payer, false, (107, 20)),
        (Compensated, Party::Payer, true, (107, 27)),
        (Credited, Party::Payee, false, (107, 20)),
        (HoldPlaced, Party::Payer, false, (100, 27)),
        (HoldCaptured, Party::Payer, false, (100, 13)),
        (HoldReleased, Party::Payer, false, (100, 13)),
        (HoldExpired, Party::Payer, false, (100, 13)),
    ] {
        let after = Some(leg(4, 30, expected.0, expected.1));
        let mut booking = Booking { extra: if is_capture { capture(7) } else { None }, ..booking(40, kind, 7) };
        match party {
            Party::Payer => booking.payer_leg = after,
            Party::Payee => booking.payee_leg = after,
        }
        let mut account = alice();
        assert_eq!(apply_leg(&mut account, &booking, party), Ok(true), "{kind:?} {party:?}");
        let Account { posted, held, version, head, updated_at_us, .. } = account;
        assert_eq!((posted, held), expected, "{kind:?} {party:?}");
        assert_eq!((version, head, updated_at_us), (4, Position(40), 400));
    }
}

#[test]
fn an_update_changes_attributes_and_no_time_goes_back() {
    let attributes = Attributes { status: crate::AccountStatus::Frozen, max_balance: Limit::AtMost(9) };
    let metadata = Metadata::from_canonical("{\"a\":\"b\"}");
    let extra = Extra { metadata: Some(metadata.clone()), attributes: Some(attributes), ..Extra::default() };
    let update = Booking {
        id: None,
        payee: None,
        at_us: 1,
        payer_leg: Some(Leg { overdraft: Limit::AtMost(3), ..leg(4, 30, 100, 20) }),
        extra: with(extra),
        ..booking(40, BookingKind::Updated, 0)
    };
    let mut account = alice();
    assert_eq!(apply_leg(&mut account, &update, Party::Payer), Ok(true));
    assert_eq!(attributes_of(&account), attributes);
    assert_eq!((account.overdraft, account.metadata), (Limit::AtMost(3), metadata));
    assert_eq!(account.updated_at_us, alice().updated_at_us, "the later time stays");
}

#[test]
fn an_opening_is_complete_and_empty() {
    let opened = open_account(&opening("alice", 10)).unwrap();
    assert_eq!((opened.version, opened.head, opened.posted, opened.held), (1, Position(10), 0, 0));
    type Edit = fn(&mut Booking);
    let content = |error: &FoldError| matches!(error, FoldError::Content { .. });
    let version = |error: &FoldError| matches!(error, FoldError::Version { before: 0, .. });
    let balance = |error: &FoldError| matches!(error, FoldError::Balance { .. });
    type Expected<'e> = &'e dyn Fn(&FoldError) -> bool;
    let table: &[(Edit, Expected<'_>)] = &[
        (|it| it.payer_leg = None, &content),
        (|it| it.extra = None, &content),
        (|it| leg_of(it).version = 2, &version),
        (|it| leg_of(it).previous = Position(9), &version),
        (|it| leg_of(it).posted = 1, &balance),
        (|it| leg_of(it).held = 1, &balance),
    ];
    for (number, (edit, expected)) in table.iter().enumerate() {
        let mut booking = opening("alice", 10);
        edit(&mut booking);
        let error = open_account(&booking).unwrap_err();
        assert!(expected(&error), "row {number}: {error}");
    }
}

#[test]
fn the_in_transit_account_follows_from_the_kind_and_the_position() {
    let opened = open_account(&opening("@in-transit:USD", 10)).unwrap();
    for (kind, position, expected) in [
        (BookingKind::Reserved, 40, Some(7)),
        (BookingKind::Compensated, 40, Some(-7)),
        (BookingKind::Credited, 40, Some(-7)),
        (BookingKind::Posted, 40, None),
        (BookingKind::Settled, 40, None),
        // It is included already.
        (BookingKind::Reserved, 10, None),
        (BookingKind::Reserved, 9, None),
    ] {
        let mut account = opened.clone();
        let applied = apply_in_transit(&mut account, &booking(position, kind, 7));
        assert_eq!(applied, Ok(expected.is_some()), "{kind:?} {position}");
        match expected {
            Some(posted) => {
                assert_eq!((account.posted, account.version, account.head), (posted, 2, Position(position)));
            }
            None => assert_eq!(account, opened),
        }
    }
    let mut full = Account { posted: i64::MAX, ..opened };
    let applied = apply_in_transit(&mut full, &booking(40, BookingKind::Reserved, 1));
    assert!(matches!(applied, Err(FoldError::Content { .. })), "{applied:?}");
}

#[test]
fn a_saga_begins_with_a_reserve_and_ends_with_a_settlement() {
    let key = || TransferKey { id: number(1), debit: account_id("alice") };
    for kind in BookingKind::ALL {
        let expected = match kind {
            BookingKind::Reserved | BookingKind::Presumed => Some(SagaChange::Begun(key())),
            BookingKind::Settled | BookingKind::Compensated | BookingKind::SettledRefused => {
                Some(SagaChange::Ended(key()))
            }
            _ => None,
        };
        assert_eq!(saga_change(&booking(40, kind, 7)), expected, "{kind:?}");
    }
}

// === holds ===

/// A hold of 60 with the number 7, as its booking places it.
fn placed() -> Hold {
    let booking = Booking {
        id: Some(number(7)),
        payer_leg: Some(leg(2, 10, 0, 60)),
        ..booking(20, BookingKind::HoldPlaced, 60)
    };
    place_hold(&booking).unwrap()
}

/// Applies bookings of the hold, each under its id, and returns what remains of it, or what is wrong with the last.
fn play(steps: &[(BookingKind, u128, i64)]) -> Result<(HoldStatus, i64, i64), &'static str> {
    let mut hold = placed();
    for (position, (kind, id, amount)) in (30..).zip(steps) {
        let extra = if kind.role() == Role::HoldEnd { None } else { capture(7) };
        let booking = Booking { id: Some(number(*id)), extra, ..booking(position, *kind, *amount) };
        assert_eq!(hold_key(&booking).map(|key| key.id), Some(number(7)), "{kind:?}");
        let before = hold.clone();
        if let Err(error) = apply_to_hold(&mut hold, &booking) {
            assert_eq!(hold, before, "a booking that was not applied changes nothing");
            let FoldError::Hold { what, .. } = error else { panic!("{error}") };
            return Err(what);
        }
        assert_eq!(hold.ended_at_us, (hold.status != HoldStatus::Held).then_some(position * 10));
    }
    Ok((hold.status, hold.remaining(), hold.captured))
}

#[test]
fn captures_and_ends_of_a_hold() {
    use BookingKind::{Compensated, HoldCaptured, HoldExpired, HoldReleased, Posted, Reserved, Settled};
    let too_much = Err("it captures more than remains, or while another capture is in flight");
    let not_flying = Err("it settles a capture that is not in flight");
    let other_rest = Err("it releases another amount than remains");
    let ended = Err("the hold has ended");
    let held = |remaining, captured| Ok((HoldStatus::Held, remaining, captured));
    for (number, (steps, expected)) in [
        (&[(Posted, 2, 20)][..], held(40, 20)),
        (&[(Posted, 2, 61)], too_much),
        (&[(Posted, 2, 60), (HoldCaptured, 7, 0)], Ok((HoldStatus::Captured, 0, 60))),
        (&[(Posted, 2, 20), (HoldCaptured, 7, 40)], Ok((HoldStatus::Captured, 0, 20))),
        (&[(Posted, 2, 20), (HoldCaptured, 7, 60)], other_rest),
        (&[(HoldReleased, 7, 60)], Ok((HoldStatus::Released, 0, 0))),
        (&[(HoldExpired, 7, 60)], Ok((HoldStatus::Expired, 0, 0))),
        (&[(HoldExpired, 7, 60), (HoldReleased, 7, 0)], ended),
        (&[(HoldReleased, 7, 60), (Posted, 2, 1)], ended),
        (&[(Reserved, 2, 20)], held(40, 0)),
        (&[(Reserved, 2, 20), (Posted, 3, 1)], too_much),
        (&[(Reserved, 2, 20), (Reserved, 3, 1)], too_much),
        (&[(Reserved, 2, 61)], too_much),
        (&[(Reserved, 2, 20), (HoldReleased, 7, 40)], other_rest),
        (&[(Reserved, 2, 20), (Settled, 2, 20)], held(40, 20)),
        (&[(Reserved, 2, 20), (Compensated, 2, 20)], held(60, 0)),
        (&[(Reserved, 2, 20), (Settled, 2, 21)], not_flying),
        (&[(Reserved, 2, 20), (Settled, 3, 20)], not_flying),
        (&[(Compensated, 2, 20)], not_flying),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(play(steps), expected, "row {number}");
    }
}

#[test]
fn a_hold_is_placed_or_rejected_and_its_booking_is_complete() {
    let refused = Refused::debit(Refusal::InsufficientFunds);
    let hold = placed();
    assert_eq!((hold.status, hold.remaining()), (HoldStatus::Held, 60));
    assert_eq!(hold.debit_after.map(|after| (after.held, after.version)), Some((60, 2)));
    let rejected = Booking { extra: refusal(refused), ..booking(20, BookingKind::HoldRejected, 60) };
    let hold = place_hold(&rejected).unwrap();
    assert_eq!((hold.status, hold.ended_at_us), (HoldStatus::Rejected(refused), Some(200)));
    for incomplete in [
        Booking { extra: None, ..rejected.clone() },
        Booking { extra: refusal(refused), ..booking(20, BookingKind::HoldPlaced, 60) },
        Booking { payee: None, ..booking(20, BookingKind::HoldPlaced, 60) },
        booking(20, BookingKind::Posted, 60),
    ] {
        assert!(matches!(place_hold(&incomplete), Err(FoldError::Content { .. })), "{incomplete:?}");
    }
}

#[test]
fn only_bookings_about_a_hold_name_it() {
    for kind in BookingKind::ALL {
        let plain = hold_key(&booking(20, kind, 1)).map(|key| key.id);
        let of_capture = hold_key(&Booking { extra: capture(7), ..booking(20, kind, 1) }).map(|key| key.id);
        let expected = match kind {
            _ if matches!(kind.role(), Role::Hold | Role::HoldEnd) => (Some(number(1)), Some(number(1))),
            BookingKind::Posted | BookingKind::Reserved | BookingKind::Settled | BookingKind::Compensated => {
                (None, Some(number(7)))
            }
            _ => (None, None),
        };
        assert_eq!((plain, of_capture), expected, "{kind:?}");
    }
    let mut hold = placed();
    let placed_again = Booking { id: Some(number(7)), ..booking(20, BookingKind::HoldPlaced, 60) };
    let error = apply_to_hold(&mut hold, &placed_again).unwrap_err();
    assert!(matches!(error, FoldError::Hold { what: "its kind changes no hold", .. }), "{error}");
    let error = apply_to_hold(&mut hold, &booking(20, BookingKind::Opened, 0)).unwrap_err();
    assert!(matches!(error, FoldError::Content { .. }), "{error}");
}

#[test]
fn errors_name_the_invariant_the_booking_and_the_account() {
    let mut account = alice();
    let mut wrong = paid();
    leg_of(&mut wrong).version = 6;
    assert_eq!(
        apply_leg(&mut account, &wrong, Party::Payer).unwrap_err().to_string(),
        "INV-9: booking 40 brings account alice from version 3 to 6"
    );
    let mut wrong = paid();
    leg_of(&mut wrong).posted = 7;
    assert_eq!(
        apply_leg(&mut account, &wrong, Party::Payer).unwrap_err().to_string(),
        "INV-1: booking 40 leaves account alice with 7 minor units posted instead of 95"
    );
}
