//! Holds and their captures, on one shard and from one shard to another.

use super::*;

const MINUTE_US: i64 = 60_000_000;

fn place(n: u128, debit: &str, credit: &str, amount: i64, expires_in_s: Option<u32>) -> PlaceHold {
    PlaceHold {
        ordered_by: None,
        id: TransferId(Uuid::from_u128(n)),
        debit: id(debit),
        credit: id(credit),
        asset: usd(),
        amount,
        expires_in_s,
        metadata: Metadata::empty(),
    }
}

fn key(hold: u128, debit: &str) -> HoldKey {
    HoldKey { id: TransferId(Uuid::from_u128(hold)), debit: id(debit) }
}

/// Of the hold of alice to shop; `None`: all that remains.
fn capture(n: u128, hold: u128, amount: Option<i64>, finalize: bool) -> Transfer {
    let hold = TransferId(Uuid::from_u128(hold));
    Transfer {
        purpose: Purpose::Capture { hold, whole: amount.is_none(), finalize },
        ..transfer(n, "alice", "shop", amount.unwrap_or(0))
    }
}

/// alice has 100; 60 of it are held for shop, for a minute.
fn with_hold(names: &[&str]) -> Shard {
    let mut shard = Shard::with(names);
    shard.one(Operation::Transfer(transfer(1_000, "bank", "alice", 100)));
    let outcome = shard.one(Operation::PlaceHold(place(1, "alice", "shop", 60, Some(60))));
    assert!(
        matches!(outcome, Outcome::Hold(HoldOutcome::Placed(ref answer)) if answer.refused.is_none()),
        "{outcome:?}"
    );
    assert_eq!((shard.posted("alice"), shard.held("alice")), (100, 60));
    shard
}

fn answer(outcome: &Outcome) -> &TransferAnswer {
    match outcome {
        Outcome::Transfer(TransferOutcome::Done(answer)) => answer,
        other => panic!("no answer: {other:?}"),
    }
}

fn status(shard: &Shard) -> HoldStatus {
    shard.journal.hold(&key(1, "alice")).unwrap().status
}

#[test]
fn a_hold_takes_from_what_is_available_and_nothing_from_what_is_posted() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    let short = shard.one(Operation::Transfer(transfer(2, "alice", "shop", 41)));
    assert_eq!(refusal(&short), Some(Refused::debit(Refusal::InsufficientFunds)));
    assert!(is_posted(&shard.one(Operation::Transfer(transfer(3, "alice", "shop", 40)))));
    let Outcome::Hold(HoldOutcome::Placed(refused)) =
        shard.one(Operation::PlaceHold(place(2, "alice", "shop", 1, None)))
    else {
        panic!("placed or refused")
    };
    assert_eq!(refused.refused, Some(Refused::debit(Refusal::InsufficientFunds)));
    let nobody = shard.one(Operation::PlaceHold(place(3, "nobody", "shop", 1, None)));
    assert_eq!(nobody, Outcome::Hold(HoldOutcome::DebitNotFound));
}

#[test]
fn placing_is_replayed_with_the_first_answer_whatever_became_of_the_hold() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    shard.one(Operation::Transfer(capture(2, 1, Some(10), true)));
    let again = shard.one(Operation::PlaceHold(place(1, "alice", "shop", 60, Some(60))));
    let Outcome::Hold(HoldOutcome::Placed(answer)) = again else { panic!("{again:?}") };
    assert!(answer.replayed && answer.refused.is_none());
    assert_eq!(answer.debit_after.unwrap().held, 60);
    for (field, other) in [
        ("amount", place(1, "alice", "shop", 61, Some(60))),
        ("credit", place(1, "alice", "bank", 60, Some(60))),
        ("expires_in_s", place(1, "alice", "shop", 60, None)),
    ] {
        assert_eq!(shard.one(Operation::PlaceHold(other)), Outcome::Hold(HoldOutcome::Mismatch { field }));
    }
}

