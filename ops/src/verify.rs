//! `shardctl verify` checks whether the books of a live cluster balance. It reads the shards' databases. It calls no service and changes
//! nothing.
//!
//! [`databases`] identifies the databases first. Each shard's journal is then folded in memory with the functions that the lane uses, and
//! every projection is compared with the fold ([`shard_database::books`]). The journal is immutable, so it is read up to fixed positions in
//! bounded statements. Writes therefore continue undisturbed, and no snapshot stays open. [`sagas`] and [`between_shards`] check what holds
//! between shards, as pure comparisons. [`report`] lists the invariants.

mod between_shards;
pub mod databases;
mod report;
mod saga_bookings;
mod sagas;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use between_shards::{AccountSlots, KnownShards};
use databases::{broken, on_each};
use futures_util::future::try_join_all;
use indicatif::ProgressBar;
use ledger::{Booking, Position};
use report::{BETWEEN_SHARDS, Invariant, Violations};
use saga_bookings::{Cuts, SagaBookings};
use sagas::Comparison;
use shard_database::{
    OwnedSlots,
    books::{Books, Counts, Difference},
    rebuild::{self, Ranges},
};
use sqlx::PgConnection;

use crate::{
    cluster::{Description, Layout},
    context::Context,
    exit, output,
};

pub use report::{ShardSize, VerifyReport};

/// A shard and the URL of its database.
#[derive(Debug, Clone)]
pub struct Target {
    pub shard: String,
    pub dsn: String,
}

/// How many times slot ownership is read before a slot without exactly one owner is a violation. A move makes one commit on each of two
/// shards, and the reads may be from different sides of these commits.
const OWNERSHIP_READS: usize = 4;
const OWNERSHIP_PAUSE: Duration = Duration::from_millis(300);
/// How many times the shards are read, if slots move meanwhile.
const ATTEMPTS: usize = 5;
/// The number of steps of the progress bar: rows of accounts, small tables, journal, the end.
const STEPS: usize = 4;
/// The interval, in bookings, at which the progress bar shows their number.
const SHOWN_EVERY: u64 = 10_000;

/// Checks the shards. `targets` must name every shard of the cluster; a shard that a database knows and `targets`
/// lacks is a violation.
pub async fn verify(targets: &[Target]) -> anyhow::Result<VerifyReport> {
    let started = Instant::now();
    let numbers = databases::check_identities(targets).await?;
    let mut connections = databases::connect_all(targets).await?;
    let checked = check_repeatedly(targets, &numbers, &mut connections, started).await;
    databases::close_all(connections).await;
    checked
}

async fn check_repeatedly(
    targets: &[Target],
    numbers: &[u16],
    connections: &mut [PgConnection],
    started: Instant,
) -> anyhow::Result<VerifyReport> {
    for _ in 0..ATTEMPTS {
        let before = on_each(targets, connections, OwnedSlots::load).await?;
        let report = check(targets, numbers, connections, &before, started).await?;
        let after = on_each(targets, connections, OwnedSlots::load).await?;
        if before == after {
            return Ok(report);
        }
    }
    anyhow::bail!(
        "slots moved each of the {ATTEMPTS} times that the shards were read: run it again when no move cuts over"
    )
}

/// One shard while it is checked.
struct Shard {
    books: Books,
    known: KnownShards,
    findings: Violations,
    bar: ProgressBar,
}

