//! Holds that come due while there is no node to expire them.

use std::time::Duration;

use anyhow::{bail, ensure};
use ledger::{
    AccountId, AssetCode, HoldKey, Limit, Metadata, Refusal, Refused, TransferId,
    operation::{Operation, PlaceHold},
    outcome::{HoldOutcome, Outcome, Reply},
};
use testkit::{
    database,
    history::ASSET,
    node::{Node, open},
    wait::until,
};
use uuid::Uuid;

use super::{Place, books_are_sound};

/// More than a node hands to its lane at once.
const HOLDS: u128 = 2_100;
/// Longer than any machine takes to place all holds and lose the node.
const EXPIRES_IN_S: u32 = 3_600;
const PATIENCE: Duration = Duration::from_secs(60);
/// What the contract allows from the moment at which the node serves, and what a busy machine may take besides for this many holds.
const ALLOWED_US: i64 = 1_000_000;
const SLACK_US: i64 = 7_000_000;

/// The node is dead when the holds come due, and gets no request once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_that_came_due_without_a_node_expire_once_a_node_is_back() -> anyhow::Result<()> {
    let place = Place::new().await?;
    let config = place.shard("due_holds").await?;
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
    // Moves the time of the holds into the past, instead of waiting for it.
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
    ensure!(last_us - serving_us <= ALLOWED_US + SLACK_US, "{} µs after the node was back", last_us - serving_us);

    let Outcome::Hold(late) = node.execute_until_definite(&Operation::ReleaseHold(keys[0].clone().into())).await?
    else {
        bail!("no answer about a hold")
    };
    ensure!(late == HoldOutcome::Refused(Refused::whole(Refusal::HoldExpired)), "{late:?}");
    ensure!(node.account("payer").await?.held == 0, "something is still held");
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