#[test]
fn captures_post_what_they_take_and_a_final_one_releases_the_rest() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    assert!(is_posted(&shard.one(Operation::Transfer(capture(2, 1, Some(10), false)))));
    assert_eq!((shard.posted("alice"), shard.held("alice"), shard.posted("shop")), (90, 50, 10));
    let too_much = shard.one(Operation::Transfer(capture(3, 1, Some(51), true)));
    assert_eq!(refusal(&too_much), Some(Refused::whole(Refusal::ExceedsHold)));
    assert_eq!(status(&shard), HoldStatus::Held);
    let bookings = shard.journal.bookings().len();
    let last = shard.one(Operation::Transfer(capture(4, 1, Some(20), true)));
    assert_eq!((shard.posted("alice"), shard.held("alice"), shard.posted("shop")), (70, 0, 30));
    assert_eq!(
        shard.entries_since(bookings),
        [("alice", EntryKind::Captured, -20), ("shop", EntryKind::Posted, 20), ("alice", EntryKind::Released, 0)]
    );
    assert_eq!(answer(&last).debit_after.unwrap().held, 0, "as it is after the release");
    assert_eq!(status(&shard), HoldStatus::Captured);
    let late = shard.one(Operation::Transfer(capture(5, 1, None, true)));
    assert_eq!(refusal(&late), Some(Refused::whole(Refusal::HoldCaptured)));
    assert_eq!(answer(&late).amount, 0, "nothing is what remains");
}

#[test]
fn all_that_remains_is_other_content_than_the_same_amount() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    let whole = capture(2, 1, None, true);
    assert_eq!(answer(&shard.one(Operation::Transfer(whole.clone()))).amount, 60);
    let again = shard.one(Operation::Transfer(whole));
    assert_eq!((answer(&again).amount, answer(&again).replayed), (60, true));
    shard.one(Operation::PlaceHold(place(7, "alice", "shop", 1, None)));
    for (field, other) in [
        ("amount", capture(2, 1, Some(60), true)),
        ("final", capture(2, 1, None, false)),
        ("hold", capture(2, 7, None, true)),
        ("hold", transfer(2, "alice", "shop", 60)),
    ] {
        let outcome = shard.one(Operation::Transfer(other));
        assert_eq!(outcome, Outcome::Transfer(TransferOutcome::Mismatch { field }));
    }
    // A hold that there is not goes first, whatever the id was used for.
    for number in [2, 3] {
        let unknown = shard.one(Operation::Transfer(capture(number, 9, None, true)));
        assert_eq!(unknown, Outcome::Transfer(TransferOutcome::HoldNotFound));
    }
}

#[test]
fn the_credit_side_refuses_before_the_hold_does() {
    let mut shard = with_hold(&["bank", "alice"]);
    let both = shard.one(Operation::Transfer(capture(2, 1, Some(61), true)));
    assert_eq!(refusal(&both), Some(Refused::credit(Refusal::AccountNotFound)));
    assert_eq!((status(&shard), shard.held("alice")), (HoldStatus::Held, 60), "the hold is as it was");
}

#[test]
fn a_hold_is_released_once_and_expires_once() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    for replayed in [false, true] {
        let outcome = shard.one(Operation::ReleaseHold(key(1, "alice").into()));
        assert!(
            matches!(outcome, Outcome::Hold(HoldOutcome::Released { replayed: again, .. }) if again == replayed),
            "{outcome:?}"
        );
        assert_eq!((shard.posted("alice"), shard.held("alice")), (100, 0));
    }
    shard.now_us += MINUTE_US;
    assert_eq!(shard.one(Operation::ExpireHold(key(1, "alice"))), Outcome::Hold(HoldOutcome::NotDue));

    let mut shard = with_hold(&["bank", "alice", "shop"]);
    shard.now_us += MINUTE_US - 1;
    assert_eq!(shard.one(Operation::ExpireHold(key(1, "alice"))), Outcome::Hold(HoldOutcome::NotDue));
    shard.now_us += 1;
    for _ in 0..2 {
        assert_eq!(shard.one(Operation::ExpireHold(key(1, "alice"))), Outcome::Hold(HoldOutcome::Expired));
        assert_eq!((shard.posted("alice"), shard.held("alice")), (100, 0));
    }
    assert_eq!(
        shard.one(Operation::ReleaseHold(key(1, "alice").into())),
        Outcome::Hold(HoldOutcome::Refused(Refused::whole(Refusal::HoldExpired)))
    );
    assert_eq!(shard.one(Operation::ReleaseHold(key(8, "alice").into())), Outcome::Hold(HoldOutcome::NotFound));
}

