use std::collections::BTreeMap;

use uuid::Uuid;

use self::shard::{Shard, T0};
use super::*;
use crate::{
    AccountStatus, EntryKind, Hold, HoldStatus, Side,
    booking::Role,
    operation::{Decide, PlaceHold, Purpose, Settle, UpdateAccount, Verdict},
    outcome::{AccountOutcome, AtomicOutcome, Decided, HoldOutcome, TransferAnswer, TransferOutcome, TransferState},
};

mod erasure;
mod holds;
mod openings;
mod optimism;
mod reversals;
mod rivals;
mod shard;

fn usd() -> AssetCode {
    AssetCode::new("USD").unwrap()
}

fn id(text: &str) -> AccountId {
    AccountId::client(text).unwrap()
}

fn transfer(n: u128, debit: &str, credit: &str, amount: i64) -> Transfer {
    Transfer {
        ordered_by: None,
        id: TransferId(Uuid::from_u128(n)),
        debit: id(debit),
        credit: id(credit),
        asset: usd(),
        amount,
        metadata: Metadata::empty(),
        purpose: Purpose::Payment,
        cross_shard: false,
        defer_insufficient: false,
        defer_limited: false,
    }
}

fn reserve(n: u128, debit: &str, credit: &str, amount: i64) -> Transfer {
    Transfer { cross_shard: true, ..transfer(n, debit, credit, amount) }
}

fn decide(of: &Transfer) -> Operation {
    Operation::Decide(Decide {
        ordered_by: None,
        id: of.id,
        debit: of.debit.clone(),
        credit: of.credit.clone(),
        asset: of.asset,
        amount: of.amount,
        purpose: of.purpose,
        presumed: None,
        defer_limited: false,
        patient: false,
    })
}

fn cancel(of: &Transfer) -> Operation {
    match decide(of) {
        Operation::Decide(decide) => {
            Operation::Decide(Decide { presumed: Some(Refused::whole(Refusal::Cancelled)), ..decide })
        }
        other => other,
    }
}

fn settle(of: &Transfer, verdict: Verdict) -> Operation {
    Operation::Settle(Settle {
        id: of.id,
        debit: of.debit.clone(),
        credit: of.credit.clone(),
        asset: of.asset,
        amount: of.amount,
        purpose: of.purpose,
        reserved: true,
        verdict,
    })
}

fn refusal(outcome: &Outcome) -> Option<Refused> {
    match outcome {
        Outcome::Transfer(TransferOutcome::Done(TransferAnswer {
            state: TransferState::Rejected { refused, .. },
            ..
        })) => Some(*refused),
        _ => None,
    }
}

fn is_posted(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Transfer(TransferOutcome::Done(TransferAnswer { state: TransferState::Posted { .. }, .. }))
    )
}

#[test]
fn a_local_transfer_moves_money_and_chains_entries() {
    let mut shard = Shard::with(&["bank", "alice"]);
    let outcome = shard.one(Operation::Transfer(transfer(1, "bank", "alice", 100)));
    assert!(is_posted(&outcome));
    assert_eq!((shard.posted("bank"), shard.posted("alice")), (-100, 100));
    for name in ["bank", "alice"] {
        let account = shard.accounts.get(&id(name)).unwrap();
        let mut at = account.head;
        for version in (1..=account.version).rev() {
            let booking = shard.journal.bookings().iter().find(|booking| booking.position == at).unwrap();
            let (_, _, leg) = booking.legs().find(|(_, leg_of, _)| leg_of.as_str() == name).unwrap();
            assert_eq!(leg.version, version);
            at = leg.previous;
        }
        assert_eq!(at, Position::NONE);
    }
}

#[test]
fn a_replay_repeats_the_answer_and_a_changed_field_is_named() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    let first = transfer(1, "bank", "alice", 100);
    let once = shard.one(Operation::Transfer(first.clone()));
    let twice = shard.one(Operation::Transfer(first.clone()));
    let (Outcome::Transfer(TransferOutcome::Done(a)), Outcome::Transfer(TransferOutcome::Done(b))) = (once, twice)
    else {
        panic!("both are answered")
    };
    assert_eq!(TransferAnswer { replayed: true, ..a }, b);
    assert_eq!(shard.posted("alice"), 100);
    let changed = [
        ("credit", Transfer { credit: id("bob"), ..first.clone() }),
        ("amount", Transfer { amount: 101, ..first.clone() }),
        ("asset", Transfer { asset: AssetCode::new("EUR").unwrap(), ..first.clone() }),
        ("metadata", Transfer { metadata: Metadata::from_canonical("{\"a\":\"b\"}"), ..first.clone() }),
    ];
    for (field, changed) in changed {
        let outcome = shard.one(Operation::Transfer(changed));
        assert_eq!(outcome, Outcome::Transfer(TransferOutcome::Mismatch { field }));
    }
    // Another debit account is another transfer.
    assert!(is_posted(&shard.one(Operation::Transfer(transfer(1, "alice", "bob", 1)))));
}

