//! Tests of bookings of one node: creations that are sent again after the account was changed, changes that are written together, and holds
//! that come due while no node runs.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ledger::{
    AccountId, AssetCode, HoldKey, Limit, Metadata, Refusal, Refused, TransferId,
    operation::{Operation, PlaceHold},
    outcome::{AccountOutcome, HoldOutcome, Outcome, Reply, TransferOutcome},
};
use testkit::{
    database,
    history::{ASSET, Order},
    node::{Node, limit, open, order, transfer},
    wait::until,
};
use uuid::Uuid;

use super::{NodeFixture, books_are_sound, open_pair};

/// The versions at which a creation is sent again. They are around the waypoints, which are 64 entries apart.
const VERSIONS: [usize; 9] = [2, 3, 63, 64, 65, 127, 128, 129, 200];
/// The number of accounts. It is larger than the number of openings that the node reads in one statement.
const MANY: usize = 600;

const OPENED: Limit = Limit::AtMost(10);
const CHANGED: Limit = Limit::AtMost(20);
const NEVER: Limit = Limit::AtMost(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_opened_again_with_what_its_first_entry_says() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("opened_again").await?;
    let node = Node::start(&config).await?;
    node.execute_until_definite(&open("bank", Limit::Unlimited)?).await?;

    let of_versions = VERSIONS.map(|version| (format!("version{version}"), version));
    let many = (0..MANY).map(|n| (format!("many{n}"), 2));
    let accounts: Vec<(String, usize)> = of_versions.into_iter().chain(many).collect();
    let mut history = Vec::new();
    for (id, version) in &accounts {
        history.push(open(id, OPENED)?);
        for _ in 2..*version {
            history.push(transfer(&order("bank", id, 1), false)?);
        }
        history.push(limit(id, CHANGED)?);
    }
    node.execute(&history).await?;
    // The first node has the accounts in memory. The second node has to read them.
    let other = Node::start(&fixture.another_node("opened_again_other", &config.database_url)?).await?;
    for node in [&node, &other] {
        for (limit, expected) in [(OPENED, "replayed"), (CHANGED, "replayed"), (NEVER, "conflict overdraft")] {
            let again: Vec<Operation> = accounts.iter().map(|(id, _)| open(id, limit)).collect::<Result<_, _>>()?;
            let replies = node.execute(&again).await?;
            for ((id, version), reply) in accounts.iter().zip(&replies) {
                let expected = match expected {
                    "replayed" => format!("replayed, version {version}, {CHANGED:?}"),
                    conflict => conflict.to_owned(),
                };
                ensure!(summary(reply) == expected, "{id} opened with {limit:?} is {}", summary(reply));
            }
        }
    }
    in_the_batch_that_changes_them(&node).await.context("in one batch")?;
    books_are_sound(&config.database_url).await
}

/// The change and the creation come in one batch, once alone and once with a transfer that was executed before. The transfer makes the node
/// decide the batch twice, the second time with care.
async fn in_the_batch_that_changes_them(node: &Node) -> anyhow::Result<()> {
    let paid: Order = order("bank", "version2", 1);
    let replay = transfer(&paid, false)?;
    node.execute_until_definite(&replay).await?;
    for (id, with) in
        [("version3", None), ("version63", Some(&replay)), ("version64", None), ("version200", Some(&replay))]
    {
        let before = node.account(id).await?.version;
        let new = format!("new-{id}");
        let mut batch = vec![
            limit(id, NEVER)?,
            open(id, OPENED)?,
            open(id, CHANGED)?,
            open(id, NEVER)?,
            open(&new, OPENED)?,
            limit(&new, CHANGED)?,
            open(&new, OPENED)?,
            open(&new, NEVER)?,
        ];
        batch.extend(with.cloned());
        let replies = node.execute(&batch).await?;
        let replies: Vec<String> = replies.iter().map(summary).collect();
        let now = format!("version {}, {NEVER:?}", before + 1);
        let expected = [
            format!("there, {now}"),
            format!("replayed, {now}"),
            "conflict overdraft".to_owned(),
            format!("replayed, {now}"),
            format!("there, version 1, {OPENED:?}"),
            format!("there, version 2, {CHANGED:?}"),
            format!("replayed, version 2, {CHANGED:?}"),
            "conflict overdraft".to_owned(),
        ];
        expect!(replies[..expected.len()] == expected, "{id}: {replies:#?}");
        expect!(replies.get(expected.len()).is_none_or(|reply| reply == "paid before"), "{id}: {replies:#?}");
    }
    Ok(())
}

fn summary(reply: &Reply) -> String {
    match reply {
        Reply::Outcome(Outcome::Account(AccountOutcome::Replayed(account))) => {
            format!("replayed, version {}, {:?}", account.version, account.overdraft)
        }
        // The wire has one message for an account that was opened and one that was changed.
        Reply::Outcome(Outcome::Account(AccountOutcome::Created(account) | AccountOutcome::Updated(account))) => {
            format!("there, version {}, {:?}", account.version, account.overdraft)
        }
        Reply::Outcome(Outcome::Account(AccountOutcome::Conflict { field })) => format!("conflict {field}"),
        Reply::Outcome(Outcome::Transfer(TransferOutcome::Done(answer))) if answer.replayed => {
            "paid before".to_owned()
        }
        other => format!("{other:?}"),
    }
}

