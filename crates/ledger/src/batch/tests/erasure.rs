//! Erasing metadata.

use super::*;
use crate::{
    operation::{EraseMetadata, Erased},
    outcome::MetadataErased,
};

fn note(text: &str) -> Metadata {
    Metadata::from_map(&BTreeMap::from([("note".to_owned(), text.to_owned())])).unwrap()
}

fn erase(of: Erased, n: u128, debit: &str, at: &str) -> Operation {
    let (id, debit, at) = (TransferId(Uuid::from_u128(n)), id(debit), id(at));
    Operation::EraseMetadata(EraseMetadata { of, id, debit, at, credit: None, ordered_by: None })
}

/// An erasure at the debit account's shard that names the credit account.
fn erase_of_both(n: u128, debit: &str, credit: &str) -> Operation {
    let (erased, debit, credit) = (TransferId(Uuid::from_u128(n)), id(debit), Some(id(credit)));
    let (of, at) = (Erased::Transfer, debit.clone());
    Operation::EraseMetadata(EraseMetadata { of, id: erased, debit, at, credit, ordered_by: None })
}

fn erased(outcome: &Outcome) -> MetadataErased {
    match outcome {
        Outcome::MetadataErased(erased) => *erased,
        other => panic!("not an answer to an erasure: {other:?}"),
    }
}

/// A hold of bank for alice, with metadata.
fn place(n: u128) -> PlaceHold {
    PlaceHold {
        ordered_by: None,
        id: TransferId(Uuid::from_u128(n)),
        debit: id("bank"),
        credit: id("alice"),
        asset: usd(),
        amount: 5,
        expires_in_s: None,
        metadata: note("held"),
    }
}

/// The texts of metadata in the journal.
fn texts(shard: &Shard) -> Vec<String> {
    let bookings = shard.journal.bookings().iter().map(Booking::metadata);
    bookings.filter(Metadata::has_text).map(|metadata| metadata.as_str().to_owned()).collect()
}

#[test]
fn a_transfer_keeps_everything_but_its_metadata() {
    let mut shard = Shard::with(&["bank", "alice"]);
    let paid = Transfer { metadata: note("for alice"), ..transfer(1, "bank", "alice", 100) };
    assert!(is_posted(&shard.one(Operation::Transfer(paid.clone()))));
    let before = shard.journal.transfer(&paid.key()).unwrap();
    assert_eq!(texts(&shard).len(), 1);

    let once = shard.one(erase(Erased::Transfer, 1, "bank", "bank"));
    let again = shard.one(erase(Erased::Transfer, 1, "bank", "bank"));
    assert_eq!([erased(&once), erased(&again)], [MetadataErased::Now, MetadataErased::Nothing]);
    assert_eq!(texts(&shard), [""; 0]);
    let after = shard.journal.transfer(&paid.key()).unwrap();
    assert_eq!(StoredTransfer { metadata: before.metadata.clone(), ..after }, before);
    assert_eq!((shard.posted("bank"), shard.posted("alice")), (-100, 100));
}

#[test]
fn a_repeated_request_is_a_replay_whatever_its_metadata_is() {
    let mut shard = Shard::with(&["bank", "alice"]);
    let paid = Transfer { metadata: note("for alice"), ..transfer(1, "bank", "alice", 100) };
    shard.one(Operation::Transfer(paid.clone()));
    shard.one(erase(Erased::Transfer, 1, "bank", "bank"));
    for metadata in [note("for alice"), note("other"), Metadata::empty()] {
        let outcome = shard.one(Operation::Transfer(Transfer { metadata, ..paid.clone() }));
        assert!(is_posted(&outcome), "{outcome:?}");
    }
    let other = shard.one(Operation::Transfer(Transfer { amount: 101, ..paid }));
    assert_eq!(other, Outcome::Transfer(TransferOutcome::Mismatch { field: "amount" }));
    assert_eq!(shard.posted("alice"), 100);
}

#[test]
fn a_transfer_of_the_same_batch_and_a_saga_under_way_are_erased() {
    let mut shard = Shard::with(&["bank", "alice"]);
    let local = Transfer { metadata: note("local"), ..transfer(1, "bank", "alice", 5) };
    let crossing = Transfer { metadata: note("crossing"), ..reserve(2, "bank", "elsewhere", 7) };
    let outcomes = shard.run(&[
        Operation::Transfer(local),
        Operation::Transfer(crossing.clone()),
        erase(Erased::Transfer, 1, "bank", "bank"),
        erase(Erased::Transfer, 2, "bank", "bank"),
        settle(&crossing, Verdict::Credited),
    ]);
    assert_eq!([erased(&outcomes[2]), erased(&outcomes[3])], [MetadataErased::Now; 2]);
    assert!(matches!(outcomes[4], Outcome::Settled(_)), "{:?}", outcomes[4]);
    assert_eq!(texts(&shard), [""; 0]);
}

