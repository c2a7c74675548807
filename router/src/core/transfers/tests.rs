//! Transfers through real connections to fake shards with the real ledger rules.

mod disturbed;

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use ledger::{
    AccountStatus, Limit, Refusal, Side, TransferId,
    operation::UpdateAccount,
    outcome::{TransferAnswer, TransferState},
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    core::{
        call::CallError,
        fake_cluster::{Cluster, Trouble, create, id, quick, soon, standing, transfer},
        reply::{AccountReply, AtomicReply, NewTransfer, SagaFilter, TransferReply},
    },
    trace,
};

fn state(reply: &Result<TransferReply, CallError>) -> TransferState {
    match reply {
        Ok(TransferReply::Done(answer) | TransferReply::Pending(answer)) => answer.state,
        other => panic!("no transfer: {other:?}"),
    }
}

fn is_posted(reply: &Result<TransferReply, CallError>) -> bool {
    matches!(state(reply), TransferState::Posted { .. })
}

fn refusal(reply: &Result<TransferReply, CallError>) -> (Refusal, Option<Side>) {
    match state(reply) {
        TransferState::Rejected { refused, .. } => (refused.refusal, refused.side),
        other => panic!("not rejected: {other:?}"),
    }
}

async fn freeze(cluster: &Cluster, account: &str, status: AccountStatus) {
    let update = UpdateAccount {
        ordered_by: None,
        id: id(account),
        status: Some(status),
        overdraft: None,
        max_balance: None,
        metadata: None,
    };
    let reply = cluster.router.update_account(update, soon()).await;
    assert!(matches!(reply, Ok(AccountReply::Updated(_))), "{reply:?}");
}

/// A deadline that passes before there is an answer, and long after the question was sent, however busy the machine.
fn too_late() -> Instant {
    Instant::now() + Duration::from_secs(2)
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// === one transfer ===

#[tokio::test]
async fn money_moves_within_a_shard_and_between_shards() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    let carol = cluster.account_on(0, "carol");
    cluster.fund(&[(&alice, 100), (&bob, 0), (&carol, 0)]).await;

    let local = cluster.router.transfer(transfer(1, &alice, &carol, 30), soon()).await;
    let crossing = cluster.router.transfer(transfer(2, &alice, &bob, 50), soon()).await;
    assert!(is_posted(&local) && is_posted(&crossing), "{local:?} {crossing:?}");
    let Ok(TransferReply::Done(TransferAnswer { cross_shard, debit_after, replayed, .. })) = crossing else {
        panic!()
    };
    assert!(cross_shard && !replayed);
    assert_eq!(debit_after.map(|after| after.posted), Some(20));
    assert_eq!(
        (cluster.posted(&alice).await, cluster.posted(&bob).await, cluster.posted(&carol).await),
        (20, 50, 30)
    );
    assert_eq!(cluster.nodes[0].pending(), 0);

    let again = cluster.router.transfer(transfer(2, &alice, &bob, 50), soon()).await;
    assert!(matches!(&again, Ok(TransferReply::Done(answer)) if answer.replayed), "{again:?}");
    let other = cluster.router.transfer(transfer(2, &alice, &bob, 51), soon()).await;
    assert_eq!(other, Ok(TransferReply::Mismatch { field: "amount" }));
    assert_eq!(cluster.posted(&bob).await, 50);
}

#[tokio::test]
async fn the_credit_side_refuses_and_the_payer_has_the_money_back() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
    freeze(&cluster, &bob, AccountStatus::Closed).await;
    let closed = cluster.router.transfer(transfer(1, &alice, &bob, 50), soon()).await;
    assert_eq!(refusal(&closed), (Refusal::AccountClosed, Some(Side::Credit)));
    let nobody = cluster.router.transfer(transfer(2, &alice, &cluster.account_on(1, "no"), 50), soon()).await;
    assert_eq!(refusal(&nobody), (Refusal::AccountNotFound, Some(Side::Credit)));
    let short = cluster.router.transfer(transfer(3, &alice, &bob, 101), soon()).await;
    assert_eq!(refusal(&short), (Refusal::InsufficientFunds, Some(Side::Debit)));
    let unknown = cluster.router.transfer(transfer(4, "nobody", &bob, 1), soon()).await;
    assert_eq!(unknown, Ok(TransferReply::DebitNotFound));
    assert_eq!(cluster.posted(&alice).await, 100);
}

