//! Holds, captures, reversals and dry runs through real connections to fake shards with the real ledger rules.

use std::time::Duration;

use ledger::{
    AccountStatus, HoldKey, HoldStatus, Limit, Refusal, Side, TransferId,
    operation::{PlaceHold, Purpose, UpdateAccount},
    outcome::TransferState,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::core::{
    call::CallError,
    fake_cluster::{Cluster, Trouble, hold, id, soon, transfer},
    reply::{HoldReply, NewTransfer, ReleaseReply, TransferReply},
};

fn capture(number: u128, of: &PlaceHold, amount: Option<i64>, finalize: bool) -> NewTransfer {
    NewTransfer {
        ordered_by: None,
        id: TransferId(Uuid::from_u128(number)),
        debit: of.debit.clone(),
        credit: of.credit.clone(),
        asset: of.asset,
        amount: amount.unwrap_or(0),
        metadata: of.metadata.clone(),
        purpose: Purpose::Capture { hold: of.id, whole: amount.is_none(), finalize },
    }
}

fn reversal(number: u128, of: &NewTransfer, amount: i64) -> NewTransfer {
    NewTransfer {
        purpose: Purpose::Reversal { of: of.id, whole: false },
        ..transfer(number, of.credit.as_str(), of.debit.as_str(), amount)
    }
}

fn posted_amount(reply: Result<TransferReply, CallError>) -> i64 {
    match reply {
        Ok(TransferReply::Done(answer)) if matches!(answer.state, TransferState::Posted { .. }) => answer.amount,
        other => panic!("not posted: {other:?}"),
    }
}

fn refusal(reply: Result<TransferReply, CallError>) -> (Refusal, Option<Side>) {
    match reply {
        Ok(TransferReply::Done(answer)) => match answer.state {
            TransferState::Rejected { refused, .. } => (refused.refusal, refused.side),
            state => panic!("not rejected: {state:?}"),
        },
        other => panic!("not rejected: {other:?}"),
    }
}

async fn place(cluster: &Cluster, order: &PlaceHold) {
    match cluster.router.place_hold(order.clone(), soon()).await {
        Ok(HoldReply::Placed(answer)) => assert_eq!(answer.refused, None),
        other => panic!("not held: {other:?}"),
    }
}

async fn release(cluster: &Cluster, key: HoldKey) -> ReleaseReply {
    cluster.router.release_hold(key.into(), soon()).await.unwrap()
}

async fn set_status(cluster: &Cluster, account: &str, status: AccountStatus) {
    let update = UpdateAccount {
        ordered_by: None,
        id: id(account),
        status: Some(status),
        overdraft: None,
        max_balance: None,
        metadata: None,
    };
    cluster.router.update_account(update, soon()).await.unwrap();
}

/// (posted, held)
async fn balances(cluster: &Cluster, account: &str) -> (i64, i64) {
    let account = cluster.router.account(&id(account), soon()).await.unwrap().unwrap().value;
    (account.posted, account.held)
}

/// Asks with little time. A busy machine may need more of it to get any answer at all, and is given it.
async fn in_a_moment<T>(ask: impl AsyncFn(Instant) -> Result<T, CallError>) -> Result<T, CallError> {
    let mut time = Duration::from_millis(100);
    loop {
        match ask(Instant::now() + time).await {
            Err(CallError::Deadline { .. } | CallError::OutcomeUnknown { .. }) if time < Duration::from_secs(3) => {
                time *= 2;
            }
            answer => return answer,
        }
    }
}

/// Waits until a transfer from this shard to another one is under way.
async fn is_reserved(cluster: &Cluster, shard: usize) {
    while cluster.nodes[shard].pending() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Two shards, an account with 100 on the first, empty ones on both.
async fn two_shards() -> (Cluster, String, String, String) {
    let cluster = Cluster::start(2).await;
    let (payer, near) = (cluster.account_on(0, "payer"), cluster.account_on(0, "near"));
    let far = cluster.account_on(1, "far");
    cluster.fund(&[(&payer, 100), (&near, 0), (&far, 0)]).await;
    (cluster, payer, near, far)
}

// === holds and captures ===

#[tokio::test]
async fn a_hold_is_captured_in_parts_and_released_wherever_the_payee_lives() {
    let (cluster, payer, near, far) = two_shards().await;
    for (number, payee) in [(10, &near), (20, &far)] {
        let order = hold(number, &payer, payee, 40);
        place(&cluster, &order).await;
        assert_eq!(balances(&cluster, &payer).await.1, 40);
        let part = cluster.router.transfer(capture(number + 1, &order, Some(10), false), soon()).await;
        assert_eq!(posted_amount(part), 10);
        let too_much = cluster.router.transfer(capture(number + 2, &order, Some(31), true), soon()).await;
        assert_eq!(refusal(too_much), (Refusal::ExceedsHold, None));
        let found = cluster.router.find_hold(order.id, None, |_| true, soon()).await.unwrap().found;
        assert_eq!((found.len(), found[0].hold.captured, found[0].hold.remaining()), (1, 10, 30));

        let ReleaseReply::Released { hold: released, replayed: false, .. } = release(&cluster, order.key()).await
        else {
            panic!("not released")
        };
        assert_eq!((released.status, released.captured), (HoldStatus::Released, 10));
        assert!(matches!(release(&cluster, order.key()).await, ReleaseReply::Released { replayed: true, .. }));
        let late = cluster.router.transfer(capture(number + 3, &order, None, true), soon()).await;
        assert_eq!(refusal(late), (Refusal::HoldReleased, None));
    }
    assert_eq!(balances(&cluster, &payer).await, (80, 0));
    assert_eq!((cluster.posted(&near).await, cluster.posted(&far).await), (10, 10));
}

#[tokio::test]
async fn a_capture_of_all_that_remains_says_how_much_that_was() {
    let (cluster, payer, near, far) = two_shards().await;
    for (number, payee) in [(10, &near), (20, &far)] {
        let order = hold(number, &payer, payee, 40);
        place(&cluster, &order).await;
        let whole = capture(number + 1, &order, None, true);
        assert_eq!(posted_amount(cluster.router.transfer(whole.clone(), soon()).await), 40);
        assert_eq!(posted_amount(cluster.router.transfer(whole, soon()).await), 40, "and so does its replay");
        let held = release(&cluster, order.key()).await;
        assert!(
            matches!(held, ReleaseReply::Refused(refused) if refused.refusal == Refusal::HoldCaptured),
            "{held:?}"
        );
    }
    assert_eq!(balances(&cluster, &payer).await, (20, 0));
}

#[tokio::test]
async fn a_refused_capture_leaves_the_hold_as_it_was() {
    let (cluster, payer, near, far) = two_shards().await;
    for (number, payee) in [(10, &near), (20, &far)] {
        let order = hold(number, &payer, payee, 40);
        place(&cluster, &order).await;
        set_status(&cluster, payee, AccountStatus::Closed).await;
        // The credit side goes first, also where the hold has a refusal of its own.
        for (id, amount) in [(number + 1, Some(10)), (number + 2, Some(41))] {
            let refused = cluster.router.transfer(capture(id, &order, amount, true), soon()).await;
            assert_eq!(refusal(refused), (Refusal::AccountClosed, Some(Side::Credit)));
        }
        set_status(&cluster, payee, AccountStatus::Open).await;
        assert_eq!(posted_amount(cluster.router.transfer(capture(number + 3, &order, None, true), soon()).await), 40);
    }
    assert_eq!(balances(&cluster, &payer).await, (20, 0));
}

#[tokio::test]
async fn an_id_gives_the_first_answer_for_ever() {
    let (cluster, payer, near, _) = two_shards().await;
    let order = hold(1, &payer, &near, 40);
    place(&cluster, &order).await;
    release(&cluster, order.key()).await;
    match cluster.router.place_hold(order.clone(), soon()).await {
        Ok(HoldReply::Placed(answer)) => assert!(answer.replayed && answer.refused.is_none()),
        other => panic!("{other:?}"),
    }
    let other = PlaceHold { expires_in_s: Some(60), ..order };
    assert_eq!(cluster.router.place_hold(other, soon()).await, Ok(HoldReply::Mismatch { field: "expires_in_s" }));
    assert_eq!(cluster.router.place_hold(hold(2, "nobody", &near, 1), soon()).await, Ok(HoldReply::DebitNotFound));
    assert_eq!(release(&cluster, hold(3, &payer, &near, 1).key()).await, ReleaseReply::NotFound);
}

// === faults ===

#[tokio::test]
async fn a_lost_answer_about_a_hold_is_asked_for_again() {
    for trouble in [Trouble::LoseAnswer, Trouble::LoseRequest, Trouble::Unknown] {
        let (cluster, payer, near, _) = two_shards().await;
        let order = hold(1, &payer, &near, 40);
        cluster.nodes[0].expect_trouble([trouble]);
        place(&cluster, &order).await;
        assert_eq!(balances(&cluster, &payer).await, (100, 40), "{trouble:?}");
        cluster.nodes[0].expect_trouble([trouble]);
        assert!(matches!(release(&cluster, order.key()).await, ReleaseReply::Released { .. }));
        assert_eq!(balances(&cluster, &payer).await, (100, 0), "{trouble:?}");
    }
}

#[tokio::test]
async fn nothing_found_after_a_lost_sending_proves_nothing() {
    let (cluster, payer, near, _) = two_shards().await;
    let nobody = cluster.account_on(0, "nobody");
    cluster.nodes[0].expect_trouble([Trouble::LoseRequest]);
    let reply = cluster.router.place_hold(hold(1, &nobody, &near, 1), soon()).await;
    assert!(matches!(reply, Err(CallError::OutcomeUnknown { .. })), "{reply:?}");
    cluster.nodes[0].expect_trouble([Trouble::LoseRequest]);
    let reply = cluster.router.release_hold(hold(2, &payer, &near, 1).key().into(), soon()).await;
    assert!(matches!(reply, Err(CallError::OutcomeUnknown { .. })), "{reply:?}");
}

#[tokio::test]
async fn a_release_waits_for_the_verdict_of_a_capture() {
    let (cluster, payer, _, far) = two_shards().await;
    let order = hold(1, &payer, &far, 40);
    place(&cluster, &order).await;
    cluster.nodes[1].hang(true);
    let router = cluster.router.clone();
    let under_way = cluster.tasks.spawn("under way", {
        let order = capture(2, &order, Some(10), false);
        async move { router.transfer(order, soon()).await }
    });
    is_reserved(&cluster, 0).await;
    let early = in_a_moment(async |deadline| cluster.router.release_hold(order.key().into(), deadline).await).await;
    assert!(matches!(early, Err(CallError::Deferred { .. })), "{early:?}");

    let (released, ()) = tokio::join!(release(&cluster, order.key()), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.nodes[1].hang(false);
    });
    assert!(matches!(released, ReleaseReply::Released { replayed: false, .. }), "{released:?}");
    assert_eq!(posted_amount(under_way.await.unwrap()), 10);
    assert_eq!(balances(&cluster, &payer).await, (90, 0));
}

#[tokio::test]
async fn holds_follow_their_account() {
    let (cluster, payer, near, _) = two_shards().await;
    let order = hold(1, &payer, &near, 40);
    place(&cluster, &order).await;
    cluster.move_slot_of(&payer, 1);
    let found = cluster.router.find_hold(order.id, Some(&order.debit), |_| true, soon()).await.unwrap();
    assert_eq!((found.found.len(), found.unreachable.len()), (1, 0));
    assert!(matches!(release(&cluster, order.key()).await, ReleaseReply::Released { .. }));
    assert_eq!(balances(&cluster, &payer).await, (100, 0));
}

// === reversals ===

#[tokio::test]
async fn reversals_give_back_what_was_posted_and_not_more() {
    let (cluster, payer, near, far) = two_shards().await;
    for (number, payee) in [(10, &near), (20, &far)] {
        let original = transfer(number, &payer, payee, 40);
        posted_amount(cluster.router.transfer(original.clone(), soon()).await);
        let part = cluster.router.transfer(reversal(number + 1, &original, 15), soon()).await;
        assert_eq!(posted_amount(part), 15);
        let too_much = cluster.router.transfer(reversal(number + 2, &original, 26), soon()).await;
        assert_eq!(refusal(too_much).0, Refusal::InsufficientFunds, "the debit side goes first");
        let rest = cluster.router.transfer(reversal(number + 3, &original, 25), soon()).await;
        assert_eq!(posted_amount(rest), 25);
        let found = cluster.router.find_ended_transfer(original.id, None, |_| true, soon()).await.unwrap().found;
        assert_eq!((found[0].record.reversed, found[0].record.reversals.len()), (40, 2));
    }
    assert_eq!(balances(&cluster, &payer).await, (100, 0));
}

#[tokio::test]
async fn a_pending_original_is_waited_for() {
    let (cluster, payer, _, far) = two_shards().await;
    let original = transfer(1, &payer, &far, 40);
    cluster.nodes[1].hang(true);
    let router = cluster.router.clone();
    let under_way = cluster.tasks.spawn("under way", {
        let original = original.clone();
        async move { router.transfer(original, soon()).await }
    });
    is_reserved(&cluster, 0).await;
    let ask = async |deadline| {
        cluster.router.find_ended_transfer(original.id, Some(&original.debit), |_| true, deadline).await
    };
    let early = in_a_moment(ask).await;
    assert!(matches!(early, Err(CallError::Deferred { .. })), "{early:?}");
    cluster.nodes[1].hang(false);
    let ended =
        cluster.router.find_ended_transfer(original.id, Some(&original.debit), |_| true, soon()).await.unwrap();
    assert_eq!(ended.found[0].record.status, u32::from(TransferState::POSTED));
    assert_eq!(posted_amount(under_way.await.unwrap()), 40);
}

#[tokio::test]
async fn a_reversal_drives_its_original_as_patiently_as_the_client_of_the_original() {
    let cluster = Cluster::start(3).await;
    let [payer, limited, slow] =
        [(0, "payer"), (1, "limited"), (2, "slow")].map(|(n, name)| cluster.account_on(n, name));
    cluster.fund(&[(&payer, 100), (&limited, 60), (&slow, 0)]).await;
    let update = UpdateAccount {
        ordered_by: None,
        id: id(&limited),
        status: None,
        overdraft: None,
        max_balance: Some(Limit::AtMost(100)),
        metadata: None,
    };
    cluster.router.update_account(update, soon()).await.unwrap();
    cluster.nodes[2].hang(true);
    let order = |transfer: NewTransfer| {
        let router = cluster.router.clone();
        cluster.tasks.spawn("under way", async move { router.transfer(transfer, soon()).await })
    };
    let rival = order(transfer(1, &limited, &slow, 60));
    is_reserved(&cluster, 1).await;
    // It has room once the rival is posted.
    let original = transfer(2, &payer, &limited, 80);
    let under_way = order(original.clone());
    is_reserved(&cluster, 0).await;
    let ask = async |deadline| cluster.router.find_ended_transfer(original.id, None, |_| true, deadline).await;
    let early = in_a_moment(ask).await;
    assert!(matches!(early, Err(CallError::Deferred { .. })), "{early:?}");
    cluster.nodes[2].hang(false);
    assert_eq!(posted_amount(rival.await.unwrap()), 60);
    assert_eq!(posted_amount(under_way.await.unwrap()), 80);
}

// === dry runs ===

#[tokio::test]
async fn a_dry_run_gives_the_verdict_and_leaves_no_trace() {
    let (cluster, payer, near, far) = two_shards().await;
    for (number, payee) in [(10, &near), (20, &far)] {
        let order = transfer(number, &payer, payee, 40);
        let tried = cluster.router.dry_run_transfer(&order, soon()).await;
        assert_eq!(posted_amount(tried), 40);
        let short = cluster.router.dry_run_transfer(&transfer(number, &payer, payee, 101), soon()).await;
        assert_eq!(refusal(short), (Refusal::InsufficientFunds, Some(Side::Debit)));
        set_status(&cluster, payee, AccountStatus::Closed).await;
        let closed = cluster.router.dry_run_transfer(&order, soon()).await;
        assert_eq!(refusal(closed), (Refusal::AccountClosed, Some(Side::Credit)));
        set_status(&cluster, payee, AccountStatus::Open).await;
        assert!(cluster.router.find_transfer(order.id, None, |_| true, soon()).await.unwrap().found.is_empty());
        assert_eq!(balances(&cluster, &payer).await, (100, 0));
    }
    assert_eq!(cluster.posted(&far).await, 0);

    // An id in use is answered as it stands.
    let order = transfer(30, &payer, &far, 40);
    posted_amount(cluster.router.transfer(order.clone(), soon()).await);
    let again = cluster.router.dry_run_transfer(&order, soon()).await;
    assert!(matches!(&again, Ok(TransferReply::Done(answer)) if answer.replayed), "{again:?}");
    let other = NewTransfer { amount: 1, ..order };
    let other = cluster.router.dry_run_transfer(&other, soon()).await;
    assert_eq!(other, Ok(TransferReply::Mismatch { field: "amount" }));
    let nobody = cluster.router.dry_run_transfer(&transfer(31, "nobody", &far, 1), soon()).await;
    assert_eq!(nobody, Ok(TransferReply::DebitNotFound));
}

#[tokio::test]
async fn a_dry_run_of_a_hold_holds_nothing() {
    let (cluster, payer, near, _) = two_shards().await;
    for (amount, granted) in [(100, true), (101, false)] {
        let tried = cluster.router.dry_run_hold(&hold(1, &payer, &near, amount), soon()).await;
        match tried {
            Ok(HoldReply::Placed(answer)) => {
                assert_eq!((answer.refused.is_none(), answer.replayed), (granted, false))
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(balances(&cluster, &payer).await, (100, 0));
    place(&cluster, &hold(1, &payer, &near, 50)).await;
}

#[tokio::test]
async fn a_lost_dry_run_was_not_executed() {
    let (cluster, payer, near, _) = two_shards().await;
    cluster.nodes[0].expect_trouble([Trouble::Unknown; 200]);
    let deadline = Instant::now() + Duration::from_millis(200);
    let tried = cluster.router.dry_run_transfer(&transfer(1, &payer, &near, 1), deadline).await;
    assert!(tried.as_ref().is_err_and(CallError::is_not_executed), "{tried:?}");
}
