//! COMMITs of holds, captures and reversals whose answers are lost on the way.

use anyhow::{Context, ensure};
use ledger::{
    AccountId, AssetCode, HoldKey, Metadata, TransferId,
    operation::{Decide, Operation, PlaceHold, Purpose, Settle, Transfer, Verdict},
};
use testkit::{
    database,
    history::ASSET,
    node::Node,
    proxy::{CommitFault, TcpProxy},
    seed::Seed,
    tables,
};
use uuid::Uuid;

use super::{Place, books_are_sound, commit_faults::faulty, open_pair};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_a_hold_whose_answer_is_lost_takes_effect_once() -> anyhow::Result<()> {
    every_step_takes_effect_once(CommitFault::DropReply).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_a_hold_whose_commit_never_arrives_takes_effect_once() -> anyhow::Result<()> {
    every_step_takes_effect_once(CommitFault::Swallow).await
}

/// Sends every durable step in the life of a hold, each while its COMMIT meets the fault. The node takes both ends of the saga.
async fn every_step_takes_effect_once(fault: CommitFault) -> anyhow::Result<()> {
    let place = Place::new().await?;
    let direct = place.shard("hold_commit_faults").await?;
    let proxy = TcpProxy::start(place.postgres(), Seed::announce("hold commit faults").random()).await?;
    let config = place.another_node("hold_commit_faults_proxied", &proxy.through(&direct.database_url)?)?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;

    for (faults, (name, operation)) in (1..).zip(steps()?) {
        faulty(&node, &proxy, &operation, fault, faults).await.with_context(|| format!("{fault:?} at {name}"))?;
    }

    // 30 and 20 were captured, and 10 of the 30 came back.
    let (payer, payee) = (node.account("payer").await?, node.account("payee").await?);
    ensure!((payer.posted, payer.held, payee.posted) == (-40, 0, 40), "{payer:?} {payee:?}");
    let url = &direct.database_url;
    for (count, sql) in [
        (1, format!("{} WHERE status = 2 AND captured = 50 AND capture_id IS NULL", tables::HOLDS)),
        (1, format!("{} WHERE status = 3 AND captured = 0", tables::HOLDS)),
        (2, tables::HOLDS.to_owned()),
        (0, "hold".to_owned()),
        (3, format!("{} WHERE status = 2", tables::TRANSFERS)),
        (1, format!("{} WHERE reversed = 10", tables::TRANSFERS)),
        (1, "journal WHERE reverses IS NOT NULL".to_owned()),
    ] {
        let found = database::number(url, &format!("SELECT count(*) FROM {sql}")).await?;
        ensure!(found == count, "{found} instead of {count}: {sql}");
    }
    books_are_sound(url).await
}

/// A hold of 100 of which 30 are captured here and 20 to another shard, the rest being released; 10 of the 30 come back. A
/// second hold is released.
fn steps() -> anyhow::Result<[(&'static str, Operation); 8]> {
    let (hold, local, far, released) = (new_id(), new_id(), new_id(), new_id());
    let capture = |finalize| Purpose::Capture { hold, whole: false, finalize };
    let back = Purpose::Reversal { of: local, whole: false };
    let saga = transfer(far, ("payer", "payee"), 20, capture(true))?;
    Ok([
        ("place", place_hold(hold, 100)?),
        ("capture", Operation::Transfer(transfer(local, ("payer", "payee"), 30, capture(false))?)),
        ("reserve", Operation::Transfer(Transfer { cross_shard: true, ..saga.clone() })),
        ("decide", decide(&saga)),
        ("settle", settle(&saga)),
        ("reverse", Operation::Transfer(transfer(new_id(), ("payee", "payer"), 10, back)?)),
        ("place the other", place_hold(released, 40)?),
        ("release", Operation::ReleaseHold(HoldKey { id: released, debit: AccountId::client("payer")? }.into())),
    ])
}

fn new_id() -> TransferId {
    TransferId(Uuid::now_v7())
}

fn place_hold(id: TransferId, amount: i64) -> anyhow::Result<Operation> {
    Ok(Operation::PlaceHold(PlaceHold {
        ordered_by: None,
        id,
        debit: AccountId::client("payer")?,
        credit: AccountId::client("payee")?,
        asset: AssetCode::new(ASSET)?,
        amount,
        expires_in_s: None,
        metadata: Metadata::empty(),
    }))
}

fn transfer(
    id: TransferId,
    (debit, credit): (&str, &str),
    amount: i64,
    purpose: Purpose,
) -> anyhow::Result<Transfer> {
    Ok(Transfer {
        ordered_by: None,
        id,
        debit: AccountId::client(debit)?,
        credit: AccountId::client(credit)?,
        asset: AssetCode::new(ASSET)?,
        amount,
        metadata: Metadata::empty(),
        purpose,
        cross_shard: false,
        defer_insufficient: false,
        defer_limited: false,
    })
}

fn decide(of: &Transfer) -> Operation {
    Operation::Decide(Decide {
        ordered_by: None,
        id: of.id,
        debit: of.debit.clone(),
        credit: of.credit.clone(),
        asset: of.asset,
        amount: of.amount,
        purpose: of.purpose,
        presumed: None,
        defer_limited: false,
        patient: false,
    })
}

fn settle(of: &Transfer) -> Operation {
    Operation::Settle(Settle {
        id: of.id,
        debit: of.debit.clone(),
        credit: of.credit.clone(),
        asset: of.asset,
        amount: of.amount,
        purpose: of.purpose,
        reserved: true,
        verdict: Verdict::Credited,
    })
}