// === faults ===

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    for trouble in [Trouble::LoseAnswer, Trouble::LoseRequest, Trouble::Unknown] {
        let cluster = Cluster::start(2).await;
        let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
        cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
        cluster.nodes[0].expect_trouble([trouble]);
        cluster.nodes[1].expect_trouble([trouble]);
        let reply = cluster.router.transfer(transfer(1, &alice, &bob, 50), soon()).await;
        assert!(is_posted(&reply), "{trouble:?}: {reply:?}");
        assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (50, 50));
    }
}

#[tokio::test]
async fn a_lost_answer_that_is_asked_for_again_is_noted_for_the_log() {
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("alice", 100), ("bob", 0)]).await;
    for (number, trouble) in [(1, None), (2, Some(Trouble::LoseAnswer))] {
        cluster.nodes[0].expect_trouble(trouble);
        let (reply, was_sent_again) = trace::within(Some(trace::some_request()), async {
            let reply = cluster.router.transfer(transfer(number, "alice", "bob", 50), soon()).await;
            (reply, trace::was_sent_again())
        })
        .await;
        let Ok(TransferReply::Done(answer)) = reply else { panic!("{reply:?}") };
        // The effect is the request's own, although the last sending finds it stored.
        assert_eq!((answer.replayed, was_sent_again), (trouble.is_some(), trouble.is_some()));
    }
}

#[tokio::test]
async fn a_refusal_after_a_lost_answer_proves_nothing() {
    use ledger::outcome::Reason;
    let reasons = [Reason::Unavailable, Reason::Overloaded, Reason::Deadline, Reason::ShuttingDown];
    join_all(reasons.map(async |reason| {
        let cluster = Cluster::start(1).await;
        cluster.fund(&[("alice", 100), ("bob", 0)]).await;
        cluster.nodes[0].expect_trouble([Trouble::LoseAnswer, Trouble::Refuse(reason)]);
        let reply = cluster.router.transfer(transfer(1, "alice", "bob", 50), soon()).await;
        assert!(is_posted(&reply), "sent until there is an answer: {reply:?}");

        cluster.nodes[0].expect_trouble([Trouble::LoseAnswer]);
        cluster.nodes[0].expect_trouble([Trouble::Refuse(reason); 100]);
        let reply = cluster.router.transfer(transfer(2, "alice", "bob", 50), too_late()).await;
        assert_eq!(reply, Err(CallError::OutcomeUnknown { shard: "s0".into() }), "{reason:?}: it was executed");
        assert_eq!(cluster.posted("bob").await, 100);
    }))
    .await;
}

#[tokio::test]
async fn a_refusal_before_a_lost_answer_proves_nothing_either() {
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("alice", 100), ("bob", 0)]).await;
    // The second transfer is unknown, so both are sent again; then both are executed, and the answer is lost.
    cluster.nodes[0].expect_trouble([Trouble::RefuseFirst(ledger::outcome::Reason::Unavailable)]);
    cluster.nodes[0].expect_trouble([Trouble::LoseAnswer]);
    cluster.nodes[0].expect_trouble([Trouble::LoseRequest; 100]);
    let both = vec![transfer(1, "alice", "bob", 20), transfer(2, "alice", "bob", 30)];
    let replies = cluster.router.transfer_batch(both, too_late()).await;
    let unknown = Err(CallError::OutcomeUnknown { shard: "s0".into() });
    assert_eq!(replies, [unknown.clone(), unknown]);
    assert_eq!(cluster.posted("bob").await, 50);
}

#[tokio::test]
async fn an_answer_that_stores_nothing_says_nothing_of_a_lost_sending() {
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("bob", 0)]).await;
    let unknown = CallError::OutcomeUnknown { shard: "s0".into() };
    cluster.nodes[0].expect_trouble([Trouble::LoseRequest]);
    let reply = cluster.router.transfer(transfer(1, "nobody", "bob", 1), soon()).await;
    assert_eq!(reply, Err(unknown.clone()), "the lost sending may come when the account is open");
    cluster.nodes[0].expect_trouble([Trouble::LoseRequest]);
    let reply = cluster.router.transfer_atomic(vec![transfer(2, "nobody", "bob", 1)], soon()).await;
    assert_eq!(reply, Err(unknown));
    let reply = cluster.router.transfer(transfer(1, "nobody", "bob", 1), soon()).await;
    assert_eq!(reply, Ok(TransferReply::DebitNotFound));
}

