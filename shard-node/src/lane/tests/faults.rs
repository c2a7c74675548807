//! Commits whose answers are lost, refused or late.

use shard_database::server::ServerFacts;

use super::*;

#[tokio::test(start_paused = true)]
async fn an_answer_is_sent_only_after_the_commit() {
    let database = shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    node.store.order([Fault::Stall]);
    let waiting = node.submit(vec![pay(1, "bank", "alice", 5)]);
    node.store.stalled(1).await;
    pause_ms(10_000).await;
    assert!(!waiting.is_finished(), "the commit is under way");
    assert_eq!(node.tail.overlay(&id("alice")).account.unwrap().posted, 100, "reads do not see it either");
    assert_eq!(bookings_of(&database, 1), 0);
    node.store.release();
    assert!(posted(&waiting.await.unwrap()[0]));
    assert_eq!(bookings_of(&database, 1), 1);
    assert_eq!(node.tail.overlay(&id("alice")).account.unwrap().posted, 105);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_answered_as_a_replay_with_the_first_answer() {
    for fault in [Fault::LoseAnswer, Fault::Warn] {
        let database = shard_with(&["bank", "alice"]).await;
        let node = Node::start(&database);
        node.store.order([fault, Fault::LoseAnswer, fault]);
        let reply = node.one(pay(1, "alice", "bank", 30)).await;
        assert!(node.store.is_quiet(), "every fault has occurred");
        let answer = answer(&reply);
        assert!(answer.replayed && posted(&reply), "{fault:?}: {answer:?}");
        let first = database.bookings().into_iter().find(|booking| booking.id == Some(number(1))).unwrap();
        assert_eq!(answer.state, TransferState::Posted { at_us: first.at_us });
        assert_eq!(answer.debit_after, first.payer_leg.as_ref().map(ledger::fold::debit_after));
        assert_eq!((bookings_of(&database, 1), balance(&database, "alice")), (1, 70), "once");
        let overlay = node.tail.overlay(&id("alice")).account.unwrap();
        assert_eq!(overlay, account(&database, "alice"), "the lost booking is in the tail");
    }
}

/// A gate on a server whose commits wait for a stand-by.
fn gate_before_a_standby(database: &Database) -> Gate {
    let facts = ServerFacts::for_tests(7, 1).with_setting("synchronous_standby_names", "standby");
    Gate::open_on(&facts, shard_map::ClusterId::generate(), "s0", 0, database.state())
}

#[tokio::test(start_paused = true)]
async fn what_a_new_lane_finds_is_acknowledged_once_a_stand_by_has_confirmed_a_commit_after_it() {
    let database = shard_with(&["bank", "alice"]).await;
    let (gate, found) = (gate_before_a_standby(&database), database.state().next_position);
    assert_eq!(gate.served().position, 1, "a look proves nothing");
    let node = Node::start_behind(gate.clone(), NodeRole::active(), &database, &LaneConfig::default());
    node.store.order([Fault::Stall]);
    node.store.stalled(1).await;
    pause_ms(5_000).await;
    assert_eq!(gate.served().position, 1, "the stand-by has not confirmed the lane's booking");
    node.store.release();
    // Without any request, the lane finds out.
    tokio::time::timeout(Duration::from_secs(60), async {
        while gate.served().position <= found {
            pause_ms(10).await;
        }
    })
    .await
    .unwrap();
    let confirmed = database.state().next_position;
    assert_eq!((gate.served().position, confirmed), (confirmed, found + 1), "one booking without legs");
    pause_ms(60_000).await;
    assert_eq!(database.state().next_position, confirmed, "once for each session");
}

#[tokio::test(start_paused = true)]
async fn a_shard_without_a_booking_stays_new_before_a_standby() {
    let database = Database::new();
    let before = database.state().next_position;
    let gate = gate_before_a_standby(&database);
    let _node = Node::start_behind(gate.clone(), NodeRole::active(), &database, &LaneConfig::default());
    pause_ms(60_000).await;
    assert_eq!((gate.served().position, database.state().next_position), (before, before));
}

#[tokio::test(start_paused = true)]
async fn a_swallowed_commit_is_run_again_and_applied_once() {
    let database = shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    node.store.order([Fault::Swallow, Fault::Swallow]);
    let reply = node.one(pay(1, "alice", "bank", 30)).await;
    assert!(posted(&reply) && !answer(&reply).replayed, "{reply:?}");
    assert_eq!((bookings_of(&database, 1), balance(&database, "alice")), (1, 70));
}

#[tokio::test(start_paused = true)]
async fn an_operation_in_doubt_is_never_answered_not_executed() {
    for (fault, is_written) in [(Fault::Crash, false), (Fault::CrashAfter, true)] {
        let database = shard_with(&["bank", "alice"]).await;
        let node = Node::start(&database);
        node.store.order([Fault::Stall, fault]);
        let hurried = node.submit_for(vec![pay(1, "alice", "bank", 1)], 2_000);
        node.store.stalled(1).await;
        let later = node.submit(vec![pay(2, "alice", "bank", 2)]);
        node.store.release();
        let replies = hurried.await.unwrap();
        assert_eq!(replies, [Reply::Unknown], "{fault:?}: its deadline passes while the database is gone");
        assert_eq!(not_executed(&later.await.unwrap()[0]), Some(Reason::Unavailable), "it was in no commit");
        assert_eq!(not_executed(&node.one(pay(3, "alice", "bank", 3)).await), Some(Reason::Unavailable));
        database.restart();
        pause_ms(1_000).await;
        assert_eq!(bookings_of(&database, 1), usize::from(is_written), "{fault:?}");
        // The client that asks again learns what became of it.
        let again = node.one(pay(1, "alice", "bank", 1)).await;
        assert_eq!((posted(&again), answer(&again).replayed), (true, is_written), "{fault:?}");
        assert_eq!(balance(&database, "alice"), 99);
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_whose_deadline_passes_while_rows_are_read_is_not_executed() {
    let database = folded_shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    node.one(nothing(9)).await;
    node.store.slow_down_reads(Duration::from_secs(3));
    let late = node.submit_for(vec![pay(1, "alice", "bank", 1)], 2_000);
    let timely = node.submit_for(vec![pay(2, "alice", "bank", 2)], 20_000);
    assert_eq!(not_executed(&late.await.unwrap()[0]), Some(Reason::Deadline));
    assert!(posted(&timely.await.unwrap()[0]));
    assert_eq!((bookings_of(&database, 1), bookings_of(&database, 2)), (0, 1));
    assert_eq!(balance(&database, "alice"), 98);
}

#[tokio::test(start_paused = true)]
async fn each_operation_gets_its_own_answer_when_another_is_late_in_a_second_decision() {
    let database = folded_shard_with(&["bank", "alice", "bob"]).await;
    let node = Node::start(&database);
    node.one(nothing(9)).await;
    node.store.slow_down_reads(Duration::from_secs(3));
    // A group that fails stores nothing, so that the first decision is unsure. The second one reads the journal.
    let Operation::Transfer(poor) = pay(1, "bob", "bank", 1_000) else { panic!("a transfer") };
    let group = Operation::AtomicTransfers(vec![poor]);
    let operations =
        vec![queued(pay(2, "alice", "bank", 5), 5_000), queued(group, 0), queued(pay(3, "bank", "alice", 7), 0)];
    let replies = node.handle.execute(operations).await;
    assert_eq!(not_executed(&replies[0]), Some(Reason::Deadline), "{replies:?}");
    assert!(matches!(replies[1], Reply::Outcome(Outcome::Atomic(_))) && posted(&replies[2]), "{replies:?}");
    assert_eq!(answer(&replies[2]).amount, 7);
    assert_eq!((bookings_of(&database, 2), bookings_of(&database, 3)), (0, 1));
    assert_eq!(balance(&database, "alice"), 107);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_before_its_deadline_is_never_not_executed_when_the_answer_is_lost_after_it() {
    for fault in [Fault::CrashAfter, Fault::Crash, Fault::LoseAnswer] {
        let database = shard_with(&["bank", "alice"]).await;
        let node = Node::start(&database);
        node.store.order([Fault::Stall, fault]);
        let hurried = node.submit_for(vec![pay(1, "alice", "bank", 1)], 2_000);
        node.store.stalled(1).await;
        pause_ms(3_000).await;
        node.store.release();
        assert_eq!(hurried.await.unwrap(), [Reply::Unknown], "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_in_doubt_without_a_deadline_is_answered_when_the_database_is_back() {
    for (fault, is_written) in [(Fault::Crash, false), (Fault::CrashAfter, true)] {
        let database = shard_with(&["bank", "alice"]).await;
        let node = Node::start(&database);
        node.store.order([fault]);
        let patient = node.submit(vec![pay(1, "alice", "bank", 1)]);
        pause_ms(60_000).await;
        assert!(!patient.is_finished());
        database.restart();
        let replies = patient.await.unwrap();
        assert_eq!((posted(&replies[0]), answer(&replies[0]).replayed), (true, is_written), "{fault:?}");
        assert_eq!((bookings_of(&database, 1), balance(&database, "alice")), (1, 99));
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_that_takes_no_writes_refuses_what_waits_and_heals() {
    let database = shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    assert!(posted(&node.one(pay(1, "alice", "bank", 1)).await));
    database.set_read_only(true);
    let both = [node.submit(vec![pay(2, "alice", "bank", 1)]), node.submit(vec![pay(3, "alice", "bank", 1)])];
    for waiting in both {
        let replies = waiting.await.unwrap();
        assert_eq!(not_executed(&replies[0]), Some(Reason::Unavailable), "{replies:?}");
    }
    for _ in 0..20 {
        pause_ms(77).await;
        assert_eq!(node.handle.status().state, LaneState::Recovering, "the lane itself tries to write");
        let reply = node.one(pay(4, "alice", "bank", 1)).await;
        assert_eq!(not_executed(&reply), Some(Reason::Unavailable), "{reply:?}");
    }
    assert_eq!(balance(&database, "alice"), 99);
    database.set_read_only(false);
    pause_ms(1_000).await;
    assert_eq!(node.handle.status().state, LaneState::Serving, "without a request that tries");
    let again = node.one(pay(2, "alice", "bank", 1)).await;
    assert!(posted(&again) && !answer(&again).replayed);
    assert_eq!(balance(&database, "alice"), 98);
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_one_batch_and_no_more() {
    let database = shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    node.store.order([Fault::Refuse]);
    assert_eq!(not_executed(&node.one(pay(1, "alice", "bank", 1)).await), Some(Reason::Unavailable));
    pause_ms(1_000).await;
    assert!(posted(&node.one(pay(1, "alice", "bank", 1)).await));
    assert_eq!((bookings_of(&database, 1), balance(&database, "alice")), (1, 99));
}

#[tokio::test(start_paused = true)]
async fn after_a_new_session_an_empty_batch_leaves_a_marker() {
    let database = shard_with(&["bank"]).await;
    let node = Node::start(&database);
    let markers = || database.bookings().iter().filter(|booking| booking.kind == BookingKind::Marker).count();
    let before = (markers(), database.bookings().len());
    node.one(nothing(1)).await;
    assert_eq!((markers(), database.bookings().len()), (before.0 + 1, before.1 + 1));
    node.one(nothing(2)).await;
    assert_eq!(markers(), before.0 + 1, "one for each session");
    database.crash();
    database.restart();
    node.one(nothing(3)).await;
    assert_eq!(markers(), before.0 + 2);
}

#[tokio::test(start_paused = true)]
async fn an_acceptance_and_a_move_of_slots_make_the_lane_read_the_shard_again() {
    let database = shard_with(&["bank", "alice"]).await;
    let node = Node::start(&database);
    assert!(posted(&node.one(pay(1, "alice", "bank", 1)).await));
    database.change_ownership();
    assert!(posted(&node.one(pay(2, "alice", "bank", 1)).await));
    assert_eq!(node.handle.status().ownership_version, 2);
    database.accept();
    let reply = node.one(pay(3, "alice", "bank", 1)).await;
    assert!(posted(&reply) && !answer(&reply).replayed);
    node.fold_everything().await;
    database.check_folded();
    assert_eq!(balance(&database, "alice"), 97);
}

// === decided ahead ===

/// Operations that make a large batch, after `first`. They pay from the bank to accounts that no other operation uses.
fn large(first: Vec<Operation>) -> Vec<Operation> {
    let rest = (0..LARGE_BATCH as u128).map(|of| pay(100_000 + of, "bank", "till", 1));
    first.into_iter().chain(rest).collect()
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_is_decided_while_the_one_before_it_commits() {
    let database = folded_shard_with(&["bank", "alice", "bob", "carol", "till"]).await;
    let node = Node::start(&database);
    node.store.order([Fault::Stall]);
    let first = node.submit(vec![pay(1, "alice", "bob", 100)]);
    node.store.stalled(1).await;
    let reads = node.store.account_reads();
    let second = node.submit(large(vec![pay(2, "bob", "carol", 200)]));
    node.store.reads_accounts(reads + 1).await;
    assert!(!first.is_finished());
    node.store.release();
    assert!(posted(&first.await.unwrap()[0]));
    let second = second.await.unwrap();
    assert!(second.iter().all(posted), "bob has what the first batch brought");
    assert_eq!((balance(&database, "carol"), balance(&database, "till")), (300, 1_100));
    node.fold_everything().await;
    database.check_folded();
}

#[tokio::test(start_paused = true)]
async fn a_batch_decided_ahead_is_taken_back_when_the_one_before_it_fails() {
    for fault in [Fault::Swallow, Fault::LoseAnswer, Fault::Fence, Fault::Warn] {
        let database = folded_shard_with(&["bank", "alice", "bob", "carol", "till"]).await;
        let node = Node::start(&database);
        node.store.order([Fault::Stall, fault]);
        let first = node.submit(vec![pay(1, "alice", "bob", 100)]);
        node.store.stalled(1).await;
        let reads = node.store.account_reads();
        let second = node.submit(large(vec![pay(2, "bob", "carol", 200)]));
        node.store.reads_accounts(reads + 1).await;
        node.store.release();
        assert!(posted(&first.await.unwrap()[0]));
        assert!(second.await.unwrap().iter().all(posted));
        assert_eq!((bookings_of(&database, 1), bookings_of(&database, 2)), (1, 1), "{fault:?}");
        assert_eq!((balance(&database, "carol"), balance(&database, "till")), (300, 1_100), "{fault:?}");
        node.fold_everything().await;
        database.check_folded();
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_decided_ahead_does_not_rest_on_one_that_comes_out_otherwise() {
    let database = folded_shard_with(&["bank", "alice", "bob", "carol", "till"]).await;
    let (node, other) = (Node::start(&database), Node::start(&database));
    node.store.order([Fault::Stall]);
    let first = node.submit(vec![pay(1, "alice", "bob", 100)]);
    node.store.stalled(1).await;
    let reads = node.store.account_reads();
    let second = node.submit(large(vec![pay(2, "bob", "carol", 200)]));
    node.store.reads_accounts(reads + 1).await;
    assert!(posted(&other.one(pay(3, "alice", "bank", 50)).await), "another node takes what alice has");
    node.store.release();
    let first = first.await.unwrap();
    assert_eq!(refusal(&first[0]), Some(Refusal::InsufficientFunds), "{first:?}");
    let second = second.await.unwrap();
    assert_eq!(refusal(&second[0]), Some(Refusal::InsufficientFunds), "{:?}", second[0]);
    assert!(second[1..].iter().all(posted));
    assert_eq!(["alice", "bob", "carol"].map(|name| balance(&database, name)), [50, 100, 100]);
    node.fold_everything().await;
    database.check_folded();
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_reads_holds_waits_for_the_one_before_it() {
    let database = folded_shard_with(&["bank", "alice", "shop", "till"]).await;
    let node = Node::start(&database);
    node.store.order([Fault::Stall]);
    let first = node.submit(vec![hold(1, "alice", 60)]);
    node.store.stalled(1).await;
    let reads = (node.store.account_reads(), node.store.journal_reads());
    let second = node.submit(large(vec![capture(2, 1, "alice", 40)]));
    pause_ms(1_000).await;
    assert_eq!((node.store.account_reads(), node.store.journal_reads()), reads, "it is not decided yet");
    assert!(!second.is_finished());
    node.store.release();
    assert!(matches!(first.await.unwrap()[0], Reply::Outcome(Outcome::Hold(HoldOutcome::Placed(_)))));
    let second = second.await.unwrap();
    assert!(second.iter().all(posted), "{:?}", second[0]);
    let alice = account(&database, "alice");
    assert_eq!((alice.posted, alice.held), (60, 20));
    // The same of a reversal, which depends on what is posted.
    node.store.order([Fault::Stall]);
    let first = node.submit(vec![pay(3, "alice", "shop", 10)]);
    node.store.stalled(2).await;
    let reads = (node.store.account_reads(), node.store.journal_reads());
    let purpose = Purpose::Reversal { of: number(3), whole: false };
    let reversal = Operation::Transfer(Transfer { purpose, ..payment(4, "shop", "alice", 10) });
    let rest = (0..LARGE_BATCH as u128).map(|of| pay(200_000 + of, "bank", "till", 1));
    let second = node.submit(std::iter::once(reversal).chain(rest).collect());
    pause_ms(1_000).await;
    assert_eq!((node.store.account_reads(), node.store.journal_reads()), reads);
    node.store.release();
    assert!(posted(&first.await.unwrap()[0]) && second.await.unwrap().iter().all(posted));
    node.fold_everything().await;
    database.check_folded();
}
