use super::*;
use crate::{
    Position, Refusal,
    booking::Extra,
    samples::{account_id, booking, capture, leg, number, refusal, with},
};

fn refused() -> Refused {
    Refused::credit(Refusal::AccountClosed)
}

fn first(kind: BookingKind) -> Booking {
    let payer_leg = matches!(kind, BookingKind::Posted | BookingKind::Reserved).then(|| leg(2, 1, -5, 0));
    Booking { payer_leg, ..booking(20, kind, 5) }
}

fn state(first: &Booking, settlement: Option<&Booking>) -> Option<TransferState> {
    StoredTransfer::of(first, settlement, None).ok().map(|stored| stored.state)
}

#[test]
fn a_transfer_is_its_first_answer_and_its_settlement() {
    let posted_at = |at_us| Some(TransferState::Posted { at_us });
    let rejected_at = |at_us| Some(TransferState::Rejected { refused: refused(), at_us });
    let settled = booking(30, BookingKind::Settled, 5);
    let compensated = Booking { extra: refusal(refused()), ..booking(30, BookingKind::Compensated, 5) };
    let settled_refused = Booking { extra: refusal(refused()), ..booking(30, BookingKind::SettledRefused, 5) };
    let rejected = Booking { extra: refusal(refused()), ..first(BookingKind::Rejected) };
    let presumed = Booking { extra: refusal(Refused::whole(Refusal::ExceedsHold)), ..first(BookingKind::Presumed) };
    let (posted, reserved) = (first(BookingKind::Posted), first(BookingKind::Reserved));
    let unsaid = booking(30, BookingKind::Compensated, 5);
    for (first, settlement, expected) in [
        (&posted, None, posted_at(200)),
        (&rejected, None, rejected_at(200)),
        (&reserved, None, Some(TransferState::Pending)),
        (&presumed, None, Some(TransferState::Pending)),
        (&reserved, Some(&settled), posted_at(300)),
        (&reserved, Some(&compensated), rejected_at(300)),
        (&presumed, Some(&settled_refused), rejected_at(300)),
        // These are not the bookings of one transfer.
        (&posted, Some(&settled), None),
        (&rejected, Some(&settled), None),
        (&settled, None, None),
        (&reserved, Some(&posted), None),
        (&reserved, Some(&unsaid), None),
        (&booking(20, BookingKind::Rejected, 5), None, None),
        (&Booking { payee: None, ..first(BookingKind::Posted) }, None, None),
    ] {
        assert_eq!(state(first, settlement), expected, "{:?} {settlement:?}", first.kind);
    }
    let pending = StoredTransfer::of(&presumed, None, None).unwrap();
    assert_eq!(pending.presumed, Some(Refused::whole(Refusal::ExceedsHold)));
    assert!(!pending.reserved() && pending.cross_shard);
    let pending = StoredTransfer::of(&reserved, None, None).unwrap();
    assert!(pending.reserved() && pending.cross_shard);
    assert!(!StoredTransfer::of(&rejected, None, None).unwrap().cross_shard);
    let far = Extra { cross_shard: true, refused: Some(refused()), ..Extra::default() };
    let far = Booking { extra: with(far), ..first(BookingKind::Rejected) };
    assert!(StoredTransfer::of(&far, None, None).unwrap().cross_shard);
}

#[test]
fn the_answer_shows_the_balances_after_the_last_booking_of_the_transfer() {
    let version = |first: &Booking, settlement: Option<&Booking>, answer: Option<&Leg>| {
        StoredTransfer::of(first, settlement, answer).unwrap().debit_after.map(|after| after.version)
    };
    let posted = first(BookingKind::Posted);
    assert_eq!((answer_of(&posted, None), version(&posted, None, None)), (None, Some(2)));
    let released = leg(3, 20, -5, 0);
    let answered = Extra { answer: Some(Position(21)), ..*capture(7).unwrap() };
    let captured = Booking { extra: with(answered), ..first(BookingKind::Posted) };
    assert_eq!(answer_of(&captured, None), Some(Position(21)));
    assert_eq!(version(&captured, None, Some(&released)), Some(3));
    let later = Extra { answer: Some(Position(31)), ..*capture(7).unwrap() };
    let settled = Booking { extra: with(later), ..booking(30, BookingKind::Settled, 5) };
    let reserved = first(BookingKind::Reserved);
    assert_eq!(answer_of(&reserved, Some(&settled)), Some(Position(31)));
    assert_eq!(version(&reserved, Some(&settled), None), Some(2));
    let rejected = Booking { extra: refusal(refused()), ..first(BookingKind::Rejected) };
    assert_eq!(version(&rejected, None, None), None);
}

#[test]
fn a_register_is_a_verdict() {
    let credited = StoredRegister::of(&booking(20, BookingKind::Credited, 5)).unwrap();
    assert_eq!((credited.verdict, credited.amount, credited.decided_at_us), (Verdict::Credited, 5, 200));
    assert_eq!(credited.credit, account_id("bob"));
    let no = Booking { extra: refusal(refused()), ..booking(20, BookingKind::Refused, 5) };
    assert_eq!(StoredRegister::of(&no).unwrap().verdict, Verdict::Refused(refused()));
    for wrong in [
        booking(20, BookingKind::Refused, 5),
        booking(20, BookingKind::Posted, 5),
        Booking { payee: None, ..booking(20, BookingKind::Credited, 5) },
    ] {
        assert!(StoredRegister::of(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn only_money_that_arrived_can_be_reversed() {
    let original =
        |state| Original { credit: account_id("bob"), asset: crate::samples::usd(), amount: 50, state, reversed: 20 };
    assert_eq!(original(TransferState::Posted { at_us: 1 }).reversible(), 30);
    assert_eq!(original(TransferState::Pending).reversible(), 0);
    assert_eq!(original(TransferState::Rejected { refused: refused(), at_us: 1 }).reversible(), 0);
}

#[test]
fn a_hold_that_has_ended_is_its_first_answer_and_its_end() {
    let placed = Booking {
        id: Some(number(7)),
        payer_leg: Some(leg(2, 1, 0, 60)),
        ..booking(20, BookingKind::HoldPlaced, 60)
    };
    let end = |kind, rest, captured| Booking {
        id: Some(number(7)),
        extra: with(Extra { captured: Some(captured), ..Extra::default() }),
        ..booking(30, kind, rest)
    };
    for (kind, status) in [
        (BookingKind::HoldCaptured, HoldStatus::Captured),
        (BookingKind::HoldReleased, HoldStatus::Released),
        (BookingKind::HoldExpired, HoldStatus::Expired),
    ] {
        let hold = ended_hold(&placed, Some(&end(kind, 40, 20))).unwrap();
        assert_eq!((hold.status, hold.captured, hold.ended_at_us), (status, 20, Some(300)));
        assert_eq!(hold.debit_after.map(|after| after.held), Some(60), "as the first answer said");
    }
    let rejected = Booking { extra: refusal(refused()), ..booking(20, BookingKind::HoldRejected, 60) };
    assert_eq!(ended_hold(&rejected, None).unwrap().status, HoldStatus::Rejected(refused()));
    for (first, end) in [
        // It is open.
        (&placed, None),
        (&placed, Some(booking(30, BookingKind::Posted, 60))),
        (&placed, Some(end(BookingKind::HoldCaptured, 41, 20))),
        (&rejected, Some(end(BookingKind::HoldReleased, 0, 0))),
    ] {
        assert!(ended_hold(first, end.as_ref()).is_err(), "{end:?}");
    }
}