#[tokio::test]
async fn a_refusal_alone_had_no_effect() {
    use ledger::outcome::Reason;
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("alice", 100), ("bob", 0)]).await;
    for (reason, error) in [
        (Reason::Unavailable, CallError::Unavailable { shard: "s0".into() }),
        (Reason::ShuttingDown, CallError::Unavailable { shard: "s0".into() }),
        (Reason::Overloaded, CallError::Overloaded { shard: "s0".into() }),
        (Reason::Deadline, CallError::Deadline { shard: "s0".into() }),
        (Reason::Internal, CallError::Illegal { shard: "s0".into(), detail: String::new() }),
    ] {
        cluster.nodes[0].expect_trouble([Trouble::Refuse(reason)]);
        let reply = cluster.router.transfer(transfer(1, "alice", "bob", 50), soon()).await;
        assert_eq!(reply, Err(error.clone()));
        assert!(error.is_not_executed());
    }
    assert_eq!(cluster.posted("bob").await, 0);
}

#[tokio::test]
async fn an_account_update_is_never_sent_twice() {
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("alice", 0)]).await;
    cluster.nodes[0].expect_trouble([Trouble::LoseAnswer]);
    let before = cluster.nodes[0].executions.load(Ordering::Relaxed);
    let update = UpdateAccount {
        ordered_by: None,
        id: id("alice"),
        status: Some(AccountStatus::Frozen),
        overdraft: None,
        max_balance: None,
        metadata: None,
    };
    let reply = cluster.router.update_account(update, soon()).await;
    assert!(matches!(reply, Err(CallError::OutcomeUnknown { .. })), "{reply:?}");
    assert_eq!(cluster.nodes[0].executions.load(Ordering::Relaxed), before + 1);
}

#[tokio::test]
async fn a_node_that_is_killed_with_a_decision_on_its_way_decides_once_when_it_is_back() {
    let mut cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
    // Killed with the decision on its way.
    cluster.nodes[1].hang(true);
    let router = cluster.router.clone();
    let order = transfer(1, &alice, &bob, 50);
    let reply = cluster.tasks.spawn("order", async move { router.transfer(order, soon()).await });
    eventually("reserved", async || cluster.nodes[0].pending() == 1).await;
    cluster.stop(1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.nodes[1].hang(false);
    cluster.restart(1).await;
    // Pending if the breaker has opened meanwhile.
    let reply = reply.await.unwrap();
    assert!(is_posted(&reply) || state(&reply) == TransferState::Pending, "{reply:?}");
    cluster.nodes[0].sagas_are_due_after(Duration::ZERO);
    eventually("settled", async || cluster.nodes[0].pending() == 0).await;
    assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (50, 50));
}

