//! Tests of COMMITs that are lost on their way to the database, and of COMMITs whose answers are lost. They are those of transfers, and of
//! each step in the life of a hold. The node sees a broken connection each time.

use std::{slice::from_ref, time::Duration};

use anyhow::ensure;
use ledger::{
    AssetCode, HoldKey, Limit, Metadata, TransferId,
    operation::{Operation, PlaceHold, Purpose, Verdict},
    outcome::Outcome,
};
use testkit::{
    database,
    history::{ASSET, Order},
    node::{Node, account, decide, open, order, settle, transfer},
    proxy::{CommitFault, TcpProxy, Weather},
    seed::Seed,
    wait::until,
};
use tokio::{sync::watch, time::timeout};

use super::{NodeFixture, books_are_sound, open_pair};

const FLAPPING_ORDERS: usize = 25;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_takes_effect_once() -> anyhow::Result<()> {
    every_step_takes_effect_once(CommitFault::DropReply).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrives_takes_effect_once() -> anyhow::Result<()> {
    every_step_takes_effect_once(CommitFault::Swallow).await
}

/// A node with a payer and a payee. A proxy between the node and its database causes the fault.
struct Faulty {
    node: Node,
    proxy: TcpProxy,
    database_url: String,
    fault: CommitFault,
    faults: u64,
    _fixture: NodeFixture,
}

impl Faulty {
    async fn new(name: &str, fault: CommitFault) -> anyhow::Result<Self> {
        let fixture = NodeFixture::new().await?;
        let direct = fixture.shard(name).await?;
        let proxy = TcpProxy::start(fixture.postgres(), Seed::announce(name).random()).await?;
        let config = fixture.another_node(&format!("{name}_proxied"), &proxy.through(&direct.database_url)?)?;
        let node = Node::start(&config).await?;
        open_pair(&node, "payer", "payee").await?;
        Ok(Self { node, proxy, database_url: direct.database_url, fault, faults: 0, _fixture: fixture })
    }

    /// Sends the operation while its COMMIT meets the fault, sends it again as a router would, and once more. The answers must agree.
    async fn takes_effect_once(&mut self, name: &str, operation: &Operation) -> anyhow::Result<()> {
        self.faults += 1;
        self.proxy.next_commit(self.fault);
        let first = self.node.execute_until_definite(operation).await?;
        ensure!(self.proxy.commit_faults_done() == self.faults, "{name}: {:?} did not take place", self.fault);
        let again = self.node.execute_until_definite(operation).await?;
        ensure!(effect(&first) == effect(&again), "{:?} at {name}: first {first:?}, then {again:?}", self.fault);
        Ok(())
    }

    async fn count(&self, rows: &str) -> anyhow::Result<i64> {
        database::number(&self.database_url, &format!("SELECT count(*) FROM {rows}")).await
    }
}

/// Sends every durable step of transfers, each while its COMMIT meets the fault.
async fn every_step_takes_effect_once(fault: CommitFault) -> anyhow::Result<()> {
    let mut faulty = Faulty::new("commit_faults", fault).await?;
    let local = order("payer", "payee", 100);
    let kept = order("payer", "payee", 10);
    let given_up = order("payer", "payee", 1);
    for (name, operation) in [
        ("open", open("new", Limit::ZERO)?),
        ("transfer", transfer(&local, false)?),
        ("reserve", transfer(&kept, true)?),
        ("decide", decide(&kept, false)?),
        ("settle", settle(&kept, Verdict::Credited)?),
        ("reserve the other", transfer(&given_up, true)?),
        ("cancel", decide(&given_up, true)?),
    ] {
        faulty.takes_effect_once(name, &operation).await?;
    }
    // The compensation carries the verdict that the register gave.
    let Outcome::Decided(cancelled) = faulty.node.execute_until_definite(&decide(&given_up, true)?).await? else {
        anyhow::bail!("no verdict");
    };
    ensure!(cancelled.verdict != Verdict::Credited);
    faulty.takes_effect_once("compensate", &settle(&given_up, cancelled.verdict)?).await?;

    // Payments of 100 and 10 were posted. A payment of 1 was reserved and given back.
    let (payer, payee) = (faulty.node.account("payer").await?, faulty.node.account("payee").await?);
    expect!((payer.posted, payee.posted) == (-110, 110), "{payer:?} {payee:?}");
    ensure!(faulty.count("journal WHERE role = 1").await? == 3);
    ensure!(faulty.count("journal WHERE role = 3").await? == 2);
    ensure!(faulty.count(&format!("{} WHERE status = 1", database::TRANSFERS)).await? == 0);
    books_are_sound(&faulty.database_url).await
}

/// The outcome as text, without the mark of a replay.
fn effect(outcome: &Outcome) -> String {
    let text = format!("{outcome:?}");
    text.replace("replayed: true", "replayed: _")
        .replace("replayed: false", "replayed: _")
        .replace("Replayed(", "Created(")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_committed_before_it_was_killed_is_replayed() -> anyhow::Result<()> {
    a_node_killed_at_its_commit_is_replaced(CommitFault::DropReply, "killed_after", true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_did_not_commit_is_carried_out_when_it_is_sent_again() -> anyhow::Result<()> {
    a_node_killed_at_its_commit_is_replaced(CommitFault::Swallow, "killed_before", false).await
}

/// Sends `kill -9` while the node does not know whether its COMMIT took effect, and has answered no caller.
async fn a_node_killed_at_its_commit_is_replaced(
    fault: CommitFault,
    name: &str,
    committed: bool,
) -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let direct = fixture.shard(name).await?;
    let proxy = TcpProxy::start(fixture.postgres(), Seed::announce(name).random()).await?;
    let config = fixture.another_node(&format!("{name}_proxied"), &proxy.through(&direct.database_url)?)?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;

    let operation = transfer(&order("payer", "payee", 100), false)?;
    proxy.next_commit(fault);
    // The node cannot ask the database again either.
    proxy.set_weather(Weather::Refuse);
    let unanswered = async {
        let answer = node.execute(from_ref(&operation)).await;
        ensure!(
            !matches!(answer.as_deref(), Ok([ledger::outcome::Reply::Outcome(_)])),
            "the node cannot know: {answer:?}"
        );
        Ok(())
    };
    let kill = async {
        until("the COMMIT has met its fault", Duration::from_secs(20), async || {
            Ok((proxy.commit_faults_done() == 1).then_some(()))
        })
        .await?;
        node.process().kill().await
    };
    tokio::try_join!(unanswered, kill)?;
    drop(node);

    proxy.set_weather(Weather::Clear);
    let node = Node::start(&config).await?;
    let outcome = format!("{:?}", node.execute_until_definite(&operation).await?);
    expect!(outcome.contains(&format!("replayed: {committed}")), "{fault:?}: {outcome}");
    ensure!(node.account("payee").await?.posted == 100);
    ensure!(database::number(&direct.database_url, "SELECT count(*) FROM journal WHERE role = 1").await? == 1);
    books_are_sound(&direct.database_url).await
}

/// The connection stays open and carries nothing, so only the node's own deadline ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_database_is_given_up_and_the_batch_run_again() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let direct = fixture.shard("black_hole").await?;
    let proxy = TcpProxy::start(fixture.postgres(), Seed::announce("black hole").random()).await?;
    let config = fixture.another_node("black_hole_proxied", &proxy.through(&direct.database_url)?)?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;

    proxy.set_weather(Weather::Slow { longest: Duration::from_millis(20) });
    node.execute_until_definite(&transfer(&order("payer", "payee", 1), false)?).await?;

    proxy.set_weather(Weather::BlackHole);
    let lost = transfer(&order("payer", "payee", 10), false)?;
    // The whole batch was sent with its COMMIT. The node cannot know whether it took effect, so there is no answer.
    let replies = timeout(Duration::from_secs(6), node.execute(from_ref(&lost))).await;
    ensure!(replies.is_err(), "the node got an answer through a black hole: {replies:?}");
    until("the node says that it is cut off", Duration::from_secs(20), async || {
        Ok((node.status().await?.state == "recovering").then_some(()))
    })
    .await?;

    proxy.set_weather(Weather::Clear);
    node.execute_until_definite(&lost).await?;
    ensure!(node.account("payee").await?.posted == 11);
    ensure!(database::number(&direct.database_url, "SELECT count(*) FROM journal WHERE role = 1").await? == 2);
    books_are_sound(&direct.database_url).await
}

/// Connections break at any moment of any statement, and are refused for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_link_costs_time_and_no_money() -> anyhow::Result<()> {
    let fixture = NodeFixture::new().await?;
    let direct = fixture.shard("flapping").await?;
    let mut random = Seed::announce("flapping").random();
    let proxy = TcpProxy::start(fixture.postgres(), random.clone()).await?;
    let config = fixture.another_node("flapping_proxied", &proxy.through(&direct.database_url)?)?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;
    // The link is so slow that most cuts hit a transaction.
    proxy.set_weather(Weather::Slow { longest: Duration::from_millis(2) });

    let done = watch::Sender::new(0);
    let load = async {
        for _ in 0..FLAPPING_ORDERS {
            let order = transfer(&order("payer", "payee", 1), false)?;
            node.execute_until_definite(&order).await?;
            done.send_modify(|done| *done += 1);
        }
        anyhow::Ok(())
    };
    let harm = async {
        let (mut progress, mut cuts) = (done.subscribe(), 0);
        while *progress.borrow_and_update() < FLAPPING_ORDERS {
            if random.percent(20) {
                proxy.set_weather(Weather::Refuse);
            }
            proxy.cut();
            cuts += 1;
            tokio::time::sleep(Duration::from_millis(random.below(40) as u64)).await;
            proxy.set_weather(Weather::Slow { longest: Duration::from_millis(2) });
            // Each cut meets a connection that has carried work since the last one.
            progress.changed().await?;
            tokio::time::sleep(Duration::from_millis(random.below(40) as u64)).await;
        }
        Ok(cuts)
    };
    let ((), cuts) = tokio::try_join!(load, harm)?;

    ensure!(
        proxy.connections() > cuts,
        "each of the {cuts} cuts should cost a connection, but the node made only {}",
        proxy.connections()
    );
    let sum = i64::try_from(FLAPPING_ORDERS)?;
    ensure!(node.account("payee").await?.posted == sum);
    ensure!(database::number(&direct.database_url, "SELECT count(*) FROM journal WHERE role = 1").await? == sum);
    books_are_sound(&direct.database_url).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_a_hold_whose_answer_is_lost_takes_effect_once() -> anyhow::Result<()> {
    every_step_of_a_hold_takes_effect_once(CommitFault::DropReply).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_a_hold_whose_commit_never_arrives_takes_effect_once() -> anyhow::Result<()> {
    every_step_of_a_hold_takes_effect_once(CommitFault::Swallow).await
}

/// Sends every durable step in the life of a hold, each while its COMMIT meets the fault. The node takes both ends of the saga.
async fn every_step_of_a_hold_takes_effect_once(fault: CommitFault) -> anyhow::Result<()> {
    let mut faulty = Faulty::new("hold_commit_faults", fault).await?;
    for (name, operation) in steps_of_holds()? {
        faulty.takes_effect_once(name, &operation).await?;
    }

    // Captures of 30 and 20 were posted, and 10 of the 30 came back.
    let (payer, payee) = (faulty.node.account("payer").await?, faulty.node.account("payee").await?);
    expect!((payer.posted, payer.held, payee.posted) == (-40, 0, 40), "{payer:?} {payee:?}");
    for (count, rows) in [
        (1, format!("{} WHERE status = 2 AND captured = 50 AND capture_id IS NULL", database::HOLDS)),
        (1, format!("{} WHERE status = 3 AND captured = 0", database::HOLDS)),
        (2, database::HOLDS.to_owned()),
        (0, "hold".to_owned()),
        (3, format!("{} WHERE status = 2", database::TRANSFERS)),
        (1, format!("{} WHERE reversed = 10", database::TRANSFERS)),
        (1, "journal WHERE reverses IS NOT NULL".to_owned()),
    ] {
        let found = faulty.count(&rows).await?;
        ensure!(found == count, "{found} instead of {count}: {rows}");
    }
    books_are_sound(&faulty.database_url).await
}

/// A hold of 100, of which 30 are captured here and 20 to another shard. The rest is released, and 10 of the 30 come back. A second hold is
/// released.
fn steps_of_holds() -> anyhow::Result<[(&'static str, Operation); 8]> {
    let (held, released) = (order("payer", "payee", 100), order("payer", "payee", 40));
    let (local, far, back) = (order("payer", "payee", 30), order("payer", "payee", 20), order("payee", "payer", 10));
    let capture = |finalize| Purpose::Capture { hold: TransferId(held.id), whole: false, finalize };
    let reversal = Purpose::Reversal { of: TransferId(local.id), whole: false };
    Ok([
        ("place", place_hold(&held)?),
        ("capture", with_purpose(transfer(&local, false)?, capture(false))),
        ("reserve", with_purpose(transfer(&far, true)?, capture(true))),
        ("decide", with_purpose(decide(&far, false)?, capture(true))),
        ("settle", with_purpose(settle(&far, Verdict::Credited)?, capture(true))),
        ("reverse", with_purpose(transfer(&back, false)?, reversal)),
        ("place the other", place_hold(&released)?),
        ("release", Operation::ReleaseHold(HoldKey { id: TransferId(released.id), debit: account("payer")? }.into())),
    ])
}

/// Turns the step of a payment into the step of a capture or a reversal.
fn with_purpose(mut operation: Operation, purpose: Purpose) -> Operation {
    match &mut operation {
        Operation::Transfer(it) => it.purpose = purpose,
        Operation::Decide(it) => it.purpose = purpose,
        Operation::Settle(it) => it.purpose = purpose,
        _ => {}
    }
    operation
}

fn place_hold(order: &Order) -> anyhow::Result<Operation> {
    Ok(Operation::PlaceHold(PlaceHold {
        ordered_by: None,
        id: TransferId(order.id),
        debit: account(&order.debit)?,
        credit: account(&order.credit)?,
        asset: AssetCode::new(ASSET)?,
        amount: order.amount,
        expires_in_s: None,
        metadata: Metadata::empty(),
    }))
}
