//! Tests of a node whose clock is an hour ahead. Entries that were dated and holds that have expired cannot be taken back.

use std::path::Path;

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::{client::Client, database, history::hold_body, node::Node, wait::until};
use uuid::Uuid;

use super::{NOTICED_WITHIN, Payments, ShardSetup, node_says, says};

/// The variable that names a file with the error of the process's clock in microseconds. `telemetry::clock` reads it in debug builds.
const OFFSET_FILE: &str = "SHARDLEDGER_CLOCK_OFFSET_FILE";
const HOUR_US: i64 = 3_600_000_000;
/// The bound is `clock.max_difference_ms`. The slack is the time that reading two clocks in turn may take on a busy machine.
const BOUND_US: i64 = 1_000_000;
const SLACK_US: i64 = 500_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_an_hour_ahead_expires_no_hold_and_dates_no_entry_ahead() -> anyhow::Result<()> {
    let mut setup = ShardSetup::with_shards(2).await?;
    let offset = setup.folder.path().join("offset");
    setup.nodes[0].environment.push((OFFSET_FILE.to_owned(), offset.display().to_string()));
    set(&offset, 0)?;
    let mut nodes = setup.found().await?;

    // A node whose clock is wrong at its start refuses to start and names the clock.
    nodes.remove(0).process().terminate(NOTICED_WITHIN).await?;
    set(&offset, HOUR_US)?;
    let said = Node::start_refused(&setup.nodes[0]).await?;
    says(&said, &["clock", "PostgreSQL is 3", "behind", "NTP"])?;

    set(&offset, 0)?;
    let node = Node::start(&setup.nodes[0]).await?;
    // The clocks of these routers agreed with the node's. They are more than the node can measure again at the same time.
    let _others = [setup.router("first").await?, setup.router("second").await?];
    let router = setup.router("router").await?;
    let client = router.client();
    let mut payments = Payments::open(client, &setup.placement()?, "s0", "s0").await?;
    payments.make(client, 1).await?;
    let long = place_hold(client, &payments, 1800).await?;

    // The clock changes while the node runs. The next entry must still be within the bound of the true time.
    set(&offset, HOUR_US)?;
    payments.make(client, 1).await?;
    is_dated_now(&setup, BOUND_US).await?;
    node_says(&node, &["clock", "PostgreSQL is 3", "behind"]).await?;
    let short = place_hold(client, &payments, 1).await?;
    // The expiry of a short hold proves that the node has looked for holds that are due.
    until("the short hold has expired", NOTICED_WITHIN, async || {
        Ok((status_of(client, short).await? == "expired").then_some(()))
    })
    .await?;
    ensure!(status_of(client, long).await? == "held", "a hold of 30 minutes has expired");
    payments.make(client, 1).await?;
    is_dated_now(&setup, BOUND_US).await?;

    set(&offset, 0)?;
    until("the node's clock is right again", NOTICED_WITHIN, async || {
        let readiness = node.readiness().await?;
        expect!(readiness["status"] == "ready" && readiness["disagreements"] == json!([]), "{readiness}");
        Ok(Some(()))
    })
    .await?;
    // The test waits, because an entry is never dated before the one that it follows, and the last one may be dated ahead by as much as the
    // bound.
    until("PostgreSQL's clock has passed the newest booking", NOTICED_WITHIN, async || {
        Ok((newest_booking_ahead_us(&setup).await? <= 0).then_some(()))
    })
    .await?;
    payments.make(client, 1).await?;
    is_dated_now(&setup, 0).await?;
    ensure!(status_of(client, long).await? == "held");
    payments.are_there_once(client).await
}

fn set(file: &Path, offset_us: i64) -> anyhow::Result<()> {
    // The file is renamed into place, because the process must not read half a number.
    let draft = file.with_extension("draft");
    std::fs::write(&draft, offset_us.to_string())?;
    Ok(std::fs::rename(draft, file)?)
}

async fn place_hold(client: &Client, payments: &Payments, seconds: u32) -> anyhow::Result<Uuid> {
    let id = Uuid::now_v7();
    let order = hold_body(id, &payments.payer, &payments.payee, "1.00", Some(seconds));
    let answer = client.call(0, Method::POST, "/v1/holds", Some(&order)).await?;
    answer.expect_status(201)?;
    Ok(id)
}

async fn status_of(client: &Client, hold: Uuid) -> anyhow::Result<String> {
    let found: Value = client.get(0, &format!("/v1/holds/{hold}")).await?;
    Ok(found["status"].as_str().with_context(|| format!("expected status in {found}"))?.to_owned())
}

/// Checks that the shard's newest booking is dated at most this far from PostgreSQL's clock.
async fn is_dated_now(setup: &ShardSetup, bound_us: i64) -> anyhow::Result<()> {
    let ahead_us = newest_booking_ahead_us(setup).await?;
    ensure!(ahead_us <= bound_us + SLACK_US, "the newest booking is dated {ahead_us} µs ahead");
    Ok(())
}

async fn newest_booking_ahead_us(setup: &ShardSetup) -> anyhow::Result<i64> {
    let ahead = "SELECT max(at_us) - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM journal";
    database::number(&setup.database("s0"), ahead).await
}