#[test]
fn a_capture_that_meets_a_due_hold_expires_it() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    shard.now_us += MINUTE_US;
    let late = shard.one(Operation::Transfer(capture(2, 1, None, true)));
    assert_eq!(refusal(&late), Some(Refused::whole(Refusal::HoldExpired)));
    assert_eq!((status(&shard), shard.held("alice"), shard.posted("shop")), (HoldStatus::Expired, 0, 0));
}

#[test]
fn a_capture_across_shards_keeps_the_rest_until_the_verdict() {
    let mut source = with_hold(&["bank", "alice"]);
    let mut destination = Shard::with(&["shop"]);
    let paid = Transfer { cross_shard: true, ..capture(2, 1, Some(20), true) };
    source.one(Operation::Transfer(paid.clone()));
    assert_eq!((source.posted("alice"), source.held("alice"), source.in_transit()), (80, 40, 20));
    // Whatever depends on the verdict waits, and the time of the hold with it.
    source.now_us += MINUTE_US;
    assert_eq!(source.one(Operation::Transfer(capture(3, 1, Some(1), true))), Outcome::Deferred);
    assert_eq!(source.one(Operation::ReleaseHold(key(1, "alice").into())), Outcome::Deferred);
    assert_eq!(source.one(Operation::ExpireHold(key(1, "alice"))), Outcome::Hold(HoldOutcome::NotDue));
    let Outcome::Decided(decided) = destination.one(decide(&paid)) else { panic!("a verdict") };
    assert_eq!(decided.verdict, Verdict::Credited);
    for replayed in [false, true] {
        let Outcome::Settled(settled) = source.one(settle(&paid, decided.verdict)) else { panic!("settled") };
        assert_eq!((settled.state.as_str(), settled.replayed), ("posted", replayed));
        assert_eq!(settled.debit_after.unwrap().held, 0, "after the release of the rest");
        assert_eq!((source.posted("alice"), source.held("alice"), source.in_transit()), (80, 0, 20));
    }
    assert_eq!(status(&source), HoldStatus::Captured);
}

#[test]
fn a_capture_refused_elsewhere_leaves_the_hold_as_it_was() {
    let mut source = with_hold(&["bank", "alice"]);
    let paid = Transfer { cross_shard: true, ..capture(2, 1, None, true) };
    assert_eq!(answer(&source.one(Operation::Transfer(paid.clone()))).amount, 60);
    let paid = Transfer { amount: 60, ..paid };
    let refused = Verdict::Refused(Refused::credit(Refusal::AccountClosed));
    for _ in 0..2 {
        source.one(settle(&paid, refused));
        assert_eq!((source.posted("alice"), source.held("alice"), source.in_transit()), (100, 60, 0));
    }
    assert_eq!(status(&source), HoldStatus::Held);
    // And its time goes on.
    source.now_us += MINUTE_US;
    assert_eq!(source.one(Operation::ExpireHold(key(1, "alice"))), Outcome::Hold(HoldOutcome::Expired));
}

/// A credit that would take the room of what may come back is put off.
#[test]
fn a_refused_capture_finds_room_for_its_money() {
    let mut source = with_hold(&["bank", "bank2", "alice"]);
    let paid = Transfer { cross_shard: true, ..capture(2, 1, Some(60), true) };
    source.one(Operation::Transfer(paid.clone()));
    let outcome = source.one(Operation::Transfer(transfer(3, "bank2", "alice", i64::MAX - 99)));
    assert_eq!(outcome, Outcome::Undetermined(vec![paid.credit.clone()]));
    assert!(is_posted(&source.one(Operation::Transfer(transfer(4, "bank2", "alice", i64::MAX - 100)))));
    let refused = Verdict::Refused(Refused::credit(Refusal::AccountClosed));
    let Outcome::Settled(settled) = source.one(settle(&paid, refused)) else { panic!("settled") };
    assert_eq!(settled.state.as_str(), "rejected");
    assert_eq!((source.posted("alice"), source.held("alice"), source.in_transit()), (i64::MAX, 60, 0));
    assert_eq!((status(&source), source.journal.hold(&key(1, "alice")).unwrap().in_flight), (HoldStatus::Held, None));
}