#[test]
fn refusals_are_frozen_and_an_unknown_debit_leaves_the_id_free() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    let poor = transfer(1, "alice", "bob", 5);
    let refused = Some(Refused::debit(Refusal::InsufficientFunds));
    assert_eq!(refusal(&shard.one(Operation::Transfer(poor.clone()))), refused);
    shard.one(Operation::Transfer(transfer(2, "bank", "alice", 100)));
    assert_eq!(refusal(&shard.one(Operation::Transfer(poor))), refused);
    let unknown = transfer(3, "carol", "bob", 5);
    let outcome = shard.one(Operation::Transfer(unknown.clone()));
    assert_eq!(outcome, Outcome::Transfer(TransferOutcome::DebitNotFound));
    assert!(shard.journal.transfer(&unknown.key()).is_none());
    let outcome = shard.one(Operation::Transfer(transfer(4, "alice", "carol", 5)));
    assert_eq!(refusal(&outcome), Some(Refused::credit(Refusal::AccountNotFound)));
}

#[test]
fn a_saga_is_credited_once_and_a_late_credit_after_cancel_does_nothing() {
    let mut source = Shard::with(&["bank"]);
    let mut destination = Shard::with(&["alice"]);
    let paid = reserve(1, "bank", "alice", 70);
    source.one(Operation::Transfer(paid.clone()));
    assert_eq!((source.posted("bank"), source.in_transit()), (-70, 70));
    for replayed in [false, true] {
        let Outcome::Decided(decided) = destination.one(decide(&paid)) else { panic!("a verdict") };
        assert_eq!((decided.verdict, decided.replayed), (Verdict::Credited, replayed));
    }
    assert_eq!((destination.posted("alice"), destination.in_transit()), (70, -70));
    // Too late to cancel: the verdict stands.
    let Outcome::Decided(decided) = destination.one(cancel(&paid)) else { panic!("a verdict") };
    assert_eq!(decided.verdict, Verdict::Credited);
    for replayed in [false, true] {
        let Outcome::Settled(settled) = source.one(settle(&paid, Verdict::Credited)) else { panic!("settled") };
        assert_eq!((settled.state.as_str(), settled.replayed), ("posted", replayed));
    }
    assert_eq!(source.posted("bank"), -70);

    let given_up = reserve(2, "bank", "alice", 5);
    source.one(Operation::Transfer(given_up.clone()));
    destination.one(cancel(&given_up));
    let Outcome::Decided(late) = destination.one(decide(&given_up)) else { panic!("a verdict") };
    assert_eq!(late.verdict, Verdict::Refused(Refused::whole(Refusal::Cancelled)));
    assert_eq!(destination.posted("alice"), 70);
    for _ in 0..2 {
        source.one(settle(&given_up, late.verdict));
        assert_eq!((source.posted("bank"), source.in_transit()), (-70, 70));
    }
    let opposite = source.one(settle(&given_up, Verdict::Credited));
    assert!(matches!(opposite, Outcome::Illegal(_)), "{opposite:?}");
}

#[test]
fn an_atomic_group_leaves_nothing_behind_when_one_item_fails() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    let bookings = shard.journal.bookings().len();
    let group =
        vec![transfer(1, "bank", "alice", 10), transfer(2, "alice", "bob", 11), transfer(3, "bank", "bob", 1)];
    let outcome = shard.one(Operation::AtomicTransfers(group.clone()));
    let failed = TransferOutcome::NotStored(Refused::whole(Refusal::BatchFailed));
    let culprit = TransferOutcome::NotStored(Refused::debit(Refusal::InsufficientFunds));
    let items = vec![failed.clone(), culprit, failed];
    assert_eq!(outcome, Outcome::Atomic(AtomicOutcome { items, culprit: Some(1) }));
    assert_eq!((shard.posted("alice"), shard.journal.bookings().len()), (0, bookings));
    assert_eq!(shard.journal.keys(Role::Transfer).len(), 0);
    // The ids stayed free, and the accounts as they were.
    let outcome = shard.one(Operation::AtomicTransfers(vec![group[0].clone(), transfer(2, "alice", "bob", 10)]));
    assert!(matches!(outcome, Outcome::Atomic(AtomicOutcome { culprit: None, .. })), "{outcome:?}");
    assert_eq!((shard.posted("alice"), shard.posted("bob")), (0, 10));
}

