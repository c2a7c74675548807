//! Tests of the fence: more than one node on a shard, and slots that get another owner.

use std::{
    slice::from_ref,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use futures_util::future::try_join_all;
use ledger::{
    Limit,
    outcome::{Outcome, Reply, TransferOutcome, TransferState},
};
use shard_map::{SLOTS, slot_of};
use testkit::{
    database,
    history::Order,
    node::{Node, open, order, transfer},
    seed::Seed,
    wait::until,
};

use super::{NodeFixture, books_are_sound, open_pair};

const ACCOUNTS: usize = 6;
const ORDERS: usize = 240;
const WRITERS: usize = 4;

/// Both nodes write the same accounts at the same time. Some orders are sent to both nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_on_one_shard_lose_no_update() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("two_nodes").await?;
    let other = fixture.another_node("two_nodes_other", &config.database_url)?;
    let nodes = [Node::start(&config).await?, Node::start(&other).await?];
    let accounts: Vec<String> = (0..ACCOUNTS).map(|n| format!("account{n}")).collect();
    for id in &accounts {
        nodes[0].execute_until_definite(&open(id, Limit::Unlimited)?).await?;
    }

    let mut random = Seed::announce("two nodes").random();
    let orders: Vec<Order> = (0..ORDERS)
        .map(|_| {
            let from = random.below(ACCOUNTS);
            let to = (from + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS;
            let amount = i64::try_from(1 + random.below(1000)).unwrap_or(1);
            Order { id: random.uuid(), debit: accounts[from].clone(), credit: accounts[to].clone(), amount }
        })
        .collect();
    let writers = (0..WRITERS).map(async |writer| {
        let node = &nodes[writer % nodes.len()];
        // One writer on each node sends every order, so that each id is sent through both nodes.
        for order in orders.iter().skip(writer / nodes.len()).step_by(WRITERS / nodes.len()) {
            let outcome = node.execute_until_definite(&transfer(order, false)?).await?;
            expect!(is_posted(&outcome), "{outcome:?}");
        }
        Ok(())
    });
    try_join_all(writers).await?;

    for id in &accounts {
        let sum: i64 = orders.iter().map(|order| change(order, id)).sum();
        let account = nodes[1].account(id).await?;
        ensure!(account.posted == sum, "{id} should hold {sum}: {account:?}");
    }
    let stored = database::number(&config.database_url, "SELECT count(*) FROM journal WHERE role = 1").await?;
    ensure!(usize::try_from(stored)? == ORDERS, "{stored} transfers are stored");
    books_are_sound(&config.database_url).await
}

fn change(order: &Order, account: &str) -> i64 {
    i64::from(order.credit == account) * order.amount - i64::from(order.debit == account) * order.amount
}

/// A node that was frozen while another node took over has old balances in its memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thawed_node_decides_on_nothing_it_remembers() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("thawed").await?;
    let frozen = Node::start(&config).await?;
    open_pair(&frozen, "treasury", "saver").await?;
    let funding = order("treasury", "saver", 100);
    frozen.execute_until_definite(&transfer(&funding, false)?).await?;
    frozen.process().freeze().await?;

    let other = Node::start(&fixture.another_node("thawed_other", &config.database_url)?).await?;
    let spending = order("saver", "treasury", 100);
    ensure!(is_posted(&other.execute_until_definite(&transfer(&spending, false)?).await?));

    frozen.process().thaw()?;
    // In the memory of the thawed node the saver still has 100.
    let outcome = frozen.execute_until_definite(&transfer(&order("saver", "treasury", 1), false)?).await?;
    let Outcome::Transfer(TransferOutcome::Done(answer)) = &outcome else { bail!("{outcome:?}") };
    ensure!(matches!(answer.state, TransferState::Rejected { .. }), "the same money was spent twice: {outcome:?}");
    // The thawed node has not seen the other node's transfer, and must answer it as a replay.
    let outcome = frozen.execute_until_definite(&transfer(&spending, false)?).await?;
    expect!(is_posted(&outcome) && format!("{outcome:?}").contains("replayed: true"), "{outcome:?}");
    ensure!(frozen.account("saver").await?.posted == 0);
    books_are_sound(&config.database_url).await
}