async fn check(
    targets: &[Target],
    numbers: &[u16],
    connections: &mut [PgConnection],
    owned: &[OwnedSlots],
    started: Instant,
) -> anyhow::Result<VerifyReport> {
    let ids: Vec<String> = targets.iter().map(|target| target.shard.clone()).collect();
    let stack = output::Bars::new();
    let each = targets.iter().zip(numbers).zip(&mut *connections).zip(owned).map(
        async |(((target, number), connection), owned)| {
            let bar = stack.steps(&target.shard, STEPS);
            read_rows(connection, *number, owned, bar).await.map_err(|error| broken(&target.shard, error))
        },
    );
    let mut shards: Vec<Shard> = try_join_all(each).await?;

    // This order makes the comparison between shards sound (see `sagas`). A row also cannot be ahead of a position that is fixed after the
    // row was read.
    let early = on_each(targets, connections, rebuild::highest_position).await?;
    let end = on_each(targets, connections, rebuild::highest_position).await?;
    let late = on_each(targets, connections, rebuild::highest_position).await?;
    let cuts = early.into_iter().zip(end).zip(late).map(|((early, end), late)| Cuts { early, end, late });
    let each = targets.iter().zip(numbers).zip(&mut *connections).zip(&mut shards).zip(cuts).zip(owned).map(
        async |(((((target, number), connection), shard), cuts), owned)| {
            let sagas = SagaBookings::new(*number, owned.clone(), cuts);
            let read = read_journal(connection, shard, sagas, *number, cuts).await;
            read.map_err(|error| broken(&target.shard, error))
        },
    );
    let mut sagas: Vec<(SagaBookings, Position)> = try_join_all(each).await?;

    let mut findings: Vec<(String, Violations)> = Vec::new();
    let mut between = |of_all: Violations| findings.push((BETWEEN_SHARDS.to_owned(), of_all));
    let mut in_transit = between_shards::InTransit::new();
    sagas.iter().for_each(|(sagas, _)| sagas.add_in_transit(&mut in_transit));
    let no_saga_moved = sagas.iter().all(|(sagas, _)| sagas.is_quiet());
    let mut comparison = Comparison::new(ids.clone());
    for (index, (sagas, _)) in sagas.iter_mut().enumerate() {
        sagas.add_early_verdicts(&mut comparison, index);
    }
    for (index, (sagas, _)) in sagas.iter_mut().enumerate() {
        sagas.add_reserves(&mut comparison, index);
    }
    let quiet = no_saga_moved && comparison.is_resolved();
    for (index, (sagas, _)) in sagas.iter_mut().enumerate() {
        sagas.add_late_verdicts(&mut comparison, index);
    }
    let (counts, between_shards) = comparison.finish();
    between(between_shards);
    let ownership = check_ownership(targets, connections, &ids).await?;
    // Between the two commits of a cut-over, no shard owns the slots, and their balances are in transit.
    if quiet && counts.under_way() == 0 && ownership == Violations::default() {
        between(between_shards::check_quiet(&in_transit));
    }
    let all_known: Vec<KnownShards> = shards.iter_mut().map(|shard| std::mem::take(&mut shard.known)).collect();
    between(between_shards::compare_known(&ids, numbers, &all_known));
    between(ownership);

    let ends = sagas.iter().map(|(_, end)| *end);
    let each = targets.iter().zip(&mut *connections).zip(shards).zip(ends).map(
        async |(((target, connection), shard), end)| {
            let finished = finish(connection, shard, end).await;
            finished.map_err(|error| broken(&target.shard, error))
        },
    );
    let mut sizes = Vec::with_capacity(ids.len());
    for (id, (counts, of_shard)) in ids.iter().zip(try_join_all(each).await?) {
        findings.push((id.clone(), of_shard));
        sizes.push(size(id, counts));
    }
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(VerifyReport::new(elapsed_ms, sizes, counts, findings))
}

/// Reads the rows of every projection, and what the shard knows about other shards.
async fn read_rows(
    connection: &mut PgConnection,
    number: u16,
    owned: &OwnedSlots,
    bar: ProgressBar,
) -> sqlx::Result<Shard> {
    let (mut books, mut findings, mut slots) = (Books::new(number), Violations::default(), AccountSlots::default());
    books.expect_owned(owned.clone());
    bar.set_message("rows of accounts");
    rebuild::expect_accounts(connection, &mut books, |account, slot| slots.take(account, slot, &mut findings))
        .await?;
    slots.compare(&between_shards::read_known_slots(connection).await?, &mut findings);
    bar.inc(1);
    bar.set_message("holds, sagas, waypoints");
    rebuild::expect_small_tables(connection, &mut books).await?;
    let known = between_shards::read_known(connection).await?;
    bar.inc(1);
    bar.set_message("journal");
    Ok(Shard { books, known, findings, bar })
}

/// Folds the journal up to its end, and reads the registers beyond the end. Also returns the end.
async fn read_journal(
    connection: &mut PgConnection,
    shard: &mut Shard,
    mut sagas: SagaBookings,
    number: u16,
    cuts: Cuts,
) -> sqlx::Result<(SagaBookings, Position)> {
    let Shard { books, findings, bar, .. } = shard;
    let ranges = Ranges::load(connection, number, cuts.late).await?;
    if ranges.is_merged() {
        books.expect_merged();
    }
    let mut report = |difference| add(findings, difference);
    let mut count = 0_u64;
    rebuild::read_journal(connection, ranges, |booking: &Booking, slots| {
        sagas.take(booking);
        if booking.position <= cuts.end || booking.position.shard_number() != number {
            rebuild::check_slots(booking, slots, &mut report);
            books.apply(booking, &mut report);
        }
        count += 1;
        if count.is_multiple_of(SHOWN_EVERY) {
            bar.set_message(format!("journal: {count} bookings"));
        }
    })
    .await?;
    bar.inc(1);
    Ok((sagas, cuts.end))
}

async fn finish(connection: &mut PgConnection, shard: Shard, end: Position) -> sqlx::Result<(Counts, Violations)> {
    let Shard { books, mut findings, bar, .. } = shard;
    bar.set_message("what is left");
    let counts = rebuild::finish(connection, books, end, &mut |difference| add(&mut findings, difference)).await?;
    bar.inc(1);
    bar.finish_with_message("done");
    Ok((counts, findings))
}

