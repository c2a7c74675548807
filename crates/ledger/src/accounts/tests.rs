use super::*;
use crate::{
    Metadata, Position,
    booking::Leg,
    samples::{account_id, booking, leg, opening},
};

fn with(names: &[&str]) -> Accounts {
    let mut accounts = Accounts::with_capacity(1 << 20);
    for name in names {
        accounts.learn(account_id(name), None);
    }
    accounts
}

/// Moves 5 from alice to bob.
fn payment(accounts: &Accounts, position: i64) -> Booking {
    let leg_of = |name: &str, amount| {
        let there = accounts.get(&account_id(name)).unwrap();
        fold::leg_after(there, crate::booking::Change { posted: amount, held: 0 })
    };
    Booking {
        id: Some(crate::samples::number(u128::try_from(position).unwrap())),
        payer_leg: Some(leg_of("alice", -5)),
        payee_leg: Some(leg_of("bob", 5)),
        ..booking(position, BookingKind::Posted, 5)
    }
}

fn posted(accounts: &Accounts) -> [Option<(i64, i64)>; 2] {
    ["alice", "bob"].map(|name| accounts.get(&account_id(name)).map(|there| (there.version, there.posted)))
}

#[test]
fn a_batch_that_is_taken_back_leaves_nothing() {
    let mut accounts = with(&["a"]);
    accounts.apply(&opening("a", 1)).unwrap();
    let (changed, undo) = accounts.finish_batch();
    assert!(changed.is_empty(), "the batch inserts the row as the account was opened");
    assert!(accounts.get(&account_id("a")).is_some());
    accounts.revert(undo);
    assert_eq!(accounts.get(&account_id("a")), None);
}

/// Batch n + 1 is decided while batch n commits. When n fails, both are taken back, the later one first.
#[test]
fn two_pipelined_batches_are_taken_back_one_after_the_other() {
    let mut accounts = with(&["alice", "bob"]);
    accounts.apply(&opening("alice", 1)).unwrap();
    accounts.apply(&opening("bob", 2)).unwrap();
    accounts.finish_batch();
    let mut states = vec![posted(&accounts)];
    let mut undos = Vec::new();
    for first in [3, 5] {
        for position in first..first + 2 {
            let payment = payment(&accounts, position);
            accounts.apply(&payment).unwrap();
        }
        let (changed, undo) = accounts.finish_batch();
        let mut bases: Vec<_> =
            changed.iter().map(|it| (it.base_version, it.after.version, it.base_head.0)).collect();
        bases.sort_unstable();
        let base = if first == 3 { [(1, 3, 1), (1, 3, 2)] } else { [(3, 5, 4), (3, 5, 4)] };
        assert_eq!(bases, base, "each account once, however often the batch changed it");
        undos.push(undo);
        states.push(posted(&accounts));
    }
    assert_eq!(states[2], [Some((5, -20)), Some((5, 20))]);
    for expected in [1, 0] {
        accounts.revert(undos.pop().unwrap());
        assert_eq!(posted(&accounts), states[expected]);
    }
    // The next batch continues where the first one began.
    let again = payment(&accounts, 3);
    accounts.apply(&again).unwrap();
    assert_eq!(posted(&accounts), [Some((2, -5)), Some((2, 5))]);
}

#[test]
fn only_the_later_of_two_batches_may_be_taken_back() {
    let mut accounts = with(&["alice", "bob"]);
    accounts.apply(&opening("alice", 1)).unwrap();
    accounts.finish_batch();
    accounts.apply(&opening("bob", 2)).unwrap();
    let paid = payment(&accounts, 3);
    accounts.apply(&paid).unwrap();
    let (_, undo) = accounts.finish_batch();
    accounts.revert(undo);
    assert_eq!(posted(&accounts), [Some((1, 0)), None]);
    // Both accounts stay dirty: alice's row may be older than the first batch.
    let mut tight = Accounts { capacity_bytes: 0, ..accounts };
    tight.evict(1);
    assert_eq!(tight.len(), 2);
}

