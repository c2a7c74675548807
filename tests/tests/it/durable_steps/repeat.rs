//! Repeats what has ended: requests, as clients do, and the steps of sagas, as late routers do.

use std::{slice::from_ref, time::Duration};

use anyhow::{Context, bail, ensure};
use ledger::{
    Booking, BookingKind,
    operation::{Decide, Operation, Settle, Transfer, Verdict},
    outcome::{Outcome, Reply, TransferOutcome},
};
use shard_map::ShardMap;
use testkit::{
    client::Answer,
    cluster::Cluster,
    database,
    node::{execute_request, identify_request},
    wait::until,
};
use tonic::transport::Channel;
use uuid::Uuid;
use wire::shard_node_client::ShardNodeClient;

use super::teller::{Request, Teller, content};

const PATIENCE: Duration = Duration::from_secs(30);

/// Checks that every router answers the request as it was answered before.
///
/// # Errors
/// Names the answer that differs.
pub async fn answers_stay(teller: &Teller, request: &Request, answers: &[Answer]) -> anyhow::Result<()> {
    let first = answers.first().context("no client was answered")?;
    for router in 0..teller.routers() {
        let again = teller.ask(router, request).await?;
        for answer in answers {
            ensure!(
                content(answer)? == content(&again)?,
                "the answer was {} {}, but {} {} when the request was sent again",
                first.status,
                answer.text(),
                again.status,
                again.text()
            );
        }
    }
    Ok(())
}

/// Sends each step of the request's saga to its node again, as a late router does. Each step must be answered as a replay, and no booking
/// may be added.
///
/// # Errors
/// Names the step that has an effect or is not answered as a replay.
pub async fn steps_stay(cluster: &Cluster, request: &Request) -> anyhow::Result<()> {
    let Some(id) = request.body["id"].as_str().and_then(|id| id.parse::<Uuid>().ok()) else { return Ok(()) };
    let before = bookings(cluster, id).await?;
    let map = cluster.placement()?.map().clone();
    for (shard, booking) in &before {
        let Some(step) = step_of(booking, &before)? else { continue };
        let what = format!("{step:?} is repeated on shard {shard}");
        let outcome = until(&what, PATIENCE, async || repeat(&map, *shard, &step).await).await?;
        ensure!(is_replay(&outcome), "{step:?} was answered {outcome:?} when it was repeated");
    }
    let after = bookings(cluster, id).await?;
    ensure!(before == after, "repeated steps changed the bookings from {before:?} to {after:?}");
    Ok(())
}

async fn bookings(cluster: &Cluster, id: Uuid) -> anyhow::Result<Vec<(usize, Booking)>> {
    let mut found = Vec::new();
    for (shard, status) in cluster.status().shards.iter().enumerate() {
        found.extend(database::bookings(&status.dsn, id).await?.into_iter().map(|booking| (shard, booking)));
    }
    Ok(found)
}

/// The operation that made a booking of a saga.
fn step_of(booking: &Booking, saga: &[(usize, Booking)]) -> anyhow::Result<Option<Operation>> {
    let id = booking.id.context("a booking without an id")?;
    let first = saga
        .iter()
        .map(|(_, booking)| booking)
        .find(|it| matches!(it.kind, BookingKind::Reserved | BookingKind::Presumed) && it.payer == booking.payer);
    // A booking without a first step is no part of a saga.
    let Some(first) = first else { return Ok(None) };
    let credit = first.payee.clone().context("a reserve without a payee")?;
    let (debit, asset, amount, purpose) = (first.payer.clone(), first.asset, first.amount, first.purpose());
    Ok(Some(match booking.kind {
        BookingKind::Reserved | BookingKind::Presumed => Operation::Transfer(Transfer {
            ordered_by: None,
            id,
            debit,
            credit,
            asset,
            amount,
            metadata: first.metadata(),
            purpose,
            cross_shard: true,
            defer_insufficient: false,
            defer_limited: false,
        }),
        BookingKind::Credited | BookingKind::Refused => Operation::Decide(Decide {
            ordered_by: None,
            id,
            debit,
            credit,
            asset,
            amount,
            purpose,
            presumed: first.refused(),
            defer_limited: false,
            patient: false,
        }),
        BookingKind::Settled | BookingKind::Compensated | BookingKind::SettledRefused => {
            let register = saga.iter().map(|(_, booking)| booking);
            let mut register = register.filter(|it| matches!(it.kind, BookingKind::Credited | BookingKind::Refused));
            let register = register.next().context("a saga has ended without a register")?;
            let verdict = register.refused().map_or(Verdict::Credited, Verdict::Refused);
            let reserved = first.kind == BookingKind::Reserved;
            Operation::Settle(Settle { id, debit, credit, asset, amount, purpose, reserved, verdict })
        }
        _ => return Ok(None),
    }))
}

/// Sends a step to its node. `None` if the node did not execute it, because it has not noticed yet that its database was started again.
async fn repeat(map: &ShardMap, shard: usize, step: &Operation) -> anyhow::Result<Option<Outcome>> {
    let mut node = connect(map, shard).await?;
    let result =
        node.execute(execute_request(from_ref(step))).await?.into_inner().results.pop().context("no result")?;
    Ok(match Reply::try_from(result)? {
        Reply::Outcome(outcome) => Some(outcome),
        Reply::NotExecuted { .. } | Reply::Unknown => None,
    })
}

/// A connection to the node of a shard, as a router has one.
async fn connect(map: &ShardMap, shard: usize) -> anyhow::Result<ShardNodeClient<Channel>> {
    let there = map.shards.get(shard).context("no such shard")?;
    let url = there.nodes.first().context("a shard without nodes")?;
    let mut node = ShardNodeClient::connect(url.clone()).await?;
    let identified = node.identify(identify_request(map.cluster, &there.id)?).await?.into_inner();
    if !identified.refused.is_empty() {
        bail!("the node refuses the test: {:?}", identified.refused);
    }
    Ok(node)
}

fn is_replay(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Transfer(TransferOutcome::Done(answer)) => answer.replayed,
        Outcome::Decided(decided) => decided.replayed,
        Outcome::Settled(settled) => settled.replayed,
        _ => false,
    }
}