#[test]
fn within_a_request_what_depends_on_a_deferred_item_is_deferred_too() {
    let mut shard = Shard::with(&["bank", "alice", "bob", "carol"]);
    let waits = Transfer { defer_insufficient: true, ..transfer(1, "alice", "bob", 10) };
    let operations = [
        Operation::Transfer(waits),
        Operation::Transfer(transfer(2, "bank", "alice", 10)),
        Operation::Transfer(transfer(3, "bank", "carol", 10)),
    ];
    let outcomes = shard.run_in_group(7, &operations);
    assert_eq!(outcomes[0], Outcome::Deferred);
    assert_eq!(outcomes[1], Outcome::Deferred, "it would give alice the money that item 1 was to be judged without");
    // bank is now waited for as well, being part of item 2.
    assert_eq!(outcomes[2], Outcome::Deferred);
    assert_eq!(shard.journal.keys(Role::Transfer).len(), 0);
}

#[test]
fn credits_that_may_be_out_of_turn_wait_only_where_there_is_a_limit() {
    for limit in [Limit::Unlimited, Limit::AtMost(1_000)] {
        let mut shard = Shard::with(&["bank", "alice"]);
        let update = UpdateAccount {
            ordered_by: None,
            id: id("alice"),
            status: None,
            overdraft: None,
            max_balance: Some(limit),
            metadata: None,
        };
        shard.one(Operation::UpdateAccount(update));
        let waits = limit != Limit::Unlimited;
        let local = Transfer { defer_limited: true, ..transfer(1, "bank", "alice", 5) };
        let outcome = &shard.run_in_group(7, &[Operation::Transfer(local)])[0];
        assert_eq!(*outcome == Outcome::Deferred, waits, "{outcome:?}");
        let Operation::Decide(ask) = decide(&reserve(2, "bob", "alice", 5)) else { panic!("decide") };
        let outcome = shard.one(Operation::Decide(Decide { defer_limited: true, ..ask }));
        assert_eq!(outcome == Outcome::Deferred, waits, "{outcome:?}");
        assert_eq!(shard.posted("alice"), if waits { 0 } else { 10 });
    }
}

#[test]
fn a_refusal_of_the_credit_side_is_written_to_the_register() {
    let mut destination = Shard::with(&["alice"]);
    let paid = reserve(1, "bank", "nobody", 70);
    let Outcome::Decided(decided) = destination.one(decide(&paid)) else { panic!("a verdict") };
    let Verdict::Refused(refused) = decided.verdict else { panic!("refused") };
    assert_eq!((refused.refusal, refused.side), (Refusal::AccountNotFound, Some(Side::Credit)));
}

#[test]
fn unlimited_accounts_cannot_leave_the_range_of_the_ledger() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    assert!(is_posted(&shard.one(Operation::Transfer(transfer(1, "bank", "alice", i64::MAX)))));
    let over = shard.one(Operation::Transfer(transfer(2, "bank", "bob", i64::MAX)));
    assert_eq!(refusal(&over), Some(Refused::debit(Refusal::BalanceOverflow)));
}

#[test]
fn an_account_that_pays_itself_is_illegal_and_keeps_its_books() {
    let mut shard = Shard::with(&["bank", "alice"]);
    shard.one(Operation::Transfer(transfer(1, "bank", "alice", 5)));
    let outcome = shard.one(Operation::Transfer(transfer(2, "alice", "alice", 5)));
    assert!(matches!(outcome, Outcome::Illegal(_)), "{outcome:?}");
    assert_eq!(shard.posted("alice"), 5);
}

#[test]
fn a_full_in_transit_account_refuses_instead_of_breaking_the_saga() {
    let mut source = Shard::with(&["bank", "alice"]);
    assert!(refusal(&source.one(Operation::Transfer(reserve(1, "bank", "bob", i64::MAX)))).is_none());
    let over = source.one(Operation::Transfer(reserve(2, "alice", "bob", 1)));
    assert_eq!(
        refusal(&over).map(|refused| refused.refusal),
        Some(Refusal::InsufficientFunds),
        "the payer comes first"
    );
    source.run(&[Operation::Transfer(transfer(3, "bank", "alice", 1))]);
    // Presumed: the credit side, which lives elsewhere, may have a refusal that goes first.
    let Outcome::Transfer(TransferOutcome::Done(over)) =
        source.one(Operation::Transfer(reserve(4, "alice", "bob", 1)))
    else {
        panic!("not stored")
    };
    assert_eq!((over.state, over.presumed), (TransferState::Pending, Some(Refused::whole(Refusal::BalanceOverflow))));
    assert_eq!(source.posted("alice"), 1);

    let mut destination = Shard::with(&["bank", "alice"]);
    let verdict = |outcome: &Outcome| match outcome {
        Outcome::Decided(decided) => decided.verdict,
        other => panic!("no verdict: {other:?}"),
    };
    // The least a balance can be is one more than the most.
    for (n, payee, amount) in [(5, "alice", i64::MAX), (6, "bank", 1)] {
        assert_eq!(verdict(&destination.one(decide(&reserve(n, "carol", payee, amount)))), Verdict::Credited);
    }
    let refused = verdict(&destination.one(decide(&reserve(7, "carol", "bank", 1))));
    assert_eq!(refused, Verdict::Refused(Refused::whole(Refusal::BalanceOverflow)));
}
