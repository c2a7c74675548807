//! A hold expires by itself.

use std::time::Duration;

use anyhow::{bail, ensure};
use testkit::{database, tables, wait::until};

use super::stage::{ELSEWHERE, PATIENCE, SOURCE, Stage};

/// Placed one after another, so that they come due at different moments of the node's round.
const HOLDS: usize = 20;
/// What the contract allows, and what a busy machine may take on top.
const ALLOWED_US: i64 = 1_000_000;
const SLACK_US: i64 = 1_000_000;
/// A machine that stands still for longer than that does not do so every time.
const TRIES: usize = 5;

/// Nobody asks for anything while they come due; how late each one went is by the shard's own clock.
pub async fn needs_no_client(stage: &Stage<'_>) -> anyhow::Result<()> {
    let mut late_us = Vec::new();
    for _ in 0..TRIES {
        let latest = latest(stage).await?;
        eprintln!("    the last of {HOLDS} holds expired {latest} µs late");
        if latest <= ALLOWED_US + SLACK_US {
            return Ok(());
        }
        late_us.push(latest);
    }
    bail!("holds expired {late_us:?} µs late")
}

/// How late the last of some holds expires, in microseconds.
async fn latest(stage: &Stage<'_>) -> anyhow::Result<i64> {
    let payer = stage.account(SOURCE, "20.00").await?;
    let payee = stage.account(ELSEWHERE, "0.00").await?;
    for _ in 0..HOLDS {
        stage.hold(&payer, &payee, "1.00", Some(1)).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let dsn = &stage.cluster.status().shards[0].dsn;
    let expired = format!("FROM {} WHERE status = 4 AND debit = '{payer}'", tables::HOLDS);
    until("all of them have expired", PATIENCE, async || {
        let count = database::number(dsn, &format!("SELECT count(*) {expired}")).await?;
        Ok((usize::try_from(count)? == HOLDS).then_some(()))
    })
    .await?;
    let early = database::number(dsn, &format!("SELECT count(*) {expired} AND ended_at_us < expires_at_us")).await?;
    ensure!(early == 0, "{early} holds expired before their time");
    ensure!(stage.balance(&payer).await? == ("20.00".to_owned(), "0.00".to_owned()));
    ensure!(stage.balance(&payee).await?.0 == "0.00");
    database::number(dsn, &format!("SELECT max(ended_at_us - expires_at_us) {expired}")).await
}