#[tokio::test]
async fn a_shard_that_is_gone_holds_up_nobody_else() {
    let mut cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    let carol = cluster.account_on(0, "carol");
    cluster.fund(&[(&alice, 100), (&bob, 100), (&carol, 0)]).await;
    cluster.stop(1);
    let begun = Instant::now();
    let orders =
        vec![transfer(1, &alice, &carol, 10), transfer(2, &bob, &carol, 10), transfer(3, &alice, &carol, 10)];
    let replies = cluster.router.transfer_batch(orders, too_late()).await;
    assert!(is_posted(&replies[0]) && is_posted(&replies[2]), "{replies:?}");
    // Unavailable if the connection was known to be gone, unknown if that was found out with the order on its way.
    assert!(replies[1].is_err(), "{replies:?}");
    for n in 4..10 {
        let reply = cluster.router.transfer(transfer(n, &bob, &carol, 10), soon()).await;
        assert_eq!(reply, Err(CallError::Unavailable { shard: "s1".into() }));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "no request waits for its deadline");
    let status = cluster.router.shard_status().await;
    assert!(status[0].status.is_ok() && status[1].status.is_err());
    assert_eq!(status[0].breaker, "closed");
    // Open, unless a probe is under way.
    assert!(["open", "probing"].contains(&status[1].breaker), "{}", status[1].breaker);

    cluster.restart(1).await;
    eventually("the breaker lets a probe through", async || {
        cluster.router.transfer(transfer(20, &bob, &carol, 10), soon()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn at_the_deadline_a_saga_is_pending_and_recovery_finishes_it() {
    join_all([AccountStatus::Open, AccountStatus::Closed].map(async |verdict| {
        let cluster = Cluster::start(2).await;
        let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
        cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
        freeze(&cluster, &bob, verdict).await;
        cluster.nodes[1].hang(true);
        let order = transfer(7, &alice, &bob, 50);
        let dependent = transfer(8, &bob, &alice, 1);
        let replies = cluster.router.transfer_batch(vec![order, dependent], too_late()).await;
        assert!(matches!(replies[0], Ok(TransferReply::Pending(_))), "{replies:?}");
        assert!(matches!(replies[1], Err(CallError::Deadline { .. })), "it waited for the first: {replies:?}");
        assert_eq!(cluster.posted(&alice).await, 50, "in transit");

        let filter = SagaFilter { older_than: Duration::ZERO, limit: 10 };
        let (sagas, unreachable) = cluster.router.sagas(filter, soon()).await;
        assert_eq!((sagas.len(), unreachable.len()), (1, 0));
        assert_eq!((&*sagas[0].source, &*sagas[0].destination), ("s0", "s1"));

        cluster.nodes[1].hang(false);
        cluster.nodes[0].sagas_are_due_after(Duration::ZERO);
        eventually("recovered", async || cluster.nodes[0].pending() == 0).await;
        let found =
            cluster.router.find_transfer(TransferId(Uuid::from_u128(7)), Some(&id(&alice)), |_| true, soon()).await;
        let found = found.unwrap().found.pop().unwrap();
        let (register, decided_by) = found.register.unwrap();
        assert_eq!((&*found.shard, &*decided_by), ("s0", "s1"));
        let open = verdict == AccountStatus::Open;
        assert_eq!(register.credited, open);
        assert_eq!(matches!(standing(&found.record), TransferState::Posted { .. }), open);
        assert_eq!(cluster.posted(&alice).await, if open { 50 } else { 100 });
    }))
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_executes_nothing() {
    let config = crate::config::CoreConfig { queue_operations: 4, rpcs_in_flight: 1, ..quick() };
    let cluster = Cluster::start_with(1, config, true).await;
    cluster.fund(&[("alice", 1000), ("bob", 0)]).await;
    cluster.nodes[0].hang(true);
    let mut waiting = Vec::new();
    for n in 0..20 {
        if n == 1 {
            // The others find the only call slot taken.
            eventually("the first is on its way", async || cluster.nodes[0].waiting() == 1).await;
        }
        let (router, deadline) = (cluster.router.clone(), too_late());
        let order = transfer(n, "alice", "bob", 1);
        waiting.push(cluster.tasks.spawn("order", async move { router.transfer(order, deadline).await }));
    }
    let (mut overloaded, mut late, mut unknown) = (0, 0, 0);
    for reply in waiting {
        match reply.await.unwrap() {
            Err(CallError::Overloaded { .. }) => overloaded += 1,
            Err(CallError::Deadline { .. }) => late += 1,
            Err(CallError::OutcomeUnknown { .. }) => unknown += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(overloaded >= 10 && late >= 1 && unknown >= 1, "{overloaded} {late} {unknown}");
    cluster.nodes[0].hang(false);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(cluster.posted("bob").await <= unknown, "what was refused or late never took effect");
}

#[tokio::test]
async fn shutting_down_begins_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("alice", 100), ("bob", 0)]).await;
    cluster.tasks.token().cancel();
    let reply = cluster.router.transfer(transfer(1, "alice", "bob", 1), soon()).await;
    assert_eq!(reply, Err(CallError::ShuttingDown));
}

// === routes ===

#[tokio::test]
async fn a_router_with_an_old_map_heals_by_itself() {
    for names_owner in [true, false] {
        let cluster = Cluster::start_with(3, quick(), names_owner).await;
        let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
        cluster.fund(&[(&alice, 100), (&bob, 100)]).await;
        cluster.move_slot_of(&alice, 2);
        let orders =
            vec![transfer(1, &alice, &bob, 10), transfer(2, &bob, &alice, 50), transfer(3, &alice, &bob, 140)];
        let replies = cluster.router.transfer_batch(orders, soon()).await;
        assert!(replies.iter().all(is_posted), "{replies:?}");
        assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (0, 200));

        // A reader with the same old idea, and an account opened in a moved slot.
        cluster.move_slot_of(&bob, 0);
        assert_eq!(cluster.posted(&bob).await, 200);
        let sibling = format!("{{{bob}}}x");
        cluster.move_slot_of(&bob, 2);
        let replies = cluster.router.create_accounts(vec![create(&sibling, Limit::ZERO)], soon()).await;
        assert!(matches!(&replies[0], Ok(AccountReply::Created(at)) if &*at.shard == "s2"), "{replies:?}");
    }
}

#[tokio::test]
async fn requests_for_a_slot_between_two_shards_wait_until_it_has_arrived() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 100)]).await;
    cluster.release_slot_of(&alice, 1);
    let spawn = |number, debit: &str, credit: &str| {
        let (router, order) = (cluster.router.clone(), transfer(number, debit, credit, 10));
        cluster.tasks.spawn("order", async move { router.transfer(order, soon()).await })
    };
    let (paid, received) = (spawn(1, &alice, &bob), spawn(2, &bob, &alice));
    let reader = {
        let (router, alice) = (cluster.router.clone(), id(&alice));
        cluster.tasks.spawn("read", async move { router.account(&alice, soon()).await })
    };
    let waited = || cluster.router.handovers().iter().map(|record| record.waited).sum::<u64>();
    eventually("all three wait", async || waited() >= 3).await;
    let executions = || cluster.nodes[1].executions.load(std::sync::atomic::Ordering::Relaxed);
    let before = executions();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(executions(), before, "nothing is sent again before the slot has arrived");
    cluster.nodes[1].take_slots();
    assert!(is_posted(&paid.await.unwrap()) && is_posted(&received.await.unwrap()));
    assert!(reader.await.unwrap().unwrap().is_some());
    let records = cluster.router.handovers();
    let [record] = records.as_slice() else { panic!("one hand-over: {records:?}") };
    assert_eq!((&*record.shard, record.epoch, record.refused), ("s1", 2, 0));
    assert_eq!((record.waited, record.replayed), (waited(), waited()));
    let waits: u64 = record.waits.iter().map(|(_, count)| count).sum();
    assert!(waits == record.replayed && record.waits[0].0 > 100_000, "{record:?}");
}

