//! The fold beside the lane, interrupted and overtaken.

use super::*;

/// More accounts than two chunks of a fold have.
const MANY: usize = 600;

fn names() -> Vec<String> {
    std::iter::once("bank".to_owned()).chain((0..MANY).map(|n| format!("a{n}"))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_fold_that_stops_between_two_steps_is_begun_anew_by_another_node() {
    let names = names();
    let mut steps_seen = BTreeSet::new();
    for after in 0..=4 {
        for is_carried_out in [false, true] {
            let database = shard_with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
            let first = Node::start(&database);
            first.run(vec![reserve(1, "a0", 10), update("a1", Some(Limit::AtMost(7)))]).await;
            first.store.order_fold_fault(FoldFault { after, is_carried_out });
            let before = database.folded_position();
            first.fold_once().await;
            if !first.store.is_quiet() {
                assert_eq!(after, 4, "three chunks and the last step");
                continue;
            }
            steps_seen.insert(after);
            let is_finished = after == 3 && is_carried_out;
            assert_eq!(database.folded_position() > before, is_finished, "after {after} steps");
            database.check();
            let ahead = names.iter().filter(|name| database.row(&id(name)).unwrap().version > 1).count();
            assert_eq!(ahead > 0, after > 0 || is_carried_out, "after {after} steps: {ahead} rows are ahead");
            first.kill().await;

            let second = Node::start(&database);
            let replies = second.run(vec![pay(2, "a0", "a1", 20), pay(3, "a550", "bank", 1)]).await;
            assert!(replies.iter().all(posted), "{replies:?}");
            second.fold_everything().await;
            database.check_folded();
            assert_eq!(["a0", "a1", "a550"].map(|name| balance(&database, name)), [70, 120, 99]);
            assert_eq!(account(&database, "a1").overdraft, Limit::AtMost(7));
            assert_eq!(database.saga_rows().len(), 1);
        }
    }
    assert_eq!(steps_seen, BTreeSet::from([0, 1, 2, 3]));
}

#[tokio::test(start_paused = true)]
async fn a_fold_writes_large_chunks_while_the_tail_is_half_full() {
    let names = names();
    for (unfolded_accounts, is_one_chunk) in [(10_000, false), (1_000, true)] {
        let database = shard_with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let node = Node::start_with(&database, &LaneConfig { unfolded_accounts, ..LaneConfig::default() });
        node.one(nothing(1)).await;
        node.store.order_fold_fault(FoldFault { after: 2, is_carried_out: false });
        node.fold_once().await;
        // One large chunk and the last step are two steps, and the fault waits for a third one.
        assert_eq!(!node.store.is_quiet(), is_one_chunk);
    }
}

#[tokio::test(start_paused = true)]
async fn the_interval_grows_with_the_dead_versions_of_rows() {
    let database = shard_with(&["bank", "alice"]).await;
    let mut node = Node::start(&database);
    node.store.set_dead_versions(6.0);
    node.one(pay(1, "alice", "bank", 1)).await;
    node.fold_every(Duration::from_secs(1));
    pause_ms(1_500).await;
    assert_eq!(node.tail.folded_position(), node.tail.committed());
    node.one(pay(2, "alice", "bank", 1)).await;
    pause_ms(5_000).await;
    assert_ne!(node.tail.folded_position(), node.tail.committed(), "the next fold is due after six seconds");
    pause_ms(1_000).await;
    assert_eq!(node.tail.folded_position(), node.tail.committed());
}

#[tokio::test(start_paused = true)]
async fn a_fold_ends_at_shutdown_and_another_node_goes_on() {
    let names = names();
    let database = shard_with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut first = Node::start(&database);
    first.one(nothing(1)).await;
    first.fold_every(Duration::from_secs(1));
    pause_ms(1_010).await;
    first.tasks.token().cancel();
    for task in first.running.drain(..) {
        task.await.unwrap();
    }
    let written = names.iter().filter(|name| database.row(&id(name)).unwrap().version > 1).count();
    assert_eq!(written, fold::SMALL_CHUNK, "the fold rests after its first chunk");
    database.check();

    let second = Node::start(&database);
    second.fold_everything().await;
    database.check_folded();
}

#[tokio::test(start_paused = true)]
async fn a_fold_whose_step_fails_is_run_again_by_the_same_node() {
    for after in 0..2 {
        for is_carried_out in [false, true] {
            let database = shard_with(&["bank", "alice"]).await;
            let mut node = Node::start(&database);
            node.run(vec![pay(1, "alice", "bank", 1), reserve(2, "alice", 1)]).await;
            node.store.order_fold_fault(FoldFault { after, is_carried_out });
            node.fold_every(Duration::from_millis(100));
            pause_ms(5_000).await;
            assert!(node.store.is_quiet());
            assert!(posted(&node.one(pay(3, "alice", "bank", 1)).await));
            pause_ms(5_000).await;
            database.check_folded();
            assert_eq!(balance(&database, "alice"), 97);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fold_that_another_node_has_overtaken_makes_the_lane_load_the_tail_again() {
    let database = shard_with(&["bank", "alice"]).await;
    let (first, second) = (Node::start(&database), Node::start(&database));
    assert!(posted(&first.one(pay(1, "alice", "bank", 1)).await));
    assert!(posted(&second.one(pay(2, "alice", "bank", 1)).await));
    first.one(nothing(1)).await;
    assert!(posted(&second.one(pay(3, "alice", "bank", 1)).await));
    first.fold_once().await;
    let folded = database.folded_position();
    assert_eq!(first.tail.folded_position(), folded);
    second.fold_once().await;
    assert_eq!(database.folded_position(), folded, "the fold of the second node changes nothing");
    pause_ms(1_000).await;
    assert!(!second.tail.is_outdated(), "the lane has loaded the tail again");
    assert_eq!(second.tail.folded_position(), folded);
    assert!(posted(&second.one(pay(4, "alice", "bank", 1)).await));
    second.fold_everything().await;
    database.check_folded();
    assert_eq!(balance(&database, "alice"), 96);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_does_not_lead_to_the_journal_stops_the_lane() {
    type Damage = fn(&mut Account);
    let damages: [Damage; 2] = [|row| row.head = Position(row.head.0 - 1), |row| row.version -= 1];
    for damage in damages {
        let database = shard_with(&["bank", "alice", "bob"]).await;
        let node = Node::start(&database);
        node.fold_everything().await;
        assert!(posted(&node.one(pay(1, "alice", "bank", 1)).await));
        let before = (database.folded_position(), database.row(&id("alice")).unwrap());
        database.damage_row(&id("alice"), damage);
        let damaged = database.row(&id("alice")).unwrap();
        assert_ne!(damaged, before.1);
        node.fold_once().await;
        assert!(node.tail.damaged().is_some_and(|why| why.contains("alice")), "{:?}", node.tail.damaged());
        assert_eq!(database.folded_position(), before.0);
        assert_eq!(database.row(&id("alice")).unwrap(), damaged, "the evidence stays");
        pause_ms(1_000).await;
        assert_ne!(node.handle.status().state, LaneState::Serving, "without another batch");
        let bookings = database.bookings().len();
        let reply = node.one(pay(2, "bob", "bank", 1)).await;
        assert_eq!(not_executed(&reply), Some(Reason::Unavailable), "{reply:?}");
        assert_eq!(database.bookings().len(), bookings);
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_stops_a_starting_lane() {
    let database = shard_with(&["bank", "alice"]).await;
    database.damage_row(&id("alice"), |row| row.posted += 1);
    let node = Node::start(&database);
    pause_ms(1_000).await;
    let reply = node.one(pay(1, "bank", "alice", 1)).await;
    assert_eq!(not_executed(&reply), Some(Reason::Unavailable), "{reply:?}");
    assert!(node.handle.status().last_error.contains("INV-1"), "{:?}", node.handle.status());
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_tail_is_full_refuses_and_goes_on_after_the_fold() {
    for (unfolded_bookings, unfolded_accounts) in [(8, 1_000), (1_000, 4)] {
        let database = shard_with(&["bank", "alice", "bob", "carol"]).await;
        let starter = Node::start(&database);
        starter.fold_everything().await;
        starter.kill().await;
        let config = LaneConfig { unfolded_bookings, unfolded_accounts, ..LaneConfig::default() };
        let bounds = Size { bookings: unfolded_bookings, accounts: unfolded_accounts };
        let mut node = Node::start_with(&database, &config);
        let names = ["alice", "bob", "carol"];
        let mut executed = 0;
        let reply = loop {
            let reply = node.one(pay(1 + executed, "bank", names[executed as usize % 3], 1)).await;
            if !posted(&reply) {
                break reply;
            }
            executed += 1;
            assert!(executed < 20, "{:?}", node.handle.status());
        };
        assert_eq!(not_executed(&reply), Some(Reason::Overloaded), "{reply:?}");
        let size = node.tail.size();
        assert!(size.bookings >= bounds.bookings || size.accounts >= bounds.accounts, "{size:?}");
        assert!(executed > 0 && size.bookings <= unfolded_bookings);
        assert_eq!(not_executed(&node.one(pay(50, "bank", "bob", 1)).await), Some(Reason::Overloaded));
        // The fold runs at once: the tail is more than half full.
        node.fold_every(Duration::from_secs(3_600));
        for of in 100..140 {
            assert!(posted(&node.one(pay(of, "bank", "alice", 1)).await), "{of}");
        }
        assert_eq!(bookings_of(&database, 50), 0);
        node.fold_everything().await;
        database.check_folded();
    }
}

#[tokio::test(start_paused = true)]
async fn sagas_under_way_survive_a_restart_in_rows_and_in_the_tail() {
    let database = shard_with(&["bank", "alice"]).await;
    let first = Node::start(&database);
    first.run(vec![reserve(1, "alice", 10), reserve(2, "alice", 20), reserve(3, "alice", 1)]).await;
    first.fold_once().await;
    assert_eq!(database.saga_rows().len(), 3);
    let refused = Verdict::Refused(Refused::whole(Refusal::Cancelled));
    first.run(vec![settle(3, "alice", 1, refused), reserve(4, "alice", 40)]).await;
    assert_eq!(database.saga_rows().len(), 3, "the fold has yet to come");
    first.kill().await;

    let second = Node::start(&database);
    second.one(nothing(1)).await;
    let sagas: BTreeSet<TransferId> =
        second.tail.list_sagas(i64::MAX, 10).into_iter().filter_map(|saga| saga.first.id).collect();
    assert_eq!(sagas, [1, 2, 4].map(number).into_iter().collect());
    assert_eq!(second.tail.claim_due(i64::MAX / 2, 10, &[]).claimed.len(), 3, "recovery runs them");
    let settled = [(1, 10, Verdict::Credited), (2, 20, refused), (4, 40, Verdict::Credited)];
    let settled = settled.map(|(of, amount, verdict)| settle(of, "alice", amount, verdict));
    for reply in second.run(settled.to_vec()).await {
        assert!(matches!(&reply, Reply::Outcome(Outcome::Settled(settled)) if !settled.replayed), "{reply:?}");
    }
    assert_eq!(second.tail.count_sagas(), 0);
    second.fold_everything().await;
    assert_eq!(database.saga_rows().len(), 0);
    database.check_folded();
    assert_eq!(balance(&database, "alice"), 50);
}

#[tokio::test(start_paused = true)]
async fn an_account_that_was_evicted_has_the_right_balance_when_it_is_used_again() {
    let database = shard_with(&["bank"]).await;
    let config = LaneConfig { cache_bytes: 1, ..LaneConfig::default() };
    let node = Node::start_with(&database, &config);
    let mut expected: HashMap<String, i64> = HashMap::new();
    let mut of = 0;
    for round in 0..30_i64 {
        for account in 0..7 {
            let name = format!("a{account}");
            if round == 0 {
                node.one(open(&name)).await;
            }
            of += 1;
            let reply = node.one(pay(of, "bank", &name, round + 1)).await;
            assert!(posted(&reply), "{reply:?}");
            *expected.entry(name.clone()).or_default() += round + 1;
            if round % 4 == 3 {
                node.one(update(&name, Some(Limit::AtMost(round)))).await;
            }
        }
        if round % 3 == 2 {
            node.fold_once().await;
            // Two batches: an eviction looks twice at an account that was used.
            node.one(nothing(1)).await;
            node.one(nothing(2)).await;
            assert!(node.handle.status().cached_accounts <= 2, "{:?}", node.handle.status());
        }
    }
    for (name, posted) in expected {
        assert_eq!(balance(&database, &name), posted, "{name}");
        let reply = node.one(update(&name, None)).await;
        let Reply::Outcome(Outcome::Account(AccountOutcome::Updated(account))) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!((account.posted, account.overdraft), (posted, Limit::AtMost(27)), "{name}");
    }
    node.fold_everything().await;
    database.check_folded();
}

#[tokio::test(start_paused = true)]
async fn waypoints_are_written_once_whatever_becomes_of_a_fold() {
    let database = shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    let mut of = 1;
    for is_carried_out in [false, true, false] {
        let payments = (of..of + 150).map(|of| pay(of, "bank", "alice", 1)).collect();
        of += 150;
        assert!(node.run(payments).await.iter().all(posted));
        node.store.order_fold_fault(FoldFault { after: 1, is_carried_out });
        node.fold_once().await;
        database.check();
    }
    node.fold_everything().await;
    database.check_folded();
}

#[tokio::test(start_paused = true)]
async fn damage_ends_a_run_of_large_batches() {
    let database = folded_shard_with(&["bank", "alice", "till"]).await;
    let node = Node::start(&database);
    let large = |from: u128| (from..from + LARGE_BATCH as u128).map(|of| pay(of, "bank", "till", 1)).collect();
    assert!(posted(&node.one(pay(1, "alice", "bank", 1)).await));
    node.store.order([Fault::Stall]);
    let first = node.submit(vec![pay(2, "alice", "bank", 1)]);
    node.store.stalled(1).await;
    let reads = node.store.account_reads();
    let second = node.submit(large(10_000));
    node.store.reads_accounts(reads + 1).await;
    database.damage_row(&id("alice"), |row| row.version -= 1);
    node.fold_once().await;
    assert!(node.tail.damaged().is_some());
    let third = node.submit(large(20_000));
    pause_ms(10).await;
    node.store.release();
    assert!(posted(&first.await.unwrap()[0]) && second.await.unwrap().iter().all(posted), "they were under way");
    let third = third.await.unwrap();
    assert!(third.iter().all(|reply| not_executed(reply) == Some(Reason::Unavailable)), "{:?}", third[0]);
    assert_eq!(bookings_of(&database, 20_000), 0);
}

#[tokio::test(start_paused = true)]
async fn the_lag_of_the_fold_is_the_time_since_everything_was_folded() {
    let database = folded_shard_with(&["bank", "a"]).await;
    let node = Node::start(&database);
    node.one(nothing(1)).await;
    node.fold_everything().await;
    assert_eq!(node.tail.fold_lag(), Duration::ZERO);
    tokio::time::advance(Duration::from_secs(100)).await;
    assert!(posted(&node.one(pay(1, "bank", "a", 5)).await));
    tokio::time::advance(Duration::from_secs(7)).await;
    let lag = node.tail.fold_lag();
    assert!((7..8).contains(&lag.as_secs()), "idle times count: {lag:?}");
    node.fold_everything().await;
    assert_eq!(node.tail.fold_lag(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_sagas_under_way_are_summed_up_by_asset() {
    let database = shard_with(&["bank", "a"]).await;
    let node = Node::start(&database);
    for operation in [reserve(1, "a", 10), reserve(2, "bank", 30)] {
        node.one(operation).await;
    }
    let totals = node.tail.saga_totals();
    assert_eq!((totals.open, totals.reserved), (2, HashMap::from([(usd(), 40)])));
    assert!(totals.oldest_us.is_some());
    node.one(settle(1, "a", 10, Verdict::Credited)).await;
    node.one(settle(2, "bank", 30, Verdict::Credited)).await;
    assert_eq!(node.tail.saga_totals(), crate::tail::SagaTotals::default());
}
