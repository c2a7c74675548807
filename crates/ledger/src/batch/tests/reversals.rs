//! Reversals, on one shard and across two.

use super::*;

/// Of the transfer 1 from alice to bob.
fn reverse(n: u128, amount: i64) -> Transfer {
    let of = TransferId(Uuid::from_u128(1));
    Transfer { purpose: Purpose::Reversal { of, whole: false }, ..transfer(n, "bob", "alice", amount) }
}

fn already() -> Option<Refused> {
    Some(Refused::whole(Refusal::AlreadyReversed))
}

#[test]
fn reversals_add_up_to_the_amount_and_not_beyond() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    shard.one(Operation::Transfer(transfer(9, "bank", "alice", 100)));
    shard.one(Operation::Transfer(transfer(1, "alice", "bob", 50)));
    shard.one(Operation::Transfer(transfer(8, "bank", "bob", 7)));
    assert!(is_posted(&shard.one(Operation::Transfer(reverse(2, 20)))));
    assert_eq!(refusal(&shard.one(Operation::Transfer(reverse(3, 31)))), already());
    // Of two in one batch, the second finds what the first left.
    let outcomes = shard.run(&[Operation::Transfer(reverse(4, 20)), Operation::Transfer(reverse(5, 11))]);
    assert!(is_posted(&outcomes[0]));
    assert_eq!(refusal(&outcomes[1]), already());
    assert!(is_posted(&shard.one(Operation::Transfer(reverse(6, 10)))));
    assert_eq!((shard.posted("alice"), shard.posted("bob")), (100, 7));
    assert_eq!(refusal(&shard.one(Operation::Transfer(reverse(10, 7)))), already());
    // The payer comes first, also when nothing is left to reverse.
    assert_eq!(
        refusal(&shard.one(Operation::Transfer(reverse(7, 8)))),
        Some(Refused::debit(Refusal::InsufficientFunds))
    );
    // A replay finds its first answer.
    let again = shard.one(Operation::Transfer(reverse(2, 20)));
    assert!(matches!(again, Outcome::Transfer(TransferOutcome::Done(TransferAnswer { replayed: true, .. }))));
    let payment = shard.one(Operation::Transfer(transfer(2, "bob", "alice", 20)));
    assert_eq!(payment, Outcome::Transfer(TransferOutcome::Mismatch { field: "reverses" }));
}

#[test]
fn money_that_never_arrived_cannot_be_reversed() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    shard.one(Operation::Transfer(transfer(9, "bank", "bob", 100)));
    assert!(refusal(&shard.one(Operation::Transfer(transfer(1, "alice", "bob", 50)))).is_some());
    assert_eq!(refusal(&shard.one(Operation::Transfer(reverse(2, 1)))), already());
    // Nor what went elsewhere.
    shard.one(Operation::Transfer(transfer(3, "bank", "alice", 5)));
    let stranger = Transfer {
        purpose: Purpose::Reversal { of: TransferId(Uuid::from_u128(3)), whole: false },
        ..transfer(4, "bob", "bank", 5)
    };
    assert_eq!(refusal(&shard.one(Operation::Transfer(stranger))), already());
}

#[test]
fn across_shards_the_register_decides_how_much_is_left() {
    let mut payers = Shard::with(&["bank", "alice"]);
    payers.one(Operation::Transfer(transfer(9, "bank", "alice", 100)));
    let paid = reserve(1, "alice", "bob", 50);
    payers.one(Operation::Transfer(paid.clone()));
    payers.one(settle(&paid, Verdict::Credited));
    let mut payees = Shard::with(&["bank", "bob"]);
    payees.one(decide(&paid));

    let first = Transfer { cross_shard: true, ..reverse(2, 30) };
    let second = Transfer { cross_shard: true, ..reverse(3, 30) };
    for (reversal, refused) in [(&first, None), (&second, already())] {
        if refused.is_some() {
            payees.one(Operation::Transfer(transfer(8, "bank", "bob", 30)));
        }
        payees.one(Operation::Transfer(reversal.clone()));
        let Outcome::Decided(decided) = payers.one(decide(reversal)) else { panic!("a verdict") };
        assert_eq!(decided.verdict, refused.map_or(Verdict::Credited, Verdict::Refused));
        // Asked twice, it counts once.
        payers.one(decide(reversal));
        payees.one(settle(reversal, decided.verdict));
    }
    assert_eq!((payers.posted("alice"), payees.posted("bob")), (80, 50));
    assert_eq!(payers.journal.original(&paid.key()).unwrap().reversed, 30);

    // Nothing left is known to the payee's shard already, and refused by the register all the same.
    let nothing = Transfer {
        cross_shard: true,
        amount: 0,
        purpose: Purpose::Reversal { of: paid.id, whole: true },
        ..reverse(4, 1)
    };
    let Outcome::Transfer(TransferOutcome::Done(pending)) = payees.one(Operation::Transfer(nothing)) else {
        panic!("pending")
    };
    assert_eq!((pending.state, pending.presumed), (TransferState::Pending, already()));
    assert_eq!(payees.posted("bob"), 50);
}