#[tokio::test]
async fn a_slot_that_does_not_arrive_is_unavailable_at_the_deadline() {
    let cluster = Cluster::start(2).await;
    let alice = cluster.account_on(0, "alice");
    cluster.fund(&[(&alice, 100)]).await;
    cluster.release_slot_of(&alice, 1);
    let deadline = Instant::now() + Duration::from_millis(300);
    let reply = cluster.router.transfer(transfer(1, &alice, &format!("{{{alice}}}bank"), 10), deadline).await;
    assert!(matches!(reply, Err(CallError::Unavailable { .. } | CallError::Deadline { .. })), "{reply:?}");
    assert_eq!(cluster.router.handovers()[0].refused, 1);
    cluster.nodes[1].take_slots();
    assert_eq!(cluster.posted(&alice).await, 100);
}

#[tokio::test]
async fn a_saga_survives_the_move_of_both_its_accounts() {
    let cluster = Cluster::start(3).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    cluster.fund(&[(&alice, 100), (&bob, 0)]).await;
    cluster.nodes[1].hang(true);
    let router = cluster.router.clone();
    let order = transfer(1, &alice, &bob, 50);
    let reply = cluster.tasks.spawn("order", async move { router.transfer(order, soon()).await });
    eventually("reserved", async || cluster.nodes[0].pending() == 1).await;
    cluster.move_slot_of(&alice, 2);
    cluster.move_slot_of(&bob, 0);
    cluster.nodes[1].hang(false);
    let reply = reply.await.unwrap();
    assert!(is_posted(&reply), "{reply:?}");
    assert_eq!((cluster.posted(&alice).await, cluster.posted(&bob).await), (50, 50));
}