#[test]
fn the_batch_being_decided_is_abandoned() {
    let mut accounts = with(&["alice", "bob"]);
    accounts.apply(&opening("alice", 1)).unwrap();
    accounts.apply(&opening("bob", 2)).unwrap();
    accounts.finish_batch();
    let before = (posted(&accounts), accounts.batch());
    let paid = payment(&accounts, 3);
    accounts.apply(&paid).unwrap();
    accounts.abandon_batch();
    assert_eq!((posted(&accounts), accounts.batch()), (before.0, before.1 + 1));
}

#[test]
fn a_booking_that_does_not_continue_an_account_is_refused() {
    let mut accounts = with(&["alice", "bob", "@in-transit:USD"]);
    let missing = accounts.apply(&Booking {
        payer_leg: Some(leg(1, 0, -5, 0)),
        payee_leg: None,
        ..booking(1, BookingKind::Posted, 5)
    });
    assert!(matches!(missing, Err(FoldError::Content { what: "the account does not exist", .. })), "{missing:?}");
    accounts.apply(&opening("alice", 1)).unwrap();
    let no_transit =
        accounts.apply(&Booking { payer_leg: Some(leg(2, 1, -5, 0)), ..booking(2, BookingKind::Reserved, 5) });
    assert!(matches!(no_transit, Err(FoldError::Content { .. })), "{no_transit:?}");
    let gap = accounts.apply(&Booking {
        payer_leg: Some(Leg { previous: Position(7), ..leg(4, 7, -5, 0) }),
        ..booking(8, BookingKind::Posted, 5)
    });
    assert!(matches!(gap, Err(FoldError::Version { .. })), "{gap:?}");
}

#[test]
fn only_accounts_that_are_folded_are_evicted() {
    let mut accounts = Accounts { capacity_bytes: 0, ..with(&[]) };
    for (name, position) in ["a", "b", "c"].into_iter().zip(1..) {
        accounts.learn(account_id(name), None);
        accounts.apply(&opening(name, position)).unwrap();
        accounts.finish_batch();
    }
    accounts.evict(0);
    assert_eq!(accounts.len(), 3, "none is folded");
    accounts.evict(2);
    assert_eq!(accounts.len(), 1, "the first two batches are folded");
    assert!(accounts.is_known(&account_id("c")));
}

#[test]
fn memory_is_counted_once_however_often_accounts_change() {
    let mut accounts = Accounts { capacity_bytes: 0, ..with(&[]) };
    for (name, position) in ["a", "b"].into_iter().zip(1..) {
        accounts.learn(account_id(name), None);
        let absent = accounts.bytes();
        let mut opened = opening(name, position);
        opened.extra.as_mut().unwrap().metadata = Some(Metadata::from_canonical("{\"a\":\"b\"}"));
        accounts.apply(&opened).unwrap();
        let opened_bytes = accounts.bytes();
        assert_eq!(opened_bytes, absent + "{\"a\":\"b\"}".len());
        accounts.finish_batch();
        let before = accounts.get(&account_id(name)).unwrap().clone();
        let update = Booking {
            payer: account_id(name),
            payer_leg: Some(fold::leg_after(&before, Default::default())),
            ..Booking { kind: BookingKind::Updated, position: Position(position + 10), ..opening(name, 9) }
        };
        accounts.apply(&update).unwrap();
        assert_eq!(accounts.bytes(), absent);
        accounts.abandon_batch();
        assert_eq!(accounts.bytes(), opened_bytes);
        let snapshot = accounts.snapshot([account_id(name)].iter());
        accounts.apply(&update).unwrap();
        accounts.restore(snapshot);
        assert_eq!(accounts.bytes(), opened_bytes);
        accounts.finish_batch();
    }
    accounts.evict(accounts.batch());
    assert_eq!((accounts.len(), accounts.bytes()), (0, 0));
}

#[test]
fn what_memory_knows_is_never_replaced_by_an_older_row() {
    let mut accounts = with(&["a"]);
    accounts.apply(&opening("a", 1)).unwrap();
    accounts.learn(account_id("a"), None);
    assert!(accounts.get(&account_id("a")).is_some());
    accounts.forget_all();
    assert!(accounts.is_empty() && !accounts.is_known(&account_id("a")) && accounts.bytes() == 0);
    let row = fold::open_account(&opening("a", 1)).unwrap();
    accounts.learn(account_id("a"), Some(row.clone()));
    assert_eq!(accounts.get(&account_id("a")), Some(&row));
}
