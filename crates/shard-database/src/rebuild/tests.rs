use ledger::{AssetCode, BookingKind, Refusal, Refused, booking::Extra};

use super::*;

fn booking(kind: BookingKind, amount: i64) -> Booking {
    Booking {
        ordered_by: None,
        position: Position(1),
        kind,
        id: Some(TransferId(Uuid::from_u128(1))),
        payer: AccountId::any("alice").unwrap(),
        payee: Some(AccountId::any("bob").unwrap()),
        asset: AssetCode::new("USD").unwrap(),
        amount,
        at_us: 0,
        payer_leg: None,
        payee_leg: None,
        extra: None,
    }
}

#[test]
fn reversals_are_judged_by_their_original() {
    let reversed = |sum, payer: &str| Reversed { sum, payer: AccountId::any(payer).unwrap() };
    let refused = Extra { refused: Some(Refused::credit(Refusal::AccountClosed)), ..Extra::default() };
    let compensated = Booking { extra: Some(Box::new(refused)), ..booking(BookingKind::Compensated, 50) };
    let posted = || vec![booking(BookingKind::Posted, 50)];
    let reserved = || booking(BookingKind::Reserved, 50);
    for (bookings, reversed, expected) in [
        (posted(), reversed(50, "bob"), true),
        (vec![reserved(), booking(BookingKind::Settled, 50)], reversed(50, "bob"), true),
        (posted(), reversed(51, "bob"), false),
        (posted(), reversed(50, "carol"), false),
        (vec![], reversed(50, "bob"), false),
        (vec![reserved()], reversed(50, "bob"), false),
        (vec![reserved(), compensated], reversed(50, "bob"), false),
        (vec![booking(BookingKind::Settled, 50)], reversed(50, "bob"), false),
    ] {
        assert_eq!(judge_reversals(&bookings, &reversed).is_ok(), expected, "{bookings:?} {reversed:?}");
    }
}

#[test]
fn slots_follow_from_the_accounts() {
    let posted = booking(BookingKind::Posted, 5);
    let (payer, payee) = (slot_column(&posted.payer), slot_column(posted.payee.as_ref().unwrap()));
    let found = |booking: &Booking, slots| {
        let mut found = Vec::new();
        check_slots(booking, slots, &mut |difference| found.push(difference.subject));
        found
    };
    assert_eq!(found(&posted, (payer, payee)), Vec::<String>::new());
    assert_eq!(found(&posted, (payer + 1, payee)), ["alice"]);
    assert_eq!(found(&posted, (payer, -1)), ["bob"]);
    let marker = Booking::marker(Position(1), 0);
    assert_eq!(found(&marker, (-1, -1)), Vec::<String>::new());
}
