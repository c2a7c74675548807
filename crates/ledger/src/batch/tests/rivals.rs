//! Refusals and credits that depend on transfers under way.

use super::*;

fn limit(shard: &mut Shard, name: &str, max_balance: i64) {
    let max_balance = Some(Limit::AtMost(max_balance));
    shard.one(Operation::UpdateAccount(UpdateAccount {
        ordered_by: None,
        id: id(name),
        status: None,
        overdraft: None,
        max_balance,
        metadata: None,
    }));
}

fn rich(amount: i64) -> Shard {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    shard.one(Operation::Transfer(transfer(1, "bank", "alice", amount)));
    shard
}

fn hold(n: u128, amount: i64) -> Operation {
    Operation::PlaceHold(PlaceHold {
        ordered_by: None,
        id: TransferId(Uuid::from_u128(n)),
        debit: id("alice"),
        credit: id("bob"),
        asset: usd(),
        amount,
        expires_in_s: None,
        metadata: Metadata::empty(),
    })
}

fn refused_verdict() -> Verdict {
    Verdict::Refused(Refused::credit(Refusal::AccountClosed))
}

#[test]
fn a_want_of_money_that_may_come_back_is_undetermined_and_stores_nothing() {
    for (verdict, is_paid) in [(Verdict::Credited, false), (refused_verdict(), true)] {
        let mut shard = rich(100);
        let rival = reserve(2, "alice", "carol", 60);
        shard.one(Operation::Transfer(rival.clone()));
        let payment = Operation::Transfer(transfer(3, "alice", "bob", 80));
        let undetermined = Outcome::Undetermined(vec![id("carol")]);
        for operation in [payment.clone(), hold(4, 80), Operation::Transfer(reserve(5, "alice", "dora", 80))] {
            assert_eq!(shard.one(operation), undetermined);
        }
        let group = Operation::AtomicTransfers(vec![transfer(6, "alice", "bob", 80)]);
        assert_eq!(shard.one(group), undetermined);
        // More than would come back: a refusal whatever becomes of the rival.
        let too_much = shard.one(Operation::Transfer(transfer(7, "alice", "bob", 101)));
        assert_eq!(refusal(&too_much), Some(Refused::debit(Refusal::InsufficientFunds)));
        // What is there is not touched by the question.
        assert!(is_posted(&shard.one(Operation::Transfer(transfer(8, "alice", "bob", 20)))));

        shard.one(settle(&rival, verdict));
        let outcome = shard.one(payment);
        assert_eq!(is_posted(&outcome), is_paid, "{outcome:?}");
        assert_eq!(refusal(&outcome).is_none(), is_paid, "{outcome:?}");
    }
}

#[test]
fn a_rival_of_the_same_batch_counts_and_one_that_was_taken_back_does_not() {
    let mut shard = rich(100);
    let rival = reserve(2, "alice", "carol", 60);
    let late = transfer(3, "alice", "bob", 80);
    let outcomes = shard.run(&[Operation::Transfer(rival.clone()), Operation::Transfer(late)]);
    assert_eq!(outcomes[1], Outcome::Undetermined(vec![id("carol")]));

    let mut shard = rich(100);
    let dry = Operation::DryRun(Box::new(Operation::Transfer(rival)));
    let outcomes = shard.run(&[dry, Operation::Transfer(transfer(4, "alice", "bob", 101))]);
    assert_eq!(refusal(&outcomes[1]), Some(Refused::debit(Refusal::InsufficientFunds)));
}

#[test]
fn what_a_capture_has_in_transit_was_held_and_is_held_again() {
    let mut shard = rich(100);
    shard.one(hold(2, 60));
    let capture = Transfer {
        purpose: Purpose::Capture { hold: TransferId(Uuid::from_u128(2)), finalize: true, whole: false },
        ..reserve(3, "alice", "bob", 60)
    };
    let pending = shard.one(Operation::Transfer(capture));
    assert!(matches!(pending, Outcome::Transfer(TransferOutcome::Done(_))), "{pending:?}");
    let poor = shard.one(Operation::Transfer(transfer(4, "alice", "bob", 50)));
    assert_eq!(refusal(&poor), Some(Refused::debit(Refusal::InsufficientFunds)));
    // It is posted again, so that a credit may find no room.
    limit(&mut shard, "alice", 100);
    let credit = shard.one(Operation::Transfer(transfer(5, "bank", "alice", 10)));
    assert_eq!(credit, Outcome::Undetermined(vec![id("bob")]));
}

