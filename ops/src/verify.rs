//! `shardctl verify` checks whether the books of a live cluster balance. It reads the shards' databases, calls no
//! service and changes nothing.
//!
//! [`identities`] identifies the databases first. Each shard is then read in snapshots, so writes continue
//! undisturbed. [`passes`] checks what one shard must satisfy by itself, one statement for each pass. [`sagas`],
//! [`transit`], [`ownership`] and [`known`] check what holds between shards, as pure comparisons. [`invariant`] lists
//! the invariants.

mod identities;
mod invariant;
mod known;
mod ownership;
mod passes;
mod report;
mod saga_rows;
mod sagas;
mod snapshot;
mod transit;

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

pub use report::{Report, ShardSize};

use crate::progress;
use indicatif::ProgressBar;
use passes::PASSES;
use report::{BETWEEN_SHARDS, Findings};
use sagas::Comparison;
use snapshot::Snapshot;

/// A shard and the URL of its database.
#[derive(Debug, Clone)]
pub struct Target {
    pub shard: String,
    pub dsn: String,
}

/// How often slot ownership is read before a slot without exactly one owner is a violation. A move takes two commits
/// on two shards, and snapshots of the two shards may straddle them.
const OWNERSHIP_READS: usize = 4;
const OWNERSHIP_PAUSE: Duration = Duration::from_millis(300);
/// Steps of the progress bar other than passes: sizes, and slots of accounts.
const OTHER_STEPS: usize = 2;

/// The compared snapshots, in the order in which they are taken.
#[derive(Default)]
struct Snapshots {
    registers_before: Vec<Snapshot>,
    books: Vec<Snapshot>,
    registers_after: Vec<Snapshot>,
}

/// Checks the shards. `targets` must name every shard of the cluster; a shard that a database knows and `targets`
/// lacks is a violation.
pub async fn verify(targets: &[Target]) -> anyhow::Result<Report> {
    let started = Instant::now();
    let numbers = identities::check(targets).await?;
    let mut snapshots = Snapshots::default();
    let checked = check(targets, &numbers, &mut snapshots, started).await;
    let Snapshots { registers_before, books, registers_after } = &mut snapshots;
    for left in [registers_before, books, registers_after] {
        Snapshot::close_all(left).await;
    }
    checked
}

async fn check(
    targets: &[Target],
    numbers: &[u16],
    snapshots: &mut Snapshots,
    started: Instant,
) -> anyhow::Result<Report> {
    let shards: Vec<String> = targets.iter().map(|target| target.shard.clone()).collect();
    let Snapshots { registers_before, books, registers_after } = snapshots;

    // The order of the snapshots makes the comparison between shards sound: see `sagas`.
    *registers_before = Snapshot::take_all(targets).await?;
    *books = Snapshot::take_all(targets).await?;
    *registers_after = Snapshot::take_all(targets).await?;

    let mut findings: Vec<(String, Findings)> = Vec::new();
    let mut comparison = Comparison::new(shards.clone());
    let mut in_transit = transit::Sums::new();
    let mut all_known = Vec::with_capacity(targets.len());
    for (index, snapshot) in registers_before.iter_mut().enumerate() {
        saga_rows::load_early_verdicts(&mut comparison, index, &mut snapshot.connection)
            .await
            .map_err(broken(snapshot))?;
    }
    for (index, snapshot) in books.iter_mut().enumerate() {
        saga_rows::load_reserves(&mut comparison, index, &mut snapshot.connection).await.map_err(broken(snapshot))?;
        transit::add(&mut in_transit, &mut snapshot.connection).await.map_err(broken(snapshot))?;
        all_known.push(known::load(&mut snapshot.connection).await.map_err(broken(snapshot))?);
    }
    let wanted = comparison.unresolved();
    for (index, snapshot) in registers_after.iter_mut().enumerate() {
        saga_rows::load_late_verdicts(&mut comparison, &wanted, index, &mut snapshot.connection)
            .await
            .map_err(broken(snapshot))?;
    }
    let quiet = wanted.is_empty() && no_saga_moved(registers_before, registers_after).await?;
    // An open snapshot holds back vacuum, so each is closed as soon as it has been read.
    Snapshot::close_all(registers_before).await;
    Snapshot::close_all(registers_after).await;
    let (counts, between_shards) = comparison.finish();
    findings.push((BETWEEN_SHARDS.to_owned(), between_shards));
    if quiet && counts.under_way() == 0 {
        findings.push((BETWEEN_SHARDS.to_owned(), transit::check_quiet(&in_transit)));
    }
    findings.push((BETWEEN_SHARDS.to_owned(), known::compare(&shards, numbers, &all_known)));
    findings.push((BETWEEN_SHARDS.to_owned(), check_ownership(targets, &shards).await?));

    let stack = progress::Stack::new();
    let bars: Vec<ProgressBar> = shards.iter().map(|shard| stack.steps(shard, PASSES.len() + OTHER_STEPS)).collect();
    let checked = try_join_all(books.iter_mut().zip(&bars).map(|(snapshot, bar)| check_shard(snapshot, bar))).await?;
    let mut sizes = Vec::with_capacity(shards.len());
    for (size, of_shard) in checked {
        findings.extend(of_shard.into_iter().map(|findings| (size.id.clone(), findings)));
        sizes.push(size);
    }
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Report::new(elapsed_ms, sizes, counts, findings))
}

/// Checks what one shard's snapshot must satisfy by itself.
async fn check_shard(snapshot: &mut Snapshot, bar: &ProgressBar) -> anyhow::Result<(ShardSize, Vec<Findings>)> {
    let mut findings = Vec::with_capacity(PASSES.len() + 1);
    bar.set_message("sizes");
    let size = snapshot.size().await.map_err(broken(snapshot))?;
    for pass in &PASSES {
        bar.inc(1);
        bar.set_message(pass.title);
        let examples = Findings::EXAMPLES as i64;
        findings.push(pass.run(&mut snapshot.connection, examples).await.map_err(broken(snapshot))?);
    }
    bar.inc(1);
    bar.set_message("slots of accounts");
    findings.push(ownership::check_accounts(&mut snapshot.connection).await.map_err(broken(snapshot))?);
    bar.finish_with_message("done");
    Ok((size, findings))
}

/// Verdicts are never deleted: equal counts before and after mean that none was written while the snapshots were
/// opened.
async fn no_saga_moved(before: &mut [Snapshot], after: &mut [Snapshot]) -> anyhow::Result<bool> {
    for (before, after) in before.iter_mut().zip(after) {
        let earlier = before.size().await.map_err(broken(before))?;
        let later = after.size().await.map_err(broken(after))?;
        if earlier.registers != later.registers {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn check_ownership(targets: &[Target], shards: &[String]) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    for attempt in 0..OWNERSHIP_READS {
        if attempt > 0 {
            tokio::time::sleep(OWNERSHIP_PAUSE).await;
        }
        let mut snapshots = Snapshot::take_all(targets).await?;
        let loads = snapshots
            .iter_mut()
            .map(|snapshot| async { ownership::load(&mut snapshot.connection).await.map_err(broken(snapshot)) });
        let owned = try_join_all(loads).await;
        Snapshot::close_all(&mut snapshots).await;
        let owned = owned?;
        findings = ownership::compare(shards, &owned);
        if findings == Findings::default() {
            break;
        }
    }
    Ok(findings)
}

fn broken(snapshot: &Snapshot) -> impl FnOnce(sqlx::Error) -> anyhow::Error + use<> {
    let shard = snapshot.shard.clone();
    move |error| snapshot::broken(&shard, error)
}