#[test]
fn the_shard_of_the_credit_account_erases_its_copy() {
    let mut shard = Shard::with(&["bank", "alice"]);
    shard.one(Operation::Transfer(Transfer { metadata: note("copied"), ..transfer(1, "bank", "alice", 5) }));
    assert_eq!(erased(&shard.one(erase(Erased::Transfer, 1, "bank", "alice"))), MetadataErased::Now);
    assert_eq!(erased(&shard.one(erase(Erased::Transfer, 1, "alice", "bank"))), MetadataErased::NotFound);
    let booking = shard.journal.bookings().last().unwrap();
    assert_eq!((booking.kind, booking.owner()), (BookingKind::TransferErased, Some(&id("alice"))));
    assert_eq!(texts(&shard), [""; 0]);
}

/// A move copies the bookings of its slots. The target must learn of the erasure whichever account moves.
#[test]
fn an_erasure_belongs_to_the_slots_of_both_accounts() {
    let mut shard = Shard::with(&["bank", "alice"]);
    shard.one(Operation::Transfer(Transfer { metadata: note("copied"), ..transfer(1, "bank", "alice", 5) }));
    assert_eq!(erased(&shard.one(erase_of_both(1, "bank", "alice"))), MetadataErased::Now);
    assert_eq!(erased(&shard.one(erase_of_both(1, "bank", "alice"))), MetadataErased::Nothing);
    let erasures = shard.journal.bookings().iter().filter(|booking| booking.kind == BookingKind::TransferErased);
    assert!(erasures.map(|booking| booking.owner().unwrap()).eq([&id("bank"), &id("alice")]));
}

#[test]
fn a_capture_does_not_restore_the_metadata_of_an_erased_hold() {
    let mut shard = Shard::with(&["bank", "alice"]);
    shard.one(Operation::PlaceHold(place(1)));
    shard.one(erase(Erased::Hold, 1, "bank", "bank"));
    let purpose = Purpose::Capture { hold: TransferId(Uuid::from_u128(1)), whole: false, finalize: true };
    // The router read the hold before it was erased, or after.
    let capture = |metadata| Transfer { metadata, purpose, ..transfer(2, "bank", "alice", 3) };
    for metadata in [note("held"), Metadata::empty()] {
        let outcome = shard.one(Operation::Transfer(capture(metadata)));
        assert!(is_posted(&outcome), "{outcome:?}");
    }
    assert_eq!(texts(&shard), [""; 0]);
}

#[test]
fn a_hold_is_erased_while_it_is_open_and_when_it_has_ended() {
    let mut shard = Shard::with(&["bank", "alice"]);
    for n in [1, 2] {
        shard.one(Operation::PlaceHold(place(n)));
    }
    shard.one(Operation::ReleaseHold(place(2).key().into()));
    for n in [1, 2] {
        assert_eq!(erased(&shard.one(erase(Erased::Hold, n, "bank", "bank"))), MetadataErased::Now);
        assert_eq!(erased(&shard.one(erase(Erased::Hold, n, "bank", "bank"))), MetadataErased::Nothing);
        let again = shard.one(Operation::PlaceHold(place(n)));
        assert!(matches!(again, Outcome::Hold(HoldOutcome::Placed(ref answer)) if answer.replayed), "{again:?}");
    }
    assert_eq!(erased(&shard.one(erase(Erased::Hold, 3, "bank", "bank"))), MetadataErased::NotFound);
    assert_eq!(erased(&shard.one(erase(Erased::Transfer, 1, "bank", "bank"))), MetadataErased::NotFound);
    assert_eq!(texts(&shard), [""; 0]);
    assert_eq!(shard.held("bank"), 5);
}

#[test]
fn erasing_an_account_removes_present_and_past_metadata() {
    let mut shard = Shard::with(&["alice"]);
    let update = |metadata| {
        let (status, overdraft, max_balance) = (None, None, None);
        Operation::UpdateAccount(UpdateAccount {
            id: id("alice"),
            status,
            overdraft,
            max_balance,
            metadata: Some(metadata),
            ordered_by: None,
        })
    };
    let outcomes = shard.run(&[
        update(note("first")),
        update(note("second")),
        update(Metadata::erased()),
        update(Metadata::erased()),
    ]);
    let versions: Vec<i64> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Account(AccountOutcome::Updated(account)) => account.version,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(versions, [2, 3, 4, 4], "an erasure that is repeated books nothing");
    assert_eq!(texts(&shard), [""; 0]);
    // An account is opened again with what it was opened with, which cannot be compared any more.
    let create = |metadata| CreateAccount {
        ordered_by: None,
        id: id("alice"),
        asset: usd(),
        overdraft: Limit::ZERO,
        max_balance: Limit::Unlimited,
        metadata,
    };
    let again = shard.one(Operation::CreateAccount(create(note("third"))));
    assert!(matches!(again, Outcome::Account(AccountOutcome::Replayed(_))), "{again:?}");
    shard.one(update(note("new")));
    assert_eq!(texts(&shard).len(), 1);
}
