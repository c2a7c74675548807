//! Transfers to a shard that the router knows to be gone.

use super::*;

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