#[test]
fn a_credit_with_room_only_because_money_is_in_transit_waits_only_when_patient() {
    let mut shard = rich(100);
    limit(&mut shard, "alice", 100);
    let rival = reserve(2, "alice", "carol", 60);
    shard.one(Operation::Transfer(rival.clone()));
    let local = Operation::Transfer(transfer(3, "bank", "alice", 50));
    let undetermined = Outcome::Undetermined(vec![id("carol")]);
    assert_eq!(shard.one(local.clone()), undetermined);
    let Operation::Decide(coming) = decide(&reserve(4, "eve", "alice", 50)) else { panic!("decide") };
    let patient = Operation::Decide(Decide { patient: true, ..coming.clone() });
    assert_eq!(shard.one(patient.clone()), undetermined);
    // No room in either case: the refusal does not wait.
    let full = shard.one(Operation::Transfer(transfer(5, "bank", "alice", 61)));
    assert_eq!(refusal(&full), Some(Refused::credit(Refusal::LimitExceeded)));

    shard.one(settle(&rival, refused_verdict()));
    assert_eq!(refusal(&shard.one(local)), Some(Refused::credit(Refusal::LimitExceeded)));
    let Outcome::Decided(decided) = shard.one(patient) else { panic!("a verdict") };
    assert_eq!(decided.verdict, Verdict::Refused(Refused::credit(Refusal::LimitExceeded)));

    let mut shard = rich(100);
    limit(&mut shard, "alice", 100);
    shard.one(Operation::Transfer(rival));
    let Outcome::Decided(decided) = shard.one(Operation::Decide(coming)) else { panic!("a verdict") };
    // Recovery does not wait for another saga. What it decides comes before the rival.
    assert_eq!(decided.verdict, Verdict::Refused(Refused::credit(Refusal::LimitExceeded)));
}

/// The smallest case of a history without a serial order: the credit side passes only because its money is missing, and a later check
/// refuses. With the money back, the credit side refuses first.
#[test]
fn a_refusal_after_the_credit_side_waits_as_well() {
    let mut shard = rich(100);
    limit(&mut shard, "alice", 100);
    shard.one(Operation::Transfer(transfer(2, "alice", "bob", 40)));
    let of = TransferId(Uuid::from_u128(2));
    let reverse = |n| Transfer { purpose: Purpose::Reversal { of, whole: false }, ..transfer(n, "bob", "alice", 40) };
    assert!(is_posted(&shard.one(Operation::Transfer(reverse(3)))));
    shard.one(Operation::Transfer(transfer(4, "bank", "bob", 40)));
    let rival = reserve(5, "alice", "carol", 60);
    shard.one(Operation::Transfer(rival.clone()));

    let local = Operation::Transfer(reverse(6));
    let undetermined = Outcome::Undetermined(vec![id("carol")]);
    assert_eq!(shard.one(local.clone()), undetermined);
    let Operation::Decide(coming) = decide(&reserve(7, "eve", "alice", 50)) else { panic!("decide") };
    let presumed = Some(Refused::whole(Refusal::ExceedsHold));
    let coming = Operation::Decide(Decide { patient: true, presumed, ..coming });
    assert_eq!(shard.one(coming.clone()), undetermined);

    shard.one(settle(&rival, refused_verdict()));
    let full = Refused::credit(Refusal::LimitExceeded);
    assert_eq!(refusal(&shard.one(local)), Some(full));
    let Outcome::Decided(decided) = shard.one(coming) else { panic!("a verdict") };
    assert_eq!(decided.verdict, Verdict::Refused(full));
}

#[test]
fn money_that_has_come_back_in_the_same_batch_is_not_counted_twice() {
    let mut shard = rich(100);
    limit(&mut shard, "alice", 200);
    let rival = reserve(2, "alice", "carol", 60);
    shard.one(Operation::Transfer(rival.clone()));
    let coming = decide(&reserve(3, "eve", "alice", 60));
    let outcomes = shard.run(&[settle(&rival, refused_verdict()), coming]);
    let Outcome::Decided(decided) = &outcomes[1] else { panic!("a verdict: {outcomes:?}") };
    assert_eq!(decided.verdict, Verdict::Credited);
}

