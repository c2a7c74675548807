//! Transfers beside what disturbs them: a shard that the router knows to be gone, rivals for money whose fate is not known yet, and an
//! earlier attempt at the same batch.

use ledger::operation::Purpose;

use super::*;
use crate::core::fake_cluster::hold;

// === a shard that is cut off ===

/// Waits until the router knows that the shard `s1` is gone.
pub async fn is_cut_off(cluster: &Cluster) {
    eventually("the breaker is open", async || {
        cluster.router.shard_status().await;
        cluster.router.greet().await;
        cluster.router.shard_status().await[1].breaker != "closed"
    })
    .await;
}

#[tokio::test]
async fn a_transfer_to_a_shard_that_is_cut_off_reserves_nothing_and_a_replay_is_answered() {
    let mut cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
    assert!(is_posted(&cluster.router.transfer(transfer(1, &alice, &bob, 10), soon()).await));
    cluster.stop(1);
    is_cut_off(&cluster).await;

    let begun = Instant::now();
    for number in 2..20 {
        let refused = cluster.router.transfer(transfer(number, &alice, &bob, 10), soon()).await;
        assert_eq!(refused, Err(CallError::Unavailable { shard: "s1".into() }));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "no request waits for its deadline");
    assert_eq!((cluster.nodes[0].pending(), cluster.posted(&alice).await), (0, 90), "no money is in transit");
    let again = cluster.router.transfer(transfer(1, &alice, &bob, 10), soon()).await;
    assert!(matches!(&again, Ok(TransferReply::Done(answer)) if answer.replayed), "{again:?}");
    let other = cluster.router.transfer(transfer(1, &alice, &bob, 11), soon()).await;
    assert_eq!(other, Ok(TransferReply::Mismatch { field: "amount" }));
    // What a batch has for the other shard goes on.
    let orders = vec![transfer(30, &alice, &bob, 1), transfer(31, &alice, &format!("{{{alice}}}bank"), 2)];
    let replies = cluster.router.transfer_batch(orders, soon()).await;
    assert!(replies[0].is_err() && is_posted(&replies[1]), "{replies:?}");

    cluster.restart(1).await;
    eventually("the shard is there again", async || {
        cluster.router.transfer(transfer(40, &alice, &bob, 10), soon()).await.is_ok()
    })
    .await;
    assert_eq!(cluster.posted(&bob).await, 20, "what was refused has had no effect");
}

#[tokio::test]
async fn a_reserved_transfer_is_answered_at_once_when_its_shard_is_cut_off_and_recovery_waits() {
    let mut cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
    cluster.nodes[1].hang(true);
    let pending =
        cluster.router.transfer(transfer(1, &alice, &bob, 10), Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(state(&pending), TransferState::Pending);
    cluster.stop(1);
    is_cut_off(&cluster).await;

    let begun = Instant::now();
    let again = cluster.router.transfer(transfer(1, &alice, &bob, 10), soon()).await;
    assert_eq!(state(&again), TransferState::Pending);
    assert!(begun.elapsed() < Duration::from_secs(10), "the deadline is not waited for");
    // Recovery asks for sagas that it can finish, and leaves this one where it is.
    cluster.nodes[0].sagas_are_due_after(Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(cluster.nodes[0].handed_over(), 0);

    cluster.nodes[1].hang(false);
    cluster.restart(1).await;
    eventually("recovery finishes the transfer", async || cluster.nodes[0].pending() == 0).await;
    assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (90, 10));
}

// === rivals ===

#[tokio::test]
async fn each_payment_is_reversed_once_however_many_reversals_compete_for_the_money() {
    const PAYMENTS: u128 = 30;
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 3_000), (&bob, 0)]).await;
    for number in 1..=PAYMENTS {
        assert!(is_posted(&cluster.router.transfer(transfer(number, &alice, &bob, 100), soon()).await));
    }
    let reversal = |number: u128| {
        let of = TransferId(Uuid::from_u128(1 + number % PAYMENTS));
        let purpose = Purpose::Reversal { of, whole: true };
        NewTransfer { purpose, ..transfer(1_000 + number, &bob, &alice, 100) }
    };
    let replies = join_all((0..2 * PAYMENTS).map(|number| cluster.router.transfer(reversal(number), soon()))).await;
    let posted = replies.iter().filter(|reply| is_posted(reply)).count();
    assert_eq!(posted, 30, "{replies:?}");
    for reply in replies.iter().filter(|reply| !is_posted(reply)) {
        // The debit side is checked first, and in the end it has nothing left.
        assert!([Refusal::AlreadyReversed, Refusal::InsufficientFunds].contains(&refusal(reply).0), "{reply:?}");
    }
    assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (3_000, 0));
}