#[test]
fn a_refusal_by_the_hold_waits_for_what_the_credit_side_says() {
    for (names, expected) in [
        (&["shop"][..], Refused::whole(Refusal::ExceedsHold)),
        (&["nobody"][..], Refused::credit(Refusal::AccountNotFound)),
    ] {
        let mut source = with_hold(&["bank", "alice"]);
        let mut destination = Shard::with(names);
        let paid = Transfer { cross_shard: true, ..capture(2, 1, Some(61), true) };
        let pending = source.one(Operation::Transfer(paid.clone()));
        let presumed = answer(&pending).presumed;
        assert_eq!(presumed, Some(Refused::whole(Refusal::ExceedsHold)));
        assert_eq!((source.posted("alice"), source.held("alice"), source.in_transit()), (100, 60, 0));
        // Nothing is in flight: the hold can be used meanwhile.
        assert!(matches!(
            source.one(Operation::Transfer(Transfer { cross_shard: true, ..capture(3, 1, Some(1), false) })),
            Outcome::Transfer(TransferOutcome::Done(TransferAnswer { presumed: None, .. }))
        ));
        let Operation::Decide(ask) = decide(&paid) else { panic!("decide") };
        let Outcome::Decided(decided) = destination.one(Operation::Decide(Decide { presumed, ..ask })) else {
            panic!("a verdict")
        };
        assert_eq!(decided.verdict, Verdict::Refused(expected));
        let Operation::Settle(end) = settle(&paid, decided.verdict) else { panic!("settle") };
        let Outcome::Settled(settled) = source.one(Operation::Settle(Settle { reserved: false, ..end })) else {
            panic!("settled")
        };
        assert_eq!(settled.state, TransferState::Rejected { refused: expected, at_us: T0 });
        assert_eq!((source.posted("alice"), source.held("alice"), source.in_transit()), (99, 59, 1));
    }
}

#[test]
fn frozen_accounts_keep_their_holds_and_closed_ones_have_none() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    let change = |shard: &mut Shard, status| {
        let update = UpdateAccount {
            ordered_by: None,
            id: id("alice"),
            status: Some(status),
            overdraft: None,
            max_balance: None,
            metadata: None,
        };
        match shard.one(Operation::UpdateAccount(update)) {
            Outcome::Account(AccountOutcome::Updated(account)) => Ok(account.status),
            Outcome::Account(AccountOutcome::Refused { refused, .. }) => Err(refused.refusal),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(change(&mut shard, AccountStatus::Frozen), Ok(AccountStatus::Frozen));
    let frozen = Some(Refused::debit(Refusal::AccountFrozen));
    assert_eq!(refusal(&shard.one(Operation::Transfer(capture(2, 1, None, true)))), frozen);
    assert_eq!(change(&mut shard, AccountStatus::Closed), Err(Refusal::AccountNotEmpty));
    assert_eq!(change(&mut shard, AccountStatus::Open), Ok(AccountStatus::Open));
    shard.one(Operation::Transfer(capture(3, 1, Some(60), true)));
    shard.one(Operation::Transfer(reserve(4, "alice", "elsewhere", 40)));
    assert_eq!((shard.posted("alice"), shard.held("alice")), (0, 0));
    assert_eq!(change(&mut shard, AccountStatus::Closed), Err(Refusal::AccountNotEmpty), "the 40 may come back");
    shard.one(settle(&reserve(4, "alice", "elsewhere", 40), Verdict::Credited));
    assert_eq!(change(&mut shard, AccountStatus::Closed), Ok(AccountStatus::Closed));
    let closed = Some(Refused::debit(Refusal::AccountClosed));
    assert_eq!(refusal(&shard.one(Operation::Transfer(capture(5, 1, None, true)))), closed, "before hold_captured");
}

#[test]
fn a_dry_run_says_what_would_happen_and_leaves_nothing() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    let bookings = shard.journal.bookings().len();
    let dry = |operation| Operation::DryRun(Box::new(operation));
    let would = shard.one(dry(Operation::Transfer(transfer(2, "alice", "shop", 40))));
    assert_eq!(answer(&would).debit_after.unwrap().posted, 60);
    assert_eq!(
        refusal(&shard.one(dry(Operation::Transfer(transfer(3, "alice", "shop", 41))))),
        Some(Refused::debit(Refusal::InsufficientFunds))
    );
    shard.one(dry(Operation::PlaceHold(place(2, "alice", "shop", 40, None))));
    shard.one(dry(Operation::Transfer(reserve(4, "alice", "elsewhere", 40))));
    assert_eq!((shard.posted("alice"), shard.held("alice"), shard.journal.bookings().len()), (100, 60, bookings));
    assert!(shard.journal.hold(&key(2, "alice")).is_none());
    // The ids are free, and a used one is what it was.
    assert!(is_posted(&shard.one(Operation::Transfer(transfer(2, "alice", "shop", 1)))));
    assert!(answer(&shard.one(dry(Operation::Transfer(transfer(2, "alice", "shop", 1))))).replayed);
}