fn add(findings: &mut Violations, Difference { rule, subject, detail }: Difference) {
    findings.add(Invariant::broken_by(rule), subject, detail);
}

fn size(id: &str, counts: Counts) -> ShardSize {
    let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
    let Counts { accounts, entries, transfers, registers, .. } = counts;
    ShardSize {
        id: id.to_owned(),
        accounts: number(accounts),
        entries: number(entries),
        transfers: number(transfers),
        registers: number(registers),
    }
}

async fn check_ownership(
    targets: &[Target],
    connections: &mut [PgConnection],
    shards: &[String],
) -> anyhow::Result<Violations> {
    let mut findings = Violations::default();
    for attempt in 0..OWNERSHIP_READS {
        if attempt > 0 {
            tokio::time::sleep(OWNERSHIP_PAUSE).await;
        }
        let owned = on_each(targets, connections, between_shards::read_ownership).await?;
        findings = between_shards::compare_ownership(shards, &owned);
        if findings == Violations::default() {
            break;
        }
    }
    Ok(findings)
}

const HELP: &str = "\
The databases must be those of all shards of one cluster. A shard that one of them knows and that is not given is a violation. \
PGHOST, PGSSLMODE and similar variables are ignored. PGOPTIONS, PGSSLROOTCERT, PGSSLCERT and PGSSLKEY are refused,
as is PGPASSWORD if the URL has no password.

Exit codes: 0 clean, 3 a violation was found, 4 a database does not answer";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct VerifyArgs {
    /// Database of a shard, instead of the databases of the cluster in --data-dir; give every shard of the cluster
    #[arg(long = "dsn", value_name = "SHARD=URL", value_parser = parse_target)]
    targets: Vec<Target>,
}

pub async fn run(args: VerifyArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let targets = if args.targets.is_empty() { cluster_targets(context)? } else { args.targets };
    let report = verify(&targets).await?;
    if context.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { exit::violation() })
}

/// The databases of the cluster in the data folder.
pub fn cluster_targets(context: &Context) -> anyhow::Result<Vec<Target>> {
    let layout = Layout::find(&context.data_dir)?;
    let description = Description::load(&layout)?
        .with_context(|| format!("there is no cluster in {}", context.data_dir.display()))?;
    let targets = description.shards.iter().map(|shard| {
        let dsn = shard.dsn(&layout)?;
        Ok(Target { shard: shard.id.clone(), dsn })
    });
    targets.collect()
}

/// Prints the result: a line for each invariant, then the violations.
pub fn print(report: &VerifyReport) -> anyhow::Result<()> {
    let rows: Vec<[String; 3]> = report
        .invariants
        .iter()
        .map(|invariant| {
            let verdict = if invariant.violations == 0 {
                "ok".to_owned()
            } else {
                format!("{} VIOLATIONS", invariant.violations)
            };
            [invariant.id.to_string(), verdict, invariant.claim.to_owned()]
        })
        .collect();
    output::table(["invariant", "verdict", "claim"], &rows)?;
    let violations: Vec<[String; 4]> = report
        .invariants
        .iter()
        .flat_map(|invariant| invariant.examples.iter().map(|example| (invariant.id, example)))
        .map(|(id, example)| {
            let violation = &example.violation;
            [id.to_string(), example.shard.clone(), violation.subject.clone(), violation.detail.clone()]
        })
        .collect();
    if !violations.is_empty() {
        output::data("")?;
        output::table(["invariant", "shard", "id", "what is wrong"], &violations)?;
    }
    output::data(&format!("\n{}", summary(report)))
}

fn summary(report: &VerifyReport) -> String {
    let total = |of: fn(&ShardSize) -> i64| report.shards.iter().map(of).sum::<i64>();
    format!(
        "{}: {} accounts, {} entries, {} transfers on {} shards; {} sagas finished, {} under way; {} ms",
        if report.is_clean() { "clean" } else { "VIOLATED" },
        total(|shard| shard.accounts),
        total(|shard| shard.entries),
        total(|shard| shard.transfers),
        report.shards.len(),
        report.sagas.finished,
        report.sagas.under_way(),
        report.elapsed_ms,
    )
}

/// Parses `SHARD=URL`.
pub fn parse_target(text: &str) -> anyhow::Result<Target> {
    let (shard, dsn) = text.split_once('=').context("expected SHARD=URL")?;
    ensure!(!shard.is_empty() && dsn.contains("://"), "expected SHARD=URL, such as s0=postgres://…");
    Ok(Target { shard: shard.to_owned(), dsn: dsn.to_owned() })
}
