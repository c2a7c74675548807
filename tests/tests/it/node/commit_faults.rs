//! COMMITs and their answers, lost on the way. The node sees the same each time, a broken connection; the truth differs.

use std::{slice::from_ref, time::Duration};

use anyhow::{Context, ensure};
use ledger::{
    Limit,
    operation::{Operation, Verdict},
    outcome::Outcome,
};
use testkit::{
    database,
    node::{Node, decide, open, order, settle, transfer},
    proxy::{CommitFault, TcpProxy, Weather},
    seed::Seed,
    tables,
    wait::until,
};
use tokio::{sync::watch, time::timeout};

use super::{Place, books_are_sound, open_pair};

const FLAPPING_ORDERS: usize = 25;

/// Every kind of durable step, with each fault.
pub async fn a_commit_whose_fate_is_unknown_takes_effect_once(place: &Place<'_>) -> anyhow::Result<()> {
    let direct = place.shard("commit_faults").await?;
    let proxy = TcpProxy::start(place.postgres(), Seed::announce("commit faults").random()).await?;
    let config = place.another_node("commit_faults_proxied", &proxy.through(&direct.database_url)?)?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;

    let mut faults = 0;
    for (index, fault) in [CommitFault::DropReply, CommitFault::Swallow].into_iter().enumerate() {
        let local = order("payer", "payee", 100);
        let kept = order("payer", "payee", 10);
        let given_up = order("payer", "payee", 1);
        let steps = [
            ("open", open(&format!("new{index}"), Limit::ZERO)?),
            ("transfer", transfer(&local, false)?),
            ("reserve", transfer(&kept, true)?),
            ("decide", decide(&kept, false)?),
            ("settle", settle(&kept, Verdict::Credited)?),
            ("reserve the other", transfer(&given_up, true)?),
            ("cancel", decide(&given_up, true)?),
        ];
        for (name, operation) in &steps {
            faults += 1;
            faulty(&node, &proxy, operation, fault, faults).await.with_context(|| format!("{fault:?} at {name}"))?;
        }
        // The compensation carries the verdict that the register gave.
        let Outcome::Decided(cancelled) = node.execute_until_definite(&decide(&given_up, true)?).await? else {
            anyhow::bail!("no verdict");
        };
        ensure!(cancelled.verdict != Verdict::Credited);
        faults += 1;
        let compensate = settle(&given_up, cancelled.verdict)?;
        faulty(&node, &proxy, &compensate, fault, faults)
            .await
            .with_context(|| format!("{fault:?} at compensate"))?;
    }

    // Twice 100 and twice 10; twice 1 went and came back.
    let (payer, payee) = (node.account("payer").await?, node.account("payee").await?);
    ensure!((payer.posted, payee.posted) == (-220, 220), "{payer:?} {payee:?}");
    let url = &direct.database_url;
    ensure!(database::number(url, "SELECT count(*) FROM journal WHERE role = 1").await? == 6);
    ensure!(database::number(url, "SELECT count(*) FROM journal WHERE role = 3").await? == 4);
    ensure!(
        database::number(url, &format!("SELECT count(*) FROM {} WHERE status = 1", tables::TRANSFERS)).await? == 0
    );
    books_are_sound(url).await
}

/// Sends the operation while its COMMIT meets the fault, resends it as a router would, and once more: the answers agree.
pub async fn faulty(
    node: &Node,
    proxy: &TcpProxy,
    operation: &Operation,
    fault: CommitFault,
    faults: u64,
) -> anyhow::Result<()> {
    proxy.next_commit(fault);
    let first = node.execute_until_definite(operation).await?;
    ensure!(proxy.commit_faults_done() == faults, "the fault did not take place");
    let again = node.execute_until_definite(operation).await?;
    ensure!(effect(&first) == effect(&again), "first {first:?}, then {again:?}");
    Ok(())
}

/// The outcome without what says whether it was a replay.
fn effect(outcome: &Outcome) -> String {
    let text = format!("{outcome:?}");
    text.replace("replayed: true", "replayed: _")
        .replace("replayed: false", "replayed: _")
        .replace("Replayed(", "Created(")
}

/// `kill -9` while the node does not know what became of its COMMIT, and has answered nobody.
pub async fn a_node_killed_at_its_commit_is_survived_by_what_was_committed(place: &Place<'_>) -> anyhow::Result<()> {
    for (fault, name, committed) in
        [(CommitFault::DropReply, "killed_after", true), (CommitFault::Swallow, "killed_before", false)]
    {
        let direct = place.shard(name).await?;
        let proxy = TcpProxy::start(place.postgres(), Seed::announce(name).random()).await?;
        let config = place.another_node(&format!("{name}_proxied"), &proxy.through(&direct.database_url)?)?;
        let node = Node::start(&config).await?;
        open_pair(&node, "payer", "payee").await?;

        let operation = transfer(&order("payer", "payee", 100), false)?;
        proxy.next_commit(fault);
        // It cannot ask again either.
        proxy.set_weather(Weather::Refuse);
        let unanswered = async {
            let answer = node.execute(from_ref(&operation)).await;
            ensure!(
                !matches!(answer.as_deref(), Ok([ledger::outcome::Reply::Outcome(_)])),
                "it cannot know: {answer:?}"
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
        ensure!(outcome.contains(&format!("replayed: {committed}")), "{fault:?}: {outcome}");
        ensure!(node.account("payee").await?.posted == 100);
        ensure!(database::number(&direct.database_url, "SELECT count(*) FROM journal WHERE role = 1").await? == 1);
        books_are_sound(&direct.database_url).await?;
    }
    Ok(())
}

/// A partition nobody is told of: only the node's own deadline ends it.
pub async fn a_silent_database_is_given_up_and_the_batch_run_again(place: &Place<'_>) -> anyhow::Result<()> {
    let direct = place.shard("black_hole").await?;
    let proxy = TcpProxy::start(place.postgres(), Seed::announce("black hole").random()).await?;
    let config = place.another_node("black_hole_proxied", &proxy.through(&direct.database_url)?)?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;

    proxy.set_weather(Weather::Slow { longest: Duration::from_millis(20) });
    node.execute_until_definite(&transfer(&order("payer", "payee", 1), false)?).await?;

    proxy.set_weather(Weather::BlackHole);
    let lost = transfer(&order("payer", "payee", 10), false)?;
    // The whole batch was sent with its COMMIT, so the node cannot know what became of it, and there is no answer.
    let replies = timeout(Duration::from_secs(6), node.execute(from_ref(&lost))).await;
    ensure!(replies.is_err(), "it got an answer through a black hole: {replies:?}");
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

/// Connections broken at any moment of any statement, and refused for a while.
pub async fn a_flapping_link_costs_time_and_no_money(place: &Place<'_>) -> anyhow::Result<()> {
    let direct = place.shard("flapping").await?;
    let mut random = Seed::announce("flapping").random();
    let proxy = TcpProxy::start(place.postgres(), random.clone()).await?;
    let config = place.another_node("flapping_proxied", &proxy.through(&direct.database_url)?)?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;
    // Slow enough that most cuts hit a transaction.
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
        "{cuts} cuts, and the node hardly noticed: {} connections",
        proxy.connections()
    );
    let sum = i64::try_from(FLAPPING_ORDERS)?;
    ensure!(node.account("payee").await?.posted == sum);
    ensure!(database::number(&direct.database_url, "SELECT count(*) FROM journal WHERE role = 1").await? == sum);
    books_are_sound(&direct.database_url).await
}