/// Nothing tells a node that another node has superseded it. Its first read after it thaws must already show what the other node committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_node_answers_no_old_balance() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("superseded").await?;
    let frozen = Node::start(&config).await?;
    open_pair(&frozen, "treasury", "saver").await?;
    frozen.execute_until_definite(&transfer(&order("treasury", "saver", 100), false)?).await?;
    ensure!(frozen.account("saver").await?.posted == 100);
    frozen.process().freeze().await?;

    let other = Node::start(&fixture.another_node("superseded_other", &config.database_url)?).await?;
    for _ in 0..5 {
        other.execute_until_definite(&transfer(&order("saver", "treasury", 10), false)?).await?;
    }
    frozen.process().thaw()?;
    let saver = frozen.account("saver").await?;
    ensure!(saver.posted == 50, "the balance should be 50: {saver:?}");
    books_are_sound(&config.database_url).await
}

/// Neither statement_timeout nor idle_in_transaction_session_timeout ends a session that waits for the rows of a COPY. A
/// node that stops there holds the lock of the fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_frozen_within_copy_lets_another_serve_within_two_seconds() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("within_copy").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "saver").await?;
    let url = &config.database_url;
    let payment = transfer(&order("treasury", "saver", 100), false)?;
    let paid = async {
        let begun = Instant::now();
        Ok((node.execute_until_definite(&payment).await?, begun.elapsed()))
    };
    let ((outcome, waited), is_ended) = database::while_a_lane_is_frozen_within_copy(url, paid).await?;
    expect!(is_posted(&outcome), "{outcome:?}");
    ensure!(waited < Duration::from_secs(2), "the other node could not serve for {waited:?}");
    ensure!(is_ended, "the frozen session still holds the fence");
    books_are_sound(url).await
}

/// The journal is the shard. If an operator changes a balance in the table of accounts, the next fold of the account replaces it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_changed_by_hand_is_replaced_by_what_the_journal_says() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("row_by_hand").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "saver").await?;
    node.execute_until_definite(&transfer(&order("treasury", "saver", 100), false)?).await?;
    let url = &config.database_url;
    saver_is_folded(url, 2).await?;
    database::run(url, "UPDATE account SET posted = posted - 30 WHERE id = 'saver'").await?;
    node.execute_until_definite(&transfer(&order("saver", "treasury", 1), false)?).await?;
    ensure!(node.account("saver").await?.posted == 99);
    saver_is_folded(url, 3).await?;
    books_are_sound(url).await
}

/// An operator changes a row to a version that the journal does not have. The fold does not write over it, and the node takes
/// no further writes and says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_does_not_lead_to_the_journal_stops_the_shard() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("version_by_hand").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "saver").await?;
    node.execute_until_definite(&transfer(&order("treasury", "saver", 100), false)?).await?;
    let url = &config.database_url;
    saver_is_folded(url, 2).await?;
    database::run(url, "UPDATE account SET posted = posted - 30, version = version + 1 WHERE id = 'saver'").await?;
    // The node commits two transfers together, so that the fold finds a row of a version in between.
    let spend = || transfer(&order("saver", "treasury", 1), false);
    node.execute(&[spend()?, spend()?]).await?;
    let refused = until("the node refuses writes", Duration::from_secs(10), async || {
        let replies = node.execute(from_ref(&transfer(&order("treasury", "saver", 1), false)?)).await?;
        Ok(match &replies[..] {
            [Reply::NotExecuted { detail, .. }] => Some(detail.clone()),
            _ => None,
        })
    })
    .await?;
    expect!(refused.contains("INV-9") && refused.contains("account saver"), "{refused}");
    let row = database::number(url, "SELECT posted FROM account WHERE id = 'saver'").await?;
    ensure!(row == 70, "the row was written over: {row}");
    Ok(())
}