#[test]
fn what_is_executed_or_leaves_nothing_stores_no_refusal() {
    let mut shard = with_hold(&["bank", "alice", "shop"]);
    let or_nothing = |operation| Operation::OrNothing(Box::new(operation));
    let bookings = shard.journal.bookings().len();
    let too_much = shard.one(or_nothing(Operation::Transfer(reserve(2, "alice", "elsewhere", 41))));
    let short = Refused::debit(Refusal::InsufficientFunds);
    assert_eq!(too_much, Outcome::Transfer(TransferOutcome::NotStored(short)));
    let unknown = decide(&reserve(4, "other", "nowhere", 5));
    let refused = shard.one(or_nothing(unknown.clone()));
    assert!(matches!(refused, Outcome::Decided(Decided { verdict: Verdict::Refused(_), replayed: false, .. })));
    assert_eq!((shard.posted("alice"), shard.journal.bookings().len()), (100, bookings));

    // The ids are free, what is not refused is booked, and a repetition replays it.
    for replayed in [false, true] {
        let reserved = shard.one(or_nothing(Operation::Transfer(reserve(2, "alice", "elsewhere", 40))));
        assert_eq!(answer(&reserved).state, TransferState::Pending);
        assert_eq!(answer(&reserved).replayed, replayed);
        let credited = shard.one(or_nothing(decide(&reserve(3, "other", "shop", 5))));
        assert!(
            matches!(credited, Outcome::Decided(Decided { verdict: Verdict::Credited, replayed: r, .. }) if r == replayed)
        );
    }
    assert_eq!(shard.posted("shop"), 5);
    // A refusal that was stored before is answered as stored.
    shard.one(unknown.clone());
    assert!(matches!(shard.one(or_nothing(unknown)), Outcome::Decided(Decided { replayed: true, .. })));
    assert!(matches!(shard.one(or_nothing(Operation::ReleaseHold(key(1, "alice").into()))), Outcome::Illegal(_)));
}

/// Neither the reserve of a dry run nor a saga that began and ended in the batch keeps the account from being closed.
#[test]
fn a_dry_run_of_a_reserve_begins_no_saga() {
    let mut shard = Shard::with(&["bank", "alice"]);
    shard.one(Operation::Transfer(transfer(1, "bank", "alice", 40)));
    let would = reserve(2, "alice", "elsewhere", 40);
    let close = UpdateAccount {
        ordered_by: None,
        id: id("alice"),
        status: Some(AccountStatus::Closed),
        overdraft: None,
        max_balance: None,
        metadata: None,
    };
    let outcomes = shard.run(&[
        Operation::DryRun(Box::new(Operation::Transfer(would.clone()))),
        settle(&would, Verdict::Credited),
        Operation::Transfer(transfer(3, "alice", "bank", 40)),
        Operation::UpdateAccount(close),
    ]);
    assert_eq!(answer(&outcomes[0]).state, TransferState::Pending);
    assert!(matches!(outcomes[1], Outcome::Illegal(_)), "it was never reserved: {:?}", outcomes[1]);
    assert!(matches!(outcomes[3], Outcome::Account(AccountOutcome::Updated(_))), "{:?}", outcomes[3]);
}