/// The debtor pays back and loses the overdraft in one batch. No check of the database may see the new limit with the old balance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debt_is_paid_and_its_limit_lowered_in_one_commit() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("one_batch").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "payee").await?;
    node.execute_until_definite(&open("debtor", Limit::AtMost(50))?).await?;
    node.execute_until_definite(&transfer(&order("debtor", "payee", 50), false)?).await?;

    let before = node.status().await?.batches;
    let lower = limit("debtor", Limit::ZERO)?;
    let replies = node.execute(&[transfer(&order("treasury", "debtor", 50), false)?, lower]).await?;
    let [Reply::Outcome(Outcome::Transfer(_)), Reply::Outcome(Outcome::Account(lowered))] = &replies[..] else {
        bail!("{replies:?}")
    };
    // The wire has one message for an account that was opened and one that was changed.
    let (AccountOutcome::Created(debtor) | AccountOutcome::Updated(debtor)) = lowered else { bail!("{lowered:?}") };
    expect!((debtor.posted, debtor.overdraft) == (0, Limit::ZERO), "{debtor:?}");
    let batches = node.status().await?.batches - before;
    ensure!(batches == 1, "the batch was taken apart: {batches} commits");
    books_are_sound(&config.database_url).await
}

/// The number of holds. It is larger than the number that a node hands to its lane at the same time.
const HOLDS: u128 = 2_100;
/// The life of a hold. No machine needs as long to place all holds and to kill the node.
const EXPIRES_IN_S: u32 = 3_600;
const PATIENCE: Duration = Duration::from_secs(60);
/// The delay that the contract allows after the node serves, and the additional time that a busy machine may need for this many holds.
const ALLOWED_US: i64 = 1_000_000;
const SLACK_US: i64 = 7_000_000;

/// The node is dead when the holds come due, and gets no request once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_that_came_due_without_a_node_expire_once_a_node_is_back() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let config = fixture.shard("due_holds").await?;
    let url = &config.database_url;
    let node = Node::start(&config).await?;
    node.execute_until_definite(&open("payer", Limit::Unlimited)?).await?;
    let keys: Vec<HoldKey> = (0..HOLDS).map(key).collect::<anyhow::Result<_>>()?;
    let orders: Vec<Operation> = keys.iter().map(place_hold).collect::<anyhow::Result<_>>()?;
    until("all holds are placed", PATIENCE, async || {
        let replies = node.execute(&orders).await?;
        Ok(replies.iter().all(|reply| matches!(reply, Reply::Outcome(_))).then_some(()))
    })
    .await?;
    node.process().kill().await?;
    drop(node);
    // The test moves the expiry of the holds into the past, instead of waiting for it.
    ensure!(u128::try_from(held(url).await?)? == HOLDS, "not all of them are held");
    let past = "UPDATE journal SET expires_at_us = at_us + 1 WHERE kind = 41; \
         UPDATE hold SET expires_at_us = j.at_us + 1 FROM journal j WHERE j.position = hold.position";
    database::run(url, past).await?;

    let serving_us = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let node = Node::start(&config).await?;
    let serving_us = database::number(url, serving_us).await?;
    until("all holds have expired", PATIENCE, async || Ok((held(url).await? == 0).then_some(()))).await?;
    let last_us = database::number(url, "SELECT max(at_us) FROM journal WHERE kind = 53").await?;
    eprintln!("    {HOLDS} holds had expired {} µs after the node was back", last_us - serving_us);
    ensure!(last_us - serving_us <= ALLOWED_US + SLACK_US, "a hold expired {} µs late", last_us - serving_us);

    let Outcome::Hold(late) = node.execute_until_definite(&Operation::ReleaseHold(keys[0].clone().into())).await?
    else {
        bail!("expected one answer about a hold")
    };
    expect!(late == HoldOutcome::Refused(Refused::whole(Refusal::HoldExpired)), "{late:?}");
    ensure!(node.account("payer").await?.held == 0, "the payer should have nothing held");
    books_are_sound(url).await
}

async fn held(url: &str) -> anyhow::Result<i64> {
    database::number(url, "SELECT count(*) FROM hold").await
}

fn key(n: u128) -> anyhow::Result<HoldKey> {
    Ok(HoldKey { id: TransferId(Uuid::from_u128(n)), debit: AccountId::client("payer")? })
}

fn place_hold(key: &HoldKey) -> anyhow::Result<Operation> {
    Ok(Operation::PlaceHold(PlaceHold {
        ordered_by: None,
        id: key.id,
        debit: key.debit.clone(),
        credit: AccountId::client("payee")?,
        asset: AssetCode::new(ASSET)?,
        amount: 1,
        expires_in_s: Some(EXPIRES_IN_S),
        metadata: Metadata::empty(),
    }))
}