async fn saver_is_folded(url: &str, version: i64) -> anyhow::Result<()> {
    until("the account is folded", Duration::from_secs(10), async || {
        let row = database::number(url, "SELECT version FROM account WHERE id = 'saver'").await?;
        Ok((row == version).then_some(()))
    })
    .await
}

/// While another writer's COMMIT is under way, a node must not answer that an account does not exist and nothing is stored. That COMMIT may
/// open the account, and may have an earlier copy of the same transfer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_stores_nothing_waits_for_a_commit_under_way() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("under_way").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "payee").await?;
    let spending = transfer(&order("late", "payee", 1), false)?;
    let unknown = node.execute(from_ref(&spending)).await?;
    expect!(
        matches!(&unknown[..], [Reply::Outcome(Outcome::Transfer(TransferOutcome::DebitNotFound))]),
        "{unknown:?}"
    );

    let url = &config.database_url;
    let slot = slot_of("late");
    let opening = format!(
        "BEGIN; LOCK TABLE lane_fence IN SHARE ROW EXCLUSIVE MODE; \
         INSERT INTO journal (position, amount, at_us, payer_version, payer_previous, payer_posted, payer_held, payer_slot, \
           payee_slot, kind, role, payer, payee, asset, status) \
         SELECT max(position) + 1, 0, 1, 1, 0, 0, 0, {slot}, -1, 1, 0, 'late', '', 'USD', 1 FROM journal; \
         INSERT INTO account (id, slot, asset, status, posted, held, version, head, opened, created_at_us, updated_at_us) \
         SELECT 'late', {slot}, 'USD', 1, 0, 0, 1, max(position), max(position), 1, 1 FROM journal; \
         SELECT pg_sleep(2); COMMIT"
    );
    let asked = async {
        let writing = "SELECT count(*) FROM pg_locks WHERE relation = 'lane_fence'::regclass \
             AND mode = 'ShareRowExclusiveLock' AND granted";
        until("the other writer has begun", Duration::from_secs(10), async || {
            Ok((database::number(url, writing).await? == 1).then_some(()))
        })
        .await?;
        node.execute(from_ref(&spending)).await
    };
    let (committed, replies) = tokio::join!(database::run(url, &opening), asked);
    committed?;
    let replies = replies?;
    expect!(matches!(&replies[..], [Reply::Outcome(outcome)] if is_posted(outcome)), "{replies:?}");
    books_are_sound(url).await
}

/// The slot of one account is given to another shard in the database, and the node is not told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_changed_hands_is_refused_and_nothing_written() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("fence").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "mover").await?;
    open_pair(&node, "stays", "payee").await?;
    let url = &config.database_url;
    let slot = slot_of("mover");
    database::run(
        url,
        &format!(
            "BEGIN; UPDATE slot_ownership SET state = 2, epoch = 2, peer = 's9' WHERE slot = {slot}; \
             UPDATE shard_state SET ownership_version = ownership_version + 1; COMMIT"
        ),
    )
    .await?;

    let rows = "SELECT (SELECT count(*) FROM journal) + (SELECT count(*) FROM account)";
    let before = database::number(url, rows).await?;
    let refused = [
        transfer(&order("mover", "treasury", 1), false)?,
        transfer(&order("treasury", "mover", 1), false)?,
        transfer(&order("mover", "elsewhere", 1), true)?,
        open("mover", Limit::ZERO)?,
    ];
    for operation in &refused {
        let replies = node.execute(from_ref(operation)).await?;
        let [Reply::Outcome(Outcome::NotOwner(not_owner))] = &replies[..] else {
            bail!("{operation:?}: {replies:?}")
        };
        expect!(not_owner.slot == slot.index() && not_owner.epoch == 2 && not_owner.owner == "s9", "{not_owner:?}");
    }
    ensure!(database::number(url, rows).await? == before, "a refused operation left something behind");

    // In one batch with others, only the operations on that slot are refused.
    let replies = node.execute(&[refused[0].clone(), transfer(&order("stays", "payee", 5), false)?]).await?;
    expect!(matches!(&replies[0], Reply::Outcome(Outcome::NotOwner(_))), "{replies:?}");
    expect!(matches!(&replies[1], Reply::Outcome(outcome) if is_posted(outcome)), "{replies:?}");
    books_are_sound(url).await
}