// === groups ===

#[tokio::test]
async fn an_atomic_group_is_of_one_shard() {
    let cluster = Cluster::start(2).await;
    let (alice, bob) = (cluster.account_on(0, "alice"), cluster.account_on(1, "bob"));
    let carol = cluster.account_on(0, "carol");
    cluster.fund(&[(&alice, 100), (&bob, 0), (&carol, 0)]).await;
    let group = |orders: Vec<NewTransfer>| cluster.router.transfer_atomic(orders, soon());
    let crossing = group(vec![transfer(1, &alice, &carol, 1), transfer(2, &alice, &bob, 1)]).await;
    assert_eq!(crossing, Ok(AtomicReply::CrossShard));
    let short = group(vec![transfer(3, &alice, &carol, 60), transfer(4, &alice, &carol, 60)]).await;
    assert!(matches!(short, Ok(AtomicReply::Failed { culprit: 1, .. })), "{short:?}");
    let good = group(vec![transfer(3, &alice, &carol, 60), transfer(4, &carol, &alice, 10)]).await;
    assert!(matches!(good, Ok(AtomicReply::Stored(replies)) if replies.len() == 2));
    assert_eq!((cluster.posted(&alice).await, cluster.posted(&carol).await), (50, 50));
}

/// A client that has lost the answer sends the group again. "Not executed" would be wrong.
#[tokio::test]
async fn a_repeated_group_is_a_replay_after_its_accounts_moved_apart() {
    let cluster = Cluster::start(2).await;
    let (alice, carol) = (cluster.account_on(0, "alice"), cluster.account_on(0, "carol"));
    cluster.fund(&[(&alice, 100), (&carol, 0)]).await;
    let group = |ids: [u128; 2]| {
        let orders = vec![transfer(ids[0], &alice, &carol, 60), transfer(ids[1], &alice, &carol, 10)];
        cluster.router.transfer_atomic(orders, soon())
    };
    let first = group([1, 2]).await.unwrap();
    assert!(matches!(&first, AtomicReply::Stored(replies) if replies.len() == 2), "{first:?}");
    cluster.move_slot_of(&carol, 1);
    let again = group([1, 2]).await.unwrap();
    let AtomicReply::Stored(replies) = &again else { panic!("{again:?}") };
    assert!(replies.iter().all(|reply| matches!(reply, TransferReply::Done(answer) if answer.replayed)));
    assert_eq!(group([3, 4]).await, Ok(AtomicReply::CrossShard));
    assert_eq!(group([1, 4]).await, Ok(AtomicReply::CrossShard));
    assert_eq!((cluster.posted(&alice).await, cluster.posted(&carol).await), (30, 70));
}

#[tokio::test]
async fn a_local_batch_is_one_call_per_shard() {
    let cluster = Cluster::start(2).await;
    let names: Vec<String> = (0..40).map(|n| cluster.account_on(n % 2, &format!("a{n}-"))).collect();
    let funded: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1000)).collect();
    cluster.fund(&funded).await;
    let calls = || -> usize { cluster.nodes.iter().map(|node| node.executions.load(Ordering::Relaxed)).sum() };
    let before = calls();
    let orders = (0..1000_usize).map(|n| {
        let (debit, credit) = (&names[n % 40], &names[(n + 2) % 40]);
        transfer(n as u128, debit, credit, 1)
    });
    let replies = cluster.router.transfer_batch(orders.collect(), soon()).await;
    assert!(replies.iter().all(is_posted));
    assert_eq!(calls() - before, 2);
}

