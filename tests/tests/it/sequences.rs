//! Random sequences of requests are played to a ledger in memory (`crates/model`) and to a real cluster. Every answer must be the same, and
//! so must the final state.
//!
//! Each sequence has its own accounts, so that many are played at the same time. A sequence that differs is shortened as far as possible
//! and printed line by line. `SEQUENCES` is their number, half on one shard and half on three. `SEED` repeats a run, and `ONLY` one
//! sequence of it.

mod command;
mod compare;
mod concurrent;
mod play;
mod script;
mod tally;
mod wire;

use std::{
    sync::atomic::AtomicUsize,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use testkit::{cluster::Cluster, seed::Seed};

use self::{
    command::{Sequence, sequences},
    play::{Outcome, SharedState, play},
    tally::{EXPIRED_IN_TIME, EXPIRED_LATE, OPENED_SO, Tally},
};

/// The number of sequences on both clusters together, unless the environment sets another.
const SEQUENCES: usize = 2_000;
/// The number of sequences that are played at the same time. It is so large that each commit has operations of several.
const AT_ONCE: usize = 48;
/// A run of at least this many sequences must see each of [`ANSWERS`]. A run of five times as many must see each of [`RARE_ANSWERS`].
const ENOUGH: usize = 800;
/// How often a sequence is played if the machine is too slow to decide it.
const TRIES: usize = 4;
/// The time limit of a request on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Answers that a run must see. They are the contract's answers about accounts, holds and transfers that need no fault.
const ANSWERS: &[&str] = &[
    "GET holds 200 captured",
    "GET holds 200 expired",
    "GET holds 200 held",
    "GET holds 200 rejected debit",
    "GET holds 200 released",
    "GET holds 404 hold_not_found",
    "GET transfers 200 posted",
    "GET transfers 200 rejected",
    "GET transfers 200 rejected credit",
    "GET transfers 200 rejected debit",
    "GET transfers 200 reversed",
    "GET transfers 404 transfer_not_found",
    "PATCH accounts 200 closed",
    "PATCH accounts 200 frozen",
    "PATCH accounts 200 open",
    "PATCH accounts 404 account_not_found",
    "PATCH accounts 409 account_not_empty",
    "PATCH accounts 422 insufficient_funds",
    "POST accounts 200 open replayed",
    "POST accounts 409 account_exists asset",
    "POST accounts 409 account_exists overdraft",
    "POST accounts:batch item created replayed",
    "POST accounts:batch item failed account_exists asset",
    "POST accounts:batch item failed account_exists max_balance",
    "POST accounts:batch item failed account_exists overdraft",
    "POST holds 200 held replayed",
    "POST holds 201 held",
    "POST holds 400 same_account",
    "POST holds 422 account_not_found debit",
    "POST holds 422 asset_mismatch debit",
    "POST holds 422 idempotency_mismatch amount",
    "POST holds 422 insufficient_funds debit",
    "POST holds 422 insufficient_funds debit replayed",
    "POST holds dry_run 200 would_post",
    "POST holds dry_run 422 insufficient_funds debit",
    "POST holds/capture 201 posted",
    "POST holds/capture 404 hold_not_found",
    "POST holds/capture 409 hold_captured",
    "POST holds/capture 409 hold_released",
    "POST holds/capture 422 account_not_found credit",
    "POST holds/capture 422 asset_mismatch credit",
    "POST holds/capture 422 exceeds_hold",
    "POST holds/capture 422 idempotency_mismatch amount",
    "POST holds/capture 422 limit_exceeded credit",
    "POST holds/release 200 released",
    "POST holds/release 200 released replayed",
    "POST holds/release 404 hold_not_found",
    "POST holds/release 409 hold_captured",
    "POST transfers 200 posted replayed",
    "POST transfers 201 posted",
    "POST transfers 400 same_account",
    "POST transfers 422 account_not_found credit",
    "POST transfers 422 account_not_found debit",
    "POST transfers 422 asset_mismatch credit",
    "POST transfers 422 asset_mismatch debit",
    "POST transfers 422 idempotency_mismatch amount",
    "POST transfers 422 idempotency_mismatch credit",
    "POST transfers 422 insufficient_funds debit",
    "POST transfers 422 limit_exceeded credit",
    "POST transfers dry_run 200 would_post",
    "POST transfers dry_run 422 insufficient_funds debit",
    "POST transfers/reverse 200 posted replayed",
    "POST transfers/reverse 201 posted",
    "POST transfers/reverse 404 transfer_not_found",
    "POST transfers/reverse 409 ambiguous_id",
    "POST transfers/reverse 422 already_reversed",
    "POST transfers/reverse 422 idempotency_mismatch amount",
    "POST transfers/reverse 422 insufficient_funds debit",
    "POST transfers:batch 400 same_account",
    "POST transfers:batch item failed account_not_found debit",
    "POST transfers:batch item failed batch_failed",
    "POST transfers:batch item failed idempotency_mismatch amount",
    "POST transfers:batch item posted",
    "POST transfers:batch item posted replayed",
    "POST transfers:batch item rejected account_not_found credit",
    "POST transfers:batch item rejected insufficient_funds debit",
    "POST transfers:batch item rejected limit_exceeded credit",
    EXPIRED_IN_TIME,
    OPENED_SO,
];
/// Answers that only several shards can give.
const ANSWERS_OF_SHARDS: &[&str] = &["POST transfers:batch 422 atomic_cross_shard"];
/// Answers that are rare. Those that are rarer still, such as a capture that overflows, are in the tables of the contract.
const RARE_ANSWERS: &[&str] = &[
    "POST accounts 201 open",
    "POST accounts 409 account_exists max_balance",
    "POST accounts 409 account_exists metadata",
    "POST holds 422 account_closed debit",
    "POST holds 422 account_frozen debit",
    "POST holds 422 balance_overflow debit",
    "POST holds 422 idempotency_mismatch asset",
    "POST holds 422 idempotency_mismatch credit",
    "POST holds 422 idempotency_mismatch expires_in_s",
    "POST holds 422 idempotency_mismatch metadata",
    "POST holds/capture 200 posted replayed",
    "POST holds/capture 409 ambiguous_id",
    "POST holds/capture 409 hold_captured replayed",
    "POST holds/capture 409 hold_expired",
    "POST holds/capture 422 account_frozen debit",
    "POST holds/capture 422 exceeds_hold replayed",
    "POST holds/capture 422 idempotency_mismatch hold",
    "POST transfers 422 account_closed debit",
    "POST transfers 422 account_frozen debit",
    "POST transfers 422 balance_overflow credit",
    "POST transfers 422 balance_overflow debit",
    "POST transfers 422 idempotency_mismatch asset",
    "POST transfers 422 idempotency_mismatch metadata",
    "POST transfers 422 insufficient_funds debit replayed",
    "POST transfers dry_run 422 account_not_found credit",
    "POST transfers dry_run 422 account_not_found debit",
    "POST transfers/reverse 422 account_frozen debit",
    "POST transfers/reverse 422 already_reversed replayed",
    "POST transfers/reverse 422 asset_mismatch debit",
    "POST transfers/reverse 422 idempotency_mismatch reverses",
    "POST transfers:batch item failed account_not_found credit",
    "POST transfers:batch item failed insufficient_funds debit",
    "POST transfers:batch item rejected account_frozen debit",
];

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
        None => 0..number("SEQUENCES").unwrap_or(SEQUENCES).div_ceil(2),
    };

    let cluster = Cluster::start(shards, 2).await?;
    let shared = SharedState {
        client: cluster.client().with_timeout(TIMEOUT),
        placement: cluster.placement()?,
        shards: shards.into(),
        tally: Tally::default(),
        played: AtomicUsize::new(0),
    };
    let begun = std::time::Instant::now();
    let played = numbers.len();
    let mut outcomes = stream::iter(numbers)
        .map(async |number| (number, play_until_decided(&shared, &source, number).await))
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
        let shortest = shortest(&shared, &source, number).await?.unwrap_or(how);
        anyhow::bail!("sequence {number} differs (ONLY={number} repeats it), in short:\n{shortest}");
    }
    eprintln!(
        "{name}: {played} sequences in {:.1?}, {} undecided\n{}",
        begun.elapsed(),
        undecided.len(),
        shared.tally
    );
    ensure!(undecided.len() * 100 <= played, "{} sequences are undecided, such as {}", undecided.len(), undecided[0]);
    let (in_time, late) = (shared.tally.of(EXPIRED_IN_TIME), shared.tally.of(EXPIRED_LATE));
    ensure!(late <= in_time / 5 + 1, "{late} holds expired late, {in_time} in time");
    let mut wanted = Vec::new();
    if played >= ENOUGH {
        wanted.extend(ANSWERS);
        wanted.extend(ANSWERS_OF_SHARDS.iter().filter(|_| shards > 1));
    }
    if played >= 5 * ENOUGH {
        wanted.extend(RARE_ANSWERS);
    }
    let unseen = shared.tally.unseen(&wanted);
    ensure!(unseen.is_empty(), "never answered: {unseen:#?}");
    cluster.verify_and_finish().await
}

