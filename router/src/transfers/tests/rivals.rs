//! Transfers that compete for money whose fate is not known yet.

use ledger::operation::Purpose;

use super::{cut_off::is_cut_off, *};
use crate::service::fake_cluster::hold;

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
