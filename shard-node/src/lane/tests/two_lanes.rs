//! Two nodes of one shard that both write.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lost_race_is_decided_again_on_the_balances_of_the_winner() {
    let database = shard_with(&["bank", "alice"]).await;
    let (first, second) = (Node::start(&database), Node::start(&database));
    assert!(posted(&first.one(pay(1, "alice", "bank", 10)).await));
    assert!(posted(&second.one(pay(2, "alice", "bank", 80)).await), "it knows of the first 10");
    let reply = first.one(pay(3, "alice", "bank", 20)).await;
    assert_eq!(refusal(&reply), Some(Refusal::InsufficientFunds), "10 are left: {reply:?}");
    let reply = first.one(pay(4, "alice", "bank", 10)).await;
    assert_eq!(answer(&reply).debit_after.unwrap().posted, 0);
    // The same id on both: the second one is a replay with the first answer.
    let again = second.one(pay(4, "alice", "bank", 10)).await;
    assert!(answer(&again).replayed);
    assert_eq!(answer(&again).debit_after, answer(&reply).debit_after);
    database.fold();
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_fenced_again_and_again_gets_through() {
    let database = shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    node.store.order([Fault::Fence; 50]);
    assert!(posted(&node.one(pay(1, "alice", "bank", 10)).await));
    assert!(node.store.is_quiet());
    assert_eq!((bookings_of(&database, 1), balance(&database, "alice")), (1, 90));
}

#[tokio::test(start_paused = true)]
async fn two_lanes_that_race_on_one_account_lose_nothing() {
    for seed in 1..=8 {
        let database = shard_with(&["bank", "alice", "bob"]).await;
        let mut nodes = [Node::start(&database), Node::start(&database)];
        for (node, number) in nodes.iter_mut().zip(1..) {
            node.store.pause_by(seed * 2 + number);
            node.fold_every(Duration::from_millis(5 + 7 * seed * number % 40));
        }
        let mut waiting = Vec::new();
        for round in 0..150_u128 {
            for (lane, node) in nodes.iter().enumerate() {
                let of = 1 + round * 2 + lane as u128;
                let (debit, credit) = [("alice", "bob"), ("bob", "alice"), ("bank", "alice")][round as usize % 3];
                let amount = 1 + i64::try_from(of % 37).unwrap();
                waiting.push((of, debit, credit, amount, node.submit(vec![pay(of, debit, credit, amount)])));
            }
            pause_ms(u64::try_from(round).unwrap() * seed % 7).await;
        }
        let mut expected = HashMap::from([("alice", 100), ("bob", 100), ("bank", -200)]);
        for (of, debit, credit, amount, replies) in waiting {
            let reply = &replies.await.unwrap()[0];
            assert_eq!(bookings_of(&database, of), 1, "seed {seed}: {reply:?}");
            if posted(reply) {
                *expected.get_mut(debit).unwrap() -= amount;
                *expected.get_mut(credit).unwrap() += amount;
            } else {
                assert_eq!(refusal(reply), Some(Refusal::InsufficientFunds), "seed {seed}: {reply:?}");
            }
        }
        let there = database.fold();
        for (name, posted) in expected {
            assert_eq!(there.accounts[&id(name)].posted, posted, "seed {seed}: {name}");
        }
        for node in &nodes {
            node.one(nothing(1)).await;
            let overlaid = |name: &str| node.tail.overlay(&id(name)).account.or_else(|| database.row(&id(name)));
            for name in ["bank", "alice", "bob"] {
                assert_eq!(overlaid(name), Some(account(&database, name)), "seed {seed}: rows and tail");
            }
            pause_ms(500).await;
            database.check_folded();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_makes_a_lane_catch_up_without_a_write_of_its_own() {
    let database = shard_with(&["bank", "alice"]).await;
    let (first, second) = (Node::start(&database), Node::start(&database));
    first.one(nothing(1)).await;
    assert!(posted(&second.one(pay(1, "alice", "bank", 40)).await));
    let position = Position(database.state().next_position - 1);
    let bookings = database.bookings().len();
    assert!(first.tail.committed() < position);
    first.handle.reach(position).await.unwrap();
    assert_eq!(first.tail.committed(), position);
    assert_eq!(first.tail.overlay(&id("alice")).account.unwrap().posted, 60);
    assert_eq!(database.bookings().len(), bookings);
    // A position that no node has written is not reached.
    assert!(matches!(first.handle.reach(position.next()).await, Err(StoreError::Fenced)));
    // While the database takes no writes, another node's bookings are caught up with all the same.
    assert!(posted(&second.one(pay(2, "alice", "bank", 10)).await));
    database.set_read_only(true);
    assert!(not_executed(&first.one(pay(3, "alice", "bank", 1)).await).is_some());
    let position = Position(database.state().next_position - 1);
    first.handle.reach(position).await.unwrap();
    assert_eq!(first.tail.overlay(&id("alice")).account.unwrap().posted, 50);
}

#[tokio::test(start_paused = true)]
async fn a_lane_catches_up_with_what_another_one_opened_changed_and_folded() {
    let database = shard_with(&["bank", "alice"]).await;
    let (first, second) = (Node::start(&database), Node::start(&database));
    // The first lane knows that carol is not there.
    let reply = first.one(pay(1, "bank", "carol", 5)).await;
    assert_eq!(refusal(&reply), Some(Refusal::AccountNotFound), "{reply:?}");
    second.run(vec![open("carol"), pay(2, "bank", "carol", 5), update("carol", Some(Limit::AtMost(50)))]).await;
    second.fold_everything().await;
    second
        .run(vec![pay(3, "carol", "bank", 30), hold(4, "carol", 1), reserve(5, "carol", 2), credit(6, "carol", 3)])
        .await;
    let reply = first.one(pay(7, "carol", "bank", 20)).await;
    assert!(posted(&reply), "{reply:?}");
    assert_eq!(answer(&reply).debit_after.unwrap().posted, 5 - 30 - 2 + 3 - 20);
    first.fold_everything().await;
    database.check_folded();
    let carol = account(&database, "carol");
    assert_eq!((carol.status, carol.overdraft, carol.held), (AccountStatus::Open, Limit::AtMost(50), 1));
}