fn is_posted(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Transfer(TransferOutcome::Done(answer)) if matches!(answer.state, TransferState::Posted { .. })
    )
}

/// The slot of one account is given to another shard in the database, and the node is not told. The account's row stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_or_sum_of_a_slot_that_the_shard_lost_is_refused_by_name() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("listed_slots").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "Payee").await?;
    open_pair(&node, "mover", "payee").await?;
    node.execute_until_definite(&transfer(&order("treasury", "mover", 7), false)?).await?;
    // The money stays in the shard's in-transit account.
    node.execute_until_definite(&transfer(&order("treasury", "elsewhere", 5), true)?).await?;

    let all = vec![range(0, SLOTS - 1)];
    expect!(
        listed(&node, &all).await? == ["Payee", "mover", "payee", "treasury"],
        "{:?}",
        listed(&node, &all).await?
    );
    expect!(summed(&node, &all).await? == [("-5".to_owned(), 4)], "{:?}", summed(&node, &all).await?);

    let slot = slot_of("mover").index();
    let epoch = "UPDATE shard_state SET ownership_version = ownership_version + 1";
    let give = format!("UPDATE slot_ownership SET state = 2, epoch = 2, peer = 's9' WHERE slot = {slot}");
    database::run(&config.database_url, &format!("BEGIN; {give}; {epoch}; COMMIT")).await?;

    for slots in [all.clone(), vec![range(slot, slot)]] {
        let page = node.list_accounts(request(&slots)).await?;
        let sums = node.sum_balances(sums_request(&slots)).await?;
        ensure!(
            page.accounts.is_empty() && sums.sums.is_empty(),
            "the shard answered for a slot that it does not own: {page:?} {sums:?}"
        );
        for not_owner in [page.not_owner, sums.not_owner] {
            expect!(not_owner.len() == 1, "{not_owner:?}");
            let refused = &not_owner[0];
            expect!(refused.slot == u32::from(slot) && refused.epoch == 2 && refused.owner == "s9", "{refused:?}");
        }
    }
    // A list of the slots that the shard owns leaves the row of the lost slot out.
    let own: Vec<wire::SlotRange> = [(0, slot.checked_sub(1)), (slot + 1, Some(SLOTS - 1))]
        .into_iter()
        .filter_map(|(first, last)| last.filter(|last| first <= *last).map(|last| range(first, last)))
        .collect();
    expect!(listed(&node, &own).await? == ["Payee", "payee", "treasury"], "{:?}", listed(&node, &own).await?);
    expect!(summed(&node, &own).await? == [("-12".to_owned(), 3)], "{:?}", summed(&node, &own).await?);
    Ok(())
}

fn range(first: u16, last: u16) -> wire::SlotRange {
    wire::SlotRange { first: first.into(), last: last.into() }
}

fn request(slots: &[wire::SlotRange]) -> wire::ListAccountsRequest {
    wire::ListAccountsRequest { limit: 10, slots: slots.to_vec(), ..Default::default() }
}

fn sums_request(slots: &[wire::SlotRange]) -> wire::SumBalancesRequest {
    wire::SumBalancesRequest { slots: slots.to_vec(), timeout_ms: 10_000, ..Default::default() }
}

async fn listed(node: &Node, slots: &[wire::SlotRange]) -> anyhow::Result<Vec<String>> {
    let page = node.list_accounts(request(slots)).await?;
    expect!(page.not_owner.is_empty() && !page.has_more, "{page:?}");
    Ok(page.accounts.into_iter().map(|account| account.id).collect())
}

/// The posted amount and the number of accounts.
async fn summed(node: &Node, slots: &[wire::SlotRange]) -> anyhow::Result<Vec<(String, u64)>> {
    let sums = node.sum_balances(sums_request(slots)).await?;
    expect!(sums.not_owner.is_empty(), "{sums:?}");
    Ok(sums.sums.into_iter().map(|sum| (sum.posted, sum.accounts)).collect())
}
