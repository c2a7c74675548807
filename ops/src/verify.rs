//! `shardctl verify` checks whether the books of a live cluster balance. It reads the shards' databases, calls no
//! service and changes nothing.
//!
//! [`identities`] identifies the databases first. Each shard's journal is then folded in memory with the functions that the
//! lane uses, and every projection is compared with the fold ([`shard_database::books`]). The journal is immutable, so it
//! is read up to fixed positions in bounded statements: writes continue undisturbed, and no snapshot stays open. [`sagas`],
//! [`transit`], [`ownership`] and [`known`] check what holds between shards, as pure comparisons. [`invariant`] lists
//! the invariants.

pub mod connection;
pub mod identities;
mod invariant;
mod known;
mod ownership;
mod report;
mod saga_bookings;
mod sagas;
mod transit;

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use indicatif::ProgressBar;
use ledger::{Booking, Position};
use shard_database::{
    OwnedSlots,
    books::{Books, Counts, Difference},
    rebuild::{self, Ranges},
};
use sqlx::PgConnection;

pub use report::{Report, ShardSize};

use crate::progress;
use connection::{broken, on_each};
use invariant::Invariant;
use known::Known;
use ownership::AccountSlots;
use report::{BETWEEN_SHARDS, Findings};
use saga_bookings::{Cuts, SagaBookings};
use sagas::Comparison;

/// A shard and the URL of its database.
#[derive(Debug, Clone)]
pub struct Target {
    pub shard: String,
    pub dsn: String,
}

/// How often slot ownership is read before a slot without exactly one owner is a violation. A move takes two commits
/// on two shards, and reads of the two shards may straddle them.
const OWNERSHIP_READS: usize = 4;
const OWNERSHIP_PAUSE: Duration = Duration::from_millis(300);
/// How often the shards are read again because slots moved meanwhile.
const ATTEMPTS: usize = 5;
/// Steps of the progress bar: rows of accounts, small tables, journal, the end.
const STEPS: usize = 4;
/// Bookings after which the progress bar shows their number.
const SHOWN_EVERY: u64 = 10_000;

/// Checks the shards. `targets` must name every shard of the cluster; a shard that a database knows and `targets`
/// lacks is a violation.
pub async fn verify(targets: &[Target]) -> anyhow::Result<Report> {
    let started = Instant::now();
    let numbers = identities::check(targets).await?;
    let mut connections = connection::connect_all(targets).await?;
    let checked = check_repeatedly(targets, &numbers, &mut connections, started).await;
    connection::close_all(connections).await;
    checked
}

async fn check_repeatedly(
    targets: &[Target],
    numbers: &[u16],
    connections: &mut [PgConnection],
    started: Instant,
) -> anyhow::Result<Report> {
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
    known: Known,
    findings: Findings,
    bar: ProgressBar,
}

async fn check(
    targets: &[Target],
    numbers: &[u16],
    connections: &mut [PgConnection],
    owned: &[OwnedSlots],
    started: Instant,
) -> anyhow::Result<Report> {
    let ids: Vec<String> = targets.iter().map(|target| target.shard.clone()).collect();
    let stack = progress::Stack::new();
    let each = targets.iter().zip(numbers).zip(&mut *connections).zip(owned).map(
        async |(((target, number), connection), owned)| {
            let bar = stack.steps(&target.shard, STEPS);
            read_rows(connection, *number, owned, bar).await.map_err(|error| broken(&target.shard, error))
        },
    );
    let mut shards: Vec<Shard> = try_join_all(each).await?;

    // The order makes the comparison between shards sound: see `sagas`. And no row can be ahead of a position that is
    // fixed after the row was read.
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

    let mut findings: Vec<(String, Findings)> = Vec::new();
    let mut between = |of_all: Findings| findings.push((BETWEEN_SHARDS.to_owned(), of_all));
    let mut in_transit = transit::Sums::new();
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
    // Between the two commits of a cut-over, no shard owns the slots, and what they hold is in transit.
    if quiet && counts.under_way() == 0 && ownership == Findings::default() {
        between(transit::check_quiet(&in_transit));
    }
    let all_known: Vec<Known> = shards.iter_mut().map(|shard| std::mem::take(&mut shard.known)).collect();
    between(known::compare(&ids, numbers, &all_known));
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
    Ok(Report::new(elapsed_ms, sizes, counts, findings))
}

/// Reads the rows of every projection, and what the shard knows of others.
async fn read_rows(
    connection: &mut PgConnection,
    number: u16,
    owned: &OwnedSlots,
    bar: ProgressBar,
) -> sqlx::Result<Shard> {
    let (mut books, mut findings, mut slots) = (Books::new(number), Findings::default(), AccountSlots::default());
    books.expect_owned(owned.clone());
    bar.set_message("rows of accounts");
    rebuild::expect_accounts(connection, &mut books, |account, slot| slots.take(account, slot, &mut findings))
        .await?;
    slots.compare(&ownership::load_known(connection).await?, &mut findings);
    bar.inc(1);
    bar.set_message("holds, sagas, waypoints");
    rebuild::expect_small_tables(connection, &mut books).await?;
    let known = known::load(connection).await?;
    bar.inc(1);
    bar.set_message("journal");
    Ok(Shard { books, known, findings, bar })
}

/// Folds the journal up to the end, and reads the registers beyond it. Returns the end as well.
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

async fn finish(connection: &mut PgConnection, shard: Shard, end: Position) -> sqlx::Result<(Counts, Findings)> {
    let Shard { books, mut findings, bar, .. } = shard;
    bar.set_message("what is left");
    let counts = rebuild::finish(connection, books, end, &mut |difference| add(&mut findings, difference)).await?;
    bar.inc(1);
    bar.finish_with_message("done");
    Ok((counts, findings))
}

fn add(findings: &mut Findings, Difference { rule, subject, detail }: Difference) {
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
) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    for attempt in 0..OWNERSHIP_READS {
        if attempt > 0 {
            tokio::time::sleep(OWNERSHIP_PAUSE).await;
        }
        let owned = on_each(targets, connections, ownership::load).await?;
        findings = ownership::compare(shards, &owned);
        if findings == Findings::default() {
            break;
        }
    }
    Ok(findings)
}