/// Plays a sequence until it is decided, each time with other account names, so that earlier attempts have no effect.
async fn play_until_decided(shared: &SharedState, source: &Source, number: usize) -> anyhow::Result<Outcome> {
    let sequence = source.sequence(number);
    let mut outcome = play(shared, &sequence).await?;
    for _ in 1..TRIES {
        if !matches!(outcome, Outcome::Undecided(_)) {
            break;
        }
        outcome = play(shared, &sequence).await?;
    }
    Ok(outcome)
}

/// The time for which a shorter sequence is searched.
const PATIENCE: Duration = Duration::from_secs(60);

/// All sequences of a run, by number.
#[derive(Debug)]
pub struct Source {
    seed: [u8; 24],
}

impl Source {
    pub fn new(seed: &Seed) -> Self {
        let mut random = seed.random();
        let mut bytes = [0; 24];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.bits().to_le_bytes()));
        Self { seed: bytes }
    }

    pub fn sequence(&self, number: usize) -> Sequence {
        self.tree(number).current()
    }

    fn tree(&self, number: usize) -> impl ValueTree<Value = Sequence> + use<> {
        let mut bytes = [0; 32];
        bytes[..24].copy_from_slice(&self.seed);
        bytes[24..].copy_from_slice(&(number as u64).to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), random);
        sequences().new_tree(&mut runner).expect("the strategies filter nothing, so nothing is refused")
    }
}

/// Shortens a sequence while it differs, and returns the difference of the shortest one.
pub async fn shortest(shared: &SharedState, source: &Source, number: usize) -> anyhow::Result<Option<String>> {
    let mut tree = source.tree(number);
    let mut shortest = None;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let more = match play(shared, &tree.current()).await? {
            Outcome::Differs(how) => {
                shortest = Some(how);
                tree.simplify()
            }
            Outcome::Agreed | Outcome::Undecided(_) => tree.complicate(),
        };
        if !more {
            break;
        }
    }
    Ok(shortest)
}