#[test]
fn a_credit_does_not_take_the_room_of_one_that_waits() {
    let mut shard = rich(70);
    limit(&mut shard, "alice", 100);
    let rival = reserve(2, "alice", "carol", 50);
    shard.one(Operation::Transfer(rival.clone()));
    let patient = |n, amount| match decide(&reserve(n, "eve", "alice", amount)) {
        Operation::Decide(decide) => Operation::Decide(Decide { patient: true, ..decide }),
        other => other,
    };
    let outcomes = shard.run(&[patient(3, 60), patient(4, 20)]);
    assert_eq!(outcomes, [Outcome::Undetermined(vec![id("carol")]), Outcome::Deferred]);
    let outcomes = shard.run(&[settle(&rival, Verdict::Credited), patient(3, 60), patient(4, 20)]);
    let verdicts: Vec<Verdict> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Decided(decided) => Some(decided.verdict),
            _ => None,
        })
        .collect();
    assert_eq!(verdicts, [Verdict::Credited, Verdict::Credited]);
}

#[test]
fn an_overdraft_that_only_missing_money_needs_is_not_refused_yet() {
    let overdraft = |limit| {
        Operation::UpdateAccount(UpdateAccount {
            ordered_by: None,
            id: id("alice"),
            status: None,
            overdraft: Some(Limit::AtMost(limit)),
            max_balance: None,
            metadata: None,
        })
    };
    let mut shard = rich(10);
    shard.one(overdraft(100));
    let rival = reserve(2, "alice", "carol", 60);
    shard.one(Operation::Transfer(rival.clone()));
    assert_eq!(shard.one(overdraft(0)), Outcome::Undetermined(vec![id("carol")]));
    assert!(matches!(shard.one(overdraft(50)), Outcome::Account(AccountOutcome::Updated(_))));
    shard.one(settle(&rival, refused_verdict()));
    assert!(matches!(shard.one(overdraft(0)), Outcome::Account(AccountOutcome::Updated(_))));
}

/// Otherwise its saga could never end.
#[test]
fn money_that_comes_back_finds_room_in_the_range_of_its_account() {
    let mut shard = rich(100);
    let rival = reserve(2, "alice", "carol", 60);
    shard.one(Operation::Transfer(rival.clone()));
    let fill = i64::MAX - 100;
    let undetermined = Outcome::Undetermined(vec![id("carol")]);
    assert_eq!(shard.one(Operation::Transfer(transfer(3, "bank", "alice", fill + 1))), undetermined);
    let Operation::Decide(coming) = decide(&reserve(4, "eve", "alice", fill + 1)) else { panic!("decide") };
    assert_eq!(shard.one(Operation::Decide(Decide { patient: true, ..coming.clone() })), undetermined);
    let Outcome::Decided(decided) = shard.one(Operation::Decide(coming)) else { panic!("a verdict") };
    assert_eq!(decided.verdict, Verdict::Refused(Refused::credit(Refusal::BalanceOverflow)));
    assert!(is_posted(&shard.one(Operation::Transfer(transfer(5, "bank", "alice", fill)))));
    assert!(matches!(shard.one(settle(&rival, refused_verdict())), Outcome::Settled(_)));
    assert_eq!(shard.posted("alice"), i64::MAX);
}

#[test]
fn a_captures_money_finds_room_among_what_is_held() {
    let mut shard = Shard::with(&["bank", "bob"]);
    let hold_of_bank = |n, amount| match hold(n, amount) {
        Operation::PlaceHold(place) => Operation::PlaceHold(PlaceHold { debit: id("bank"), ..place }),
        other => other,
    };
    shard.one(hold_of_bank(2, i64::MAX));
    let capture = Transfer {
        purpose: Purpose::Capture { hold: TransferId(Uuid::from_u128(2)), finalize: true, whole: true },
        ..reserve(3, "bank", "bob", i64::MAX)
    };
    shard.one(Operation::Transfer(capture.clone()));
    assert_eq!(shard.one(hold_of_bank(4, 1)), Outcome::Undetermined(vec![id("bob")]));
    assert!(matches!(shard.one(settle(&capture, refused_verdict())), Outcome::Settled(_)));
}

#[test]
fn a_replay_is_answered_whatever_is_under_way() {
    let mut shard = rich(100);
    let paid = transfer(2, "alice", "bob", 50);
    shard.one(Operation::Transfer(paid.clone()));
    shard.one(Operation::Transfer(reserve(3, "alice", "carol", 50)));
    let again = shard.one(Operation::Transfer(paid));
    assert!(matches!(again, Outcome::Transfer(TransferOutcome::Done(TransferAnswer { replayed: true, .. }))));
}
