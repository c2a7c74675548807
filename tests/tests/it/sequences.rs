//! Random sequences of requests, played to a ledger in memory (`crates/model`) and to a real cluster: every answer has to be
//! the same, and so has everything that is there in the end.
//!
//! A sequence has accounts of its own, so that many are played at once. What differs is made as short as it gets and
//! printed line by line. `SEQUENCES` says how many are played per cluster; `SEED` repeats a run, and `ONLY` one sequence of
//! it.

mod command;
mod compare;
mod final_state;
mod play;
mod script;
mod shrink;
mod tally;
mod transcript;
mod wire;

use std::{sync::atomic::AtomicUsize, time::Duration};

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use testkit::{cluster::Cluster, seed::Seed};

use self::{
    play::{Outcome, Stage, play},
    shrink::Source,
    tally::Tally,
};

/// Sequences per cluster, unless the environment says otherwise.
const SEQUENCES: usize = 2_000;
/// Played at once. Enough that each commit is shared by many.
const AT_ONCE: usize = 48;
/// In a run of at least so many every answer is seen.
const ENOUGH: usize = 1_000;
/// So long a request may take on a machine that does much else.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What must have been answered.
const ANSWERS: &[&str] = &[
    "POST accounts 201 open",
    "POST accounts 200 open replayed",
    "POST accounts 409 account_exists asset",
    "POST accounts 409 account_exists overdraft",
    "POST accounts 409 account_exists max_balance",
    "POST accounts 409 account_exists metadata",
    "PATCH accounts 200 open",
    "PATCH accounts 200 frozen",
    "PATCH accounts 200 closed",
    "PATCH accounts 404 account_not_found",
    "PATCH accounts 409 account_not_empty",
    "PATCH accounts 422 insufficient_funds",
    "GET accounts 404 account_not_found",
    "GET transfers 200 posted",
    "GET transfers 200 rejected debit",
    "GET transfers 200 rejected credit",
    "GET transfers 404 transfer_not_found",
    "GET transfers 409 ambiguous_id",
    "POST transfers 201 posted",
    "POST transfers 200 posted replayed",
    "POST transfers 400 same_account",
    "POST transfers 422 account_closed credit",
    "POST transfers 422 account_closed debit",
    "POST transfers 422 account_frozen debit",
    "POST transfers 422 account_not_found credit",
    "POST transfers 422 account_not_found debit",
    "POST transfers 422 asset_mismatch credit",
    "POST transfers 422 asset_mismatch debit",
    "POST transfers 422 balance_overflow credit",
    "POST transfers 422 balance_overflow debit",
    "POST transfers 422 idempotency_mismatch amount",
    "POST transfers 422 idempotency_mismatch asset",
    "POST transfers 422 idempotency_mismatch credit",
    "POST transfers 422 idempotency_mismatch metadata",
    "POST transfers 422 insufficient_funds debit",
    "POST transfers 422 insufficient_funds debit replayed",
    "POST transfers 422 limit_exceeded credit",
    "POST transfers:batch 400 same_account",
    "POST transfers:batch item failed account_not_found debit",
    "POST transfers:batch item failed batch_failed",
    "POST transfers:batch item failed insufficient_funds debit",
    "POST transfers:batch item posted",
    "POST transfers:batch item posted replayed",
    "POST transfers:batch item rejected account_not_found credit",
    "POST transfers:batch item rejected insufficient_funds debit",
];
/// What only several shards can answer.
const ANSWERS_OF_SHARDS: &[&str] = &["POST transfers:batch 422 atomic_cross_shard"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agree_with_the_model_on_one_shard() -> anyhow::Result<()> {
    agree_with_the_model("one shard", 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agree_with_the_model_on_three_shards() -> anyhow::Result<()> {
    agree_with_the_model("three shards", 3).await
}

async fn agree_with_the_model(name: &str, shards: u16) -> anyhow::Result<()> {
    let seed = Seed::announce(name);
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<usize>().ok());
    let source = Source::new(&seed);
    let numbers = match number("ONLY") {
        Some(only) => only..only + 1,
        None => 0..number("SEQUENCES").unwrap_or(SEQUENCES),
    };

    let cluster = Cluster::start(shards, 2).await?;
    let stage = Stage {
        client: cluster.client().with_timeout(TIMEOUT),
        placement: cluster.placement()?,
        shards: shards.into(),
        tally: Tally::default(),
        played: AtomicUsize::new(0),
    };
    let begun = std::time::Instant::now();
    let played = numbers.len();
    let mut outcomes = stream::iter(numbers)
        .map(async |number| (number, play(&stage, &source.sequence(number)).await))
        .buffer_unordered(AT_ONCE);
    let (mut undecided, mut differing) = (Vec::new(), None);
    while let Some((number, outcome)) = outcomes.next().await {
        match outcome? {
            Outcome::Agreed => {}
            Outcome::Undecided(why) => undecided.push(why),
            Outcome::Differs(how) => {
                differing = Some((number, how));
                break;
            }
        }
    }
    drop(outcomes);
    if let Some((number, how)) = differing {
        eprintln!("sequence {number} differs:\n{how}\nlooking for a shorter one");
        let shortest = shrink::shortest(&stage, &source, number).await?.unwrap_or(how);
        anyhow::bail!("sequence {number} differs (ONLY={number} repeats it), in short:\n{shortest}");
    }
    eprintln!(
        "{name}: {played} sequences in {:.1?}, {} undecided\n{}",
        begun.elapsed(),
        undecided.len(),
        stage.tally
    );
    ensure!(undecided.len() * 100 <= played, "{} sequences are undecided, such as {}", undecided.len(), undecided[0]);
    if played >= ENOUGH {
        let more = if shards > 1 { ANSWERS_OF_SHARDS } else { &[] };
        let unseen = stage.tally.unseen(&[ANSWERS, more].concat());
        ensure!(unseen.is_empty(), "never answered: {unseen:#?}");
    }
    cluster.verify().await?;
    cluster.finish().await
}
