//! A node that follows another one: it writes nothing, keeps up, and acts as soon as it is used.

use super::*;

/// Looks at the journal until the follower has everything.
async fn keeps_up(follower: &Node, database: &Database) {
    pause_ms(1_000).await;
    let end = database.bookings().last().map_or(Position(0), |booking| booking.position);
    assert_eq!(follower.tail.committed(), end);
}

#[tokio::test(start_paused = true)]
async fn a_follower_keeps_up_and_writes_nothing() {
    let database = shard_with(&["bank", "alice", "bob"]).await;
    let (mut first, mut follower) = (Node::start(&database), Node::start_following(&database));
    follower.fold_every(Duration::from_millis(50));
    assert!(posted(&first.one(pay(1, "alice", "bob", 10)).await));
    first.one(reserve(2, "alice", 5)).await;
    first.one(hold(3, "bob", 7)).await;
    let (bookings, folded) = (database.bookings().len(), database.folded_position());
    keeps_up(&follower, &database).await;
    pause_ms(60_000).await;
    assert_eq!((database.bookings().len(), database.folded_position()), (bookings, folded));
    assert!(!follower.role.is_active());

    // What the active node folds leaves the follower's tail.
    first.fold_every(Duration::from_millis(100));
    for number in 10..40 {
        assert!(posted(&first.one(pay(number, "bank", "bob", 1)).await));
        pause_ms(130).await;
    }
    keeps_up(&follower, &database).await;
    assert_eq!(follower.tail.folded_position(), database.folded_position());
    assert_eq!(follower.tail.size().bookings, 0);
    assert!(!follower.role.is_active());
    database.check_folded();
}

#[tokio::test(start_paused = true)]
async fn a_follower_acts_when_it_is_used_and_has_the_accounts_in_memory() {
    let database = folded_shard_with(&["bank", "alice", "bob"]).await;
    let (mut first, mut follower) = (Node::start(&database), Node::start_following(&database));
    first.fold_every(Duration::from_millis(100));
    follower.fold_every(Duration::from_millis(100));
    for number in 1..40 {
        assert!(posted(&first.one(pay(number, "alice", "bob", 1)).await));
        pause_ms(70).await;
    }
    first.one(reserve(100, "bob", 9)).await;
    keeps_up(&follower, &database).await;
    first.kill().await;

    let reads = follower.store.account_reads();
    let reply = follower.one(pay(200, "bob", "alice", 100 + 39 - 9)).await;
    assert!(posted(&reply), "{reply:?}");
    assert_eq!(follower.store.account_reads(), reads, "both accounts were in memory");
    assert!(follower.role.is_active());
    assert!(answer(&follower.one(pay(39, "alice", "bob", 1)).await).replayed);
    follower.one(settle(100, "bob", 9, Verdict::Credited)).await;
    assert_eq!(refusal(&follower.one(pay(201, "bob", "alice", 1)).await), Some(Refusal::InsufficientFunds));
    pause_ms(1_000).await;
    database.check_folded();
    assert!(database.saga_rows().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_becomes_a_follower_leaves_the_fold_to_the_other_one() {
    let database = shard_with(&["bank", "alice", "bob"]).await;
    let (mut first, mut second) = (Node::start(&database), Node::start(&database));
    first.fold_every(Duration::from_millis(300));
    second.fold_every(Duration::from_millis(70));
    assert!(posted(&second.one(pay(1, "alice", "bob", 10)).await));
    for number in 2..20 {
        assert!(posted(&first.one(pay(number, "alice", "bob", 1)).await));
        if number == 10 {
            second.role.step_back();
        }
        pause_ms(130).await;
    }
    let folded = database.folded_position();
    keeps_up(&second, &database).await;
    assert!(!second.role.is_active());
    assert!(folded < database.folded_position());
    assert_eq!(second.tail.folded_position(), database.folded_position());
    first.kill().await;
    assert!(posted(&second.one(pay(100, "bob", "alice", 1)).await));
    second.fold_everything().await;
    database.check_folded();
}

/// The follower looks at moments that have nothing to do with the first node's commits and folds.
#[tokio::test(start_paused = true)]
async fn a_follower_takes_over_at_any_moment_of_the_first_nodes_folds() {
    for seed in 1..=30_u64 {
        let database = shard_with(&["bank", "alice", "bob"]).await;
        let (mut first, mut follower) = (Node::start(&database), Node::start_following(&database));
        first.store.pause_by(seed);
        follower.store.pause_by(seed + 100);
        first.fold_every(Duration::from_millis(20 + seed * 13 % 150));
        follower.fold_every(Duration::from_millis(30));
        for round in 0..40_u128 {
            let of = 10 + 10 * round;
            first.submit(vec![pay(of, "bank", "alice", 2), reserve(of + 1, "alice", 1)]);
            if round % 3 != 0 {
                first.submit(vec![settle(of + 1, "alice", 1, Verdict::Credited)]);
            }
            if round % 9 == 0 {
                first.submit(vec![open(&format!("new{round}")), update("bob", Some(Limit::AtMost(5)))]);
            }
            pause_ms(u64::try_from(round).unwrap() * seed % 23).await;
        }
        first.kill().await;
        let replies = follower.run(vec![pay(1, "bob", "alice", 100), pay(2, "alice", "bob", 1)]).await;
        assert!(replies.iter().all(posted), "seed {seed}: {replies:?}");
        follower.fold_everything().await;
        database.check_folded();
    }
}