#[tokio::test]
async fn a_batch_fills_and_empties_accounts_in_its_order() {
    const MOST: i64 = i64::MAX;
    let cluster = Cluster::start(2).await;
    let (near, far) = (cluster.account_on(1, "near"), cluster.account_on(0, "far"));
    let (payee, closed) = (cluster.account_on(1, "payee"), cluster.account_on(0, "closed"));
    let opened = [(&near, Limit::Unlimited), (&far, Limit::Unlimited), (&payee, Limit::ZERO), (&closed, Limit::ZERO)];
    let opened = opened.into_iter().map(|(name, overdraft)| create(name, overdraft)).collect();
    assert!(cluster.router.create_accounts(opened, soon()).await.iter().all(Result::is_ok));
    freeze(&cluster, &closed, AccountStatus::Closed).await;
    // What comes from the other shard is decided last, and is first all the same: into an empty account, and into the rest of
    // a full one.
    for (first, second) in [(MOST / 3 * 2, MOST / 3 * 2), (MOST - MOST / 3 * 2, 1)] {
        let number = first.unsigned_abs().into();
        let batch = vec![transfer(number, &far, &payee, first), transfer(number + 1, &near, &payee, second)];
        let replies = cluster.router.transfer_batch(batch, soon()).await;
        assert!(is_posted(&replies[0]), "{replies:?}");
        assert_eq!(refusal(&replies[1]), (Refusal::BalanceOverflow, Some(Side::Credit)));
    }
    // `near` owes all that it can. What the first could not pay is there for the second.
    let drained = transfer(1, &near, &far, MOST);
    assert!(is_posted(&cluster.router.transfer(drained, soon()).await));
    let batch = vec![transfer(2, &near, &closed, 1), transfer(3, &near, &cluster.account_on(1, "nobody"), 1)];
    let replies = cluster.router.transfer_batch(batch, soon()).await;
    assert_eq!(refusal(&replies[0]), (Refusal::AccountClosed, Some(Side::Credit)));
    assert_eq!(refusal(&replies[1]), (Refusal::AccountNotFound, Some(Side::Credit)));
}

/// What must be equal: how each transfer ended.
fn end(reply: &Result<TransferReply, CallError>) -> String {
    match reply {
        Ok(TransferReply::Done(answer)) => match answer.state {
            TransferState::Rejected { refused, .. } => format!("{refused:?}"),
            other => other.as_str().to_owned(),
        },
        other => format!("{other:?}"),
    }
}

/// Random batches over three shards, begun by a shorter one and some answers lost on the way, against the same transfers one by
/// one on one shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_over_shards_is_as_if_one_after_another() {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let order = (0..NAMES.len(), 1..NAMES.len(), 1..80_i64)
        .prop_map(|(from, step, amount)| (NAMES[from], NAMES[(from + step) % NAMES.len()], amount));
    let batches = prop::collection::vec(prop::collection::vec(order, 1..40), 12);
    // Another run another case; to repeat one, put the seed it printed here.
    let seed = telemetry::clock::now_us();
    eprintln!("seed {seed}");
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let batches = batches.new_tree(&mut runner).unwrap().current();

    let (many, one) = (Cluster::start(3).await, Cluster::start(1).await);
    for node in &many.nodes {
        // Recovery takes what it may as soon as it may: not what a batch has in hand.
        node.sagas_are_due_after(Duration::ZERO);
    }
    let funded = NAMES.map(|name| (name, 100));
    many.fund(&funded).await;
    one.fund(&funded).await;
    for cluster in [&many, &one] {
        freeze(cluster, "g", AccountStatus::Frozen).await;
    }
    let mut number = 0;
    for batch in batches {
        for node in &many.nodes {
            node.expect_trouble([Trouble::LoseAnswer]);
        }
        let orders: Vec<NewTransfer> = batch
            .iter()
            .map(|(debit, credit, amount)| {
                number += 1;
                transfer(number, debit, credit, *amount)
            })
            .collect();
        many.router.transfer_batch(orders[..orders.len() / 2].to_vec(), soon()).await;
        let together = many.router.transfer_batch(orders.clone(), soon()).await;
        let mut one_by_one = Vec::new();
        for order in orders {
            one_by_one.push(one.router.transfer(order, soon()).await);
        }
        let ends = |replies: &[_]| -> Vec<String> { replies.iter().map(end).collect() };
        assert_eq!(ends(&together), ends(&one_by_one), "seed {seed}: {batch:?}");
        for name in NAMES {
            assert_eq!(many.posted(name).await, one.posted(name).await, "seed {seed}: {name} after {batch:?}");
        }
    }
}