#[tokio::test]
async fn a_payment_is_not_refused_because_a_doomed_one_has_the_money() {
    let cluster = Cluster::start(2).await;
    let (alice, closed) = (cluster.account_on(0, "alice"), cluster.account_on(1, "closed"));
    cluster.fund(&[(&alice, 1_000), (&closed, 0)]).await;
    freeze(&cluster, &closed, AccountStatus::Closed).await;
    let bank = format!("{{{alice}}}bank");
    for number in 0..10_u32 {
        let all_of_it = 1_000 - 100 * i64::from(number);
        let doomed = cluster.router.transfer(transfer(u128::from(100 + number), &alice, &closed, all_of_it), soon());
        let rival = cluster.router.transfer(transfer(u128::from(200 + number), &alice, &bank, 100), soon());
        let (doomed, rival) = tokio::join!(doomed, rival);
        assert!(is_posted(&rival), "{rival:?}");
        assert!([Refusal::AccountClosed, Refusal::InsufficientFunds].contains(&refusal(&doomed).0), "{doomed:?}");
    }
    assert_eq!(cluster.posted(&alice).await, 0);
}

#[tokio::test]
async fn what_waits_for_the_verdict_of_a_shard_that_is_cut_off_is_answered_at_once() {
    let mut cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
    cluster.nodes[1].hang(true);
    let pending =
        cluster.router.transfer(transfer(1, &alice, &bob, 60), Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(state(&pending), TransferState::Pending);
    let bank = format!("{{{alice}}}bank");
    let payment = transfer(2, &alice, &bank, 80);
    let undetermined = Err(CallError::Undetermined { shard: "s1".into() });
    let waited = cluster.router.transfer(payment.clone(), Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(waited, undetermined, "the deadline comes first");

    cluster.stop(1);
    is_cut_off(&cluster).await;
    let begun = Instant::now();
    assert_eq!(cluster.router.transfer(payment.clone(), soon()).await, undetermined);
    let held = cluster.router.place_hold(hold(3, &alice, &bank, 80), soon()).await;
    assert_eq!(held.err(), undetermined.err());
    assert!(begun.elapsed() < Duration::from_secs(10), "the deadline is not waited for");

    cluster.nodes[1].hang(false);
    cluster.nodes[0].sagas_are_due_after(Duration::ZERO);
    cluster.restart(1).await;
    eventually("the verdict is there", async || cluster.nodes[0].pending() == 0).await;
    let refused = cluster.router.transfer(payment, soon()).await;
    assert_eq!(refusal(&refused), (Refusal::InsufficientFunds, Some(Side::Debit)), "now it is the truth");
}

// === an earlier attempt ===

#[tokio::test]
async fn a_chain_that_is_sent_again_goes_on_where_it_was() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
    // Each is paid with what the one before it brought from the other shard.
    let chain = |length: u128| -> Vec<NewTransfer> {
        let there_and_back = |number| match number % 2 {
            0 => transfer(number, &alice, &bob, 100),
            _ => transfer(number, &bob, &alice, 100),
        };
        (0..length).map(there_and_back).collect()
    };
    let calls = || -> usize { cluster.nodes.iter().map(|node| node.executions.load(Ordering::Relaxed)).sum() };
    cluster.router.transfer_batch(chain(40), soon()).await;

    let before = calls();
    let mut again = chain(41);
    again[20].amount = 99;
    let replies = cluster.router.transfer_batch(again, soon()).await;
    for (number, reply) in replies.iter().enumerate() {
        match reply {
            Ok(TransferReply::Mismatch { field: "amount" }) => assert_eq!(number, 20),
            Ok(TransferReply::Done(answer)) => {
                assert!(matches!(answer.state, TransferState::Posted { .. }), "{number}: {answer:?}");
                assert_eq!(answer.replayed, number < 40, "{number}");
            }
            other => panic!("{number}: {other:?}"),
        }
    }
    assert!(calls() - before < 12, "{} calls for one new transfer", calls() - before);
    assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (0, 100));
}
