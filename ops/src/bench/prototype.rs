//! `shardctl bench prototype` measures what each choice of the append path costs, apart from the product, so that an ADR can quote it. It
//! uses one connection to a database of its own. Processor time is the time of the server process of this connection.

mod row_array;

use std::path::Path;

use anyhow::Context;
use pg_session::{ConnectOptions, CopyBuffer, Session};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Experiment,
    baseline::connect,
    ceiling::{self, ACCOUNTS, Bookings, Columns, Fence, ROWS_PER_COMMIT, commit_script, committed, relation_bytes},
    own_cluster::OwnCluster,
    request::{Ids, account_id},
};
use crate::output;

/// Compares, through one connection to a database of its own: one row a transfer with a transfer and two entries, with CHECKs
/// and without; the used columns with all columns; COPY with an array of rows; ids in time order with random ids; a lock and
/// a check with an UPDATE as fence, alone and beside an open snapshot; and the UPDATE of accounts in sorted chunks. Processor
/// time is that of the connection's server process.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct PrototypePlan {
    /// Commits of 4,096 rows of each variant
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u32).range(3..))]
    commits: u32,
    /// Commits of 8 rows of each variant of the fence
    #[arg(long, value_name = "N", default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(3..))]
    small_commits: u32,
    #[arg(skip)]
    seed: u64,
}

const TABLES: &str = include_str!("../../sql/prototype.sql");
const SMALL_ROWS: usize = 8;

#[derive(Debug, Serialize)]
pub struct PrototypeReport {
    pub plan: PrototypePlan,
    pub cores: usize,
    pub rows: Vec<PrototypeRow>,
}

/// One variant of one choice. The costs of `fold` are for each account, all other costs for each transfer.
#[derive(Debug, Clone, Serialize)]
pub struct PrototypeRow {
    pub choice: &'static str,
    pub variant: String,
    pub rows_per_commit: usize,
    pub per_s: f64,
    pub backend_us: f64,
    pub backend_us_per_commit: f64,
    /// `backend_us_per_commit` of each third of the commits, in their order.
    pub backend_us_per_commit_in_thirds: [f64; 3],
    pub wal_bytes: f64,
    /// The bytes of tables and indexes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<f64>,
}

/// How the rows of a transfer are laid out.
#[derive(Debug, Clone, Copy)]
enum RowLayout {
    /// One row with both legs, in this table.
    OneRow(&'static str),
    /// A transfer row and two entry rows, in tables with this suffix. Needs two flights, because a script has one COPY.
    ThreeRows(&'static str),
    /// One row with both legs, as an array of rows instead of COPY.
    RowArray,
}

struct Variant {
    choice: &'static str,
    name: &'static str,
    layout: RowLayout,
    columns: Columns,
    fence: Fence,
    ids: Ids,
    /// Whether a commit has 8 rows instead of 4,096.
    small: bool,
    /// Whether another transaction holds a snapshot and does nothing meanwhile.
    beside_snapshot: bool,
}

const BASE: Variant = Variant {
    choice: "rows",
    name: "one row, CHECKs",
    layout: RowLayout::OneRow("journal"),
    columns: Columns::Used,
    fence: Fence::Lock,
    ids: Ids::TimeOrdered,
    small: false,
    beside_snapshot: false,
};

const VARIANTS: [Variant; 14] = [
    BASE,
    Variant { name: "one row, no CHECK", layout: RowLayout::OneRow("journal_unchecked"), ..BASE },
    Variant { name: "transfer and two entries, CHECKs", layout: RowLayout::ThreeRows(""), ..BASE },
    Variant { name: "transfer and two entries, no CHECK", layout: RowLayout::ThreeRows("_unchecked"), ..BASE },
    Variant { choice: "columns", name: "COPY lists the 19 used columns", ..BASE },
    Variant { choice: "columns", name: "COPY lists all 35 columns", columns: Columns::All, ..BASE },
    Variant { choice: "transport", name: "COPY, one flight", ..BASE },
    Variant {
        choice: "transport",
        name: "INSERT of a row array",
        layout: RowLayout::RowArray,
        fence: Fence::None,
        ..BASE
    },
    Variant { choice: "ids", name: "in time order", ..BASE },
    Variant { choice: "ids", name: "random", ids: Ids::Random, ..BASE },
    Variant { choice: "fence", name: "lock and check", small: true, ..BASE },
    Variant { choice: "fence", name: "UPDATE of a row", fence: Fence::Update, small: true, ..BASE },
    Variant { choice: "fence", name: "lock and check, open snapshot", small: true, beside_snapshot: true, ..BASE },
    Variant {
        choice: "fence",
        name: "UPDATE of a row, open snapshot",
        fence: Fence::Update,
        small: true,
        beside_snapshot: true,
        ..BASE
    },
];

impl Variant {
    async fn measure(&self, url: &str, plan: &PrototypePlan) -> anyhow::Result<PrototypeRow> {
        let mut session = ceiling::prepare(url).await?;
        session.run(TABLES, None).await.context("creating the tables of the prototype")?;
        let holder = if self.beside_snapshot { Some(hold_snapshot(url).await?) } else { None };
        let (commits, rows_per_commit) = if self.small {
            (plan.small_commits as usize, SMALL_ROWS)
        } else {
            (plan.commits as usize, ROWS_PER_COMMIT)
        };
        let bookings = Bookings::new(plan.seed, self.ids);
        let mut writer = VariantWriter::open(self, session, url, bookings, rows_per_commit).await?;
        let mut meter = Meter::start(writer.backend_pid(), commits);
        let wal_before = wal_bytes(&mut writer.session).await?;
        for commit in 0..commits {
            writer.commit(commit * rows_per_commit).await?;
            meter.commit()?;
        }
        let transfers = (commits * rows_per_commit) as f64;
        let wal = wal_bytes(&mut writer.session).await? - wal_before;
        let disk = writer.disk_bytes().await?;
        if let Some(mut holder) = holder {
            holder.run("COMMIT", None).await?;
            holder.close().await;
        }
        writer.session.run("DROP SCHEMA ceiling CASCADE", None).await?;
        writer.session.close().await;
        Ok(meter.row(self.choice, self.name.to_owned(), rows_per_commit, wal / transfers, Some(disk / transfers)))
    }
}

/// Writes the commits of one variant.
struct VariantWriter<'a> {
    variant: &'a Variant,
    session: Session,
    arrays: Option<row_array::Inserter>,
    bookings: Bookings,
    rows: usize,
    buffer: CopyBuffer,
}

impl<'a> VariantWriter<'a> {
    async fn open(
        variant: &'a Variant,
        session: Session,
        url: &str,
        bookings: Bookings,
        rows: usize,
    ) -> anyhow::Result<Self> {
        let arrays = match variant.layout {
            RowLayout::RowArray => Some(row_array::Inserter::connect(url).await?),
            RowLayout::OneRow(_) | RowLayout::ThreeRows(_) => None,
        };
        Ok(Self { variant, session, arrays, bookings, rows, buffer: CopyBuffer::new() })
    }

    fn backend_pid(&self) -> i32 {
        self.arrays.as_ref().map_or_else(|| self.session.backend_pid(), |arrays| arrays.backend_pid)
    }

    async fn commit(&mut self, written: usize) -> anyhow::Result<()> {
        let Variant { layout, columns, fence, .. } = *self.variant;
        match layout {
            RowLayout::OneRow(table) => {
                // The check reads `journal`, which is empty if the rows go to another table.
                let highest = if table == "journal" { written as i64 } else { 0 };
                let script = commit_script(fence, table, columns, highest, self.rows);
                let rows = self.bookings.encode(&mut self.buffer, self.rows, columns);
                committed(&self.session.run(&script, Some(rows)).await?)
            }
            RowLayout::ThreeRows(suffix) => self.commit_three_rows(suffix).await,
            RowLayout::RowArray => {
                let arrays = self.arrays.as_mut().context("no connection for row arrays")?;
                arrays.insert(&mut self.bookings, self.rows).await
            }
        }
    }

    async fn commit_three_rows(&mut self, suffix: &str) -> anyhow::Result<()> {
        const POSTED: i16 = 2;
        let (mut transfers, mut entries) = (CopyBuffer::new(), CopyBuffer::new());
        transfers.begin();
        entries.begin();
        let at_us = telemetry::clock::now_us();
        for _ in 0..self.rows {
            let booking = self.bookings.next(at_us);
            // Two entries a transfer, each with a position of its own.
            let positions = [2 * booking.position, 2 * booking.position + 1];
            transfers.row(9);
            transfers.uuid(booking.id);
            transfers.text(booking.payer.account);
            transfers.text(booking.payee.account);
            transfers.text("USD");
            transfers.int8(booking.amount);
            transfers.int2(booking.payer.slot);
            transfers.int2(POSTED);
            transfers.int8(positions[0]);
            transfers.int8(at_us);
            let legs =
                [(booking.payer, booking.payee, -booking.amount), (booking.payee, booking.payer, booking.amount)];
            for (position, (leg, other, amount)) in positions.into_iter().zip(legs) {
                entries.row(12);
                entries.int8(position);
                entries.int8(leg.previous);
                entries.text(leg.account);
                entries.int2(leg.slot);
                entries.int8(leg.version);
                entries.int2(POSTED);
                entries.int8(amount);
                entries.int8(leg.posted);
                entries.int8(0);
                entries.uuid(booking.id);
                entries.text(other.account);
                entries.int8(at_us);
            }
        }
        let script = format!(
            "BEGIN; LOCK TABLE ceiling.lane_fence IN SHARE ROW EXCLUSIVE MODE; SELECT ceiling.check_fence(0, 1, 1, 1); \
             COPY ceiling.transfer{suffix} (id, debit, credit, asset, amount, slot, status, debit_position, created_at_us) \
             FROM STDIN (FORMAT binary)"
        );
        self.session.run(&script, Some(transfers.finish())).await?;
        let script = format!(
            "COPY ceiling.entry{suffix} (position, previous, account, slot, version, kind, amount, posted, held, transfer_id, \
             counterparty, created_at_us) FROM STDIN (FORMAT binary); COMMIT"
        );
        committed(&self.session.run(&script, Some(entries.finish())).await?)
    }

    async fn disk_bytes(&mut self) -> anyhow::Result<f64> {
        match self.variant.layout {
            RowLayout::OneRow(table) => relation_bytes(&mut self.session, &format!("ceiling.{table}")).await,
            RowLayout::RowArray => relation_bytes(&mut self.session, "ceiling.journal").await,
            RowLayout::ThreeRows(suffix) => {
                let transfers = relation_bytes(&mut self.session, &format!("ceiling.transfer{suffix}")).await?;
                Ok(transfers + relation_bytes(&mut self.session, &format!("ceiling.entry{suffix}")).await?)
            }
        }
    }
}

impl Experiment for PrototypePlan {
    type Report = PrototypeReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        self.seed = seed;
        output::note(&format!("seed {seed}"));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<PrototypeReport> {
        let cluster = OwnCluster::start(folder.join("prototype"), 1, 1)?;
        let url = cluster.databases()?.into_iter().next().context("a cluster without shards")?.dsn;
        let mut rows = Vec::new();
        output::counted("variants", VARIANTS.len() + 1, async |bar| {
            for variant in &VARIANTS {
                rows.push(
                    variant
                        .measure(&url, &self)
                        .await
                        .with_context(|| format!("{}: {}", variant.choice, variant.name))?,
                );
                bar.inc(1);
            }
            rows.push(measure_fold(&url).await.context("fold")?);
            anyhow::Ok(())
        })
        .await?;
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Ok(PrototypeReport { plan: self, cores, rows })
    }
}

/// A transaction that holds a snapshot, as pg_dump does, until it is ended.
pub async fn hold_snapshot(url: &str) -> anyhow::Result<Session> {
    let options = ConnectOptions::from_url(url).map_err(|error| anyhow::anyhow!("the DSN {error}"))?;
    let mut session = Session::connect(&options.application_name("shardctl bench snapshot")).await?;
    let script = "SET idle_in_transaction_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1";
    session.run(script, None).await?;
    Ok(session)
}

async fn wal_bytes(session: &mut Session) -> anyhow::Result<f64> {
    let completed = session.run("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn", None).await?;
    let bytes = completed.rows.first().and_then(|row| row.first()?.as_deref()).context("no position of the log")?;
    Ok(bytes.parse()?)
}

/// Processor time of one server process over a series of commits.
struct Meter {
    pid: i32,
    begin: Instant,
    begin_us: f64,
    commits: usize,
    done: usize,
    /// The processor time at the end of each third of the commits.
    marks_us: Vec<f64>,
}

impl Meter {
    fn start(pid: i32, commits: usize) -> Self {
        let begin_us = process_time_us(pid).unwrap_or_default();
        Self { pid, begin: Instant::now(), begin_us, commits, done: 0, marks_us: vec![begin_us] }
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        self.done += 1;
        if self.done * 3 >= self.commits * self.marks_us.len() {
            self.marks_us.push(process_time_us(self.pid)?);
        }
        Ok(())
    }

    fn row(
        &self,
        choice: &'static str,
        variant: String,
        rows_per_commit: usize,
        wal_bytes: f64,
        disk_bytes: Option<f64>,
    ) -> PrototypeRow {
        let seconds = self.begin.elapsed().as_secs_f64();
        let rows = (self.done * rows_per_commit) as f64;
        let spent_us = self.marks_us.last().map_or(0.0, |last| last - self.begin_us);
        let mut thirds = [0.0; 3];
        for (third, marks) in thirds.iter_mut().zip(self.marks_us.windows(2)) {
            *third = (marks[1] - marks[0]) / (self.done as f64 / 3.0);
        }
        PrototypeRow {
            choice,
            variant,
            rows_per_commit,
            per_s: rows / seconds,
            backend_us: spent_us / rows,
            backend_us_per_commit: spent_us / self.done as f64,
            backend_us_per_commit_in_thirds: thirds,
            wal_bytes,
            disk_bytes,
        }
    }
}

/// Processor time of a process of this machine. The kernel counts it in nanoseconds.
fn process_time_us(pid: i32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).context("the server process's time")?;
    let spent_ns: f64 = text.split_ascii_whitespace().next().context("an empty schedstat")?.parse()?;
    Ok(spent_ns / 1e3)
}

const CHUNK: usize = 1_000;
/// How many times each account is folded.
const PASSES: usize = 5;

const FILL: &str = "INSERT INTO ceiling.account SELECT 'bench:' || n, 0, 'USD', 1, 0, 0, NULL, NULL, 0, 0, '', 0, 0 \
     FROM generate_series(0, $1 - 1) AS n";
const UPDATE: &str = "UPDATE ceiling.account a \
     SET posted = new.posted, held = new.held, version = new.version, head = new.head, updated_at_us = new.at_us \
     FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[]) \
         AS new (id, posted, held, version, head, at_us) \
     WHERE a.id = new.id AND a.version < new.version";

/// Measures the cost of writing the newest balances of 100,000 accounts into their rows, in sorted chunks.
async fn measure_fold(url: &str) -> anyhow::Result<PrototypeRow> {
    let mut session = ceiling::prepare(url).await?;
    session.run(TABLES, None).await?;
    let mut connection = connect(url).await?;
    sqlx::query(FILL).bind(ACCOUNTS as i64).execute(&mut connection).await?;
    sqlx::query("VACUUM ANALYZE ceiling.account").execute(&mut connection).await?;
    let backend_pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    let mut ids: Vec<String> = (0..ACCOUNTS).map(account_id).collect();
    ids.sort_unstable();
    let wal_before = wal_bytes(&mut session).await?;
    let mut meter = Meter::start(backend_pid, PASSES * ACCOUNTS / CHUNK);
    for version in 1..=PASSES as i64 {
        for chunk in ids.chunks(CHUNK) {
            let column = |value: i64| vec![value; chunk.len()];
            let updated = sqlx::query(UPDATE)
                .bind(chunk)
                .bind(column(version * 10))
                .bind(column(0))
                .bind(column(version))
                .bind(column(version * 1_000))
                .bind(column(version * 1_000_000))
                .execute(&mut connection)
                .await?;
            anyhow::ensure!(updated.rows_affected() == chunk.len() as u64, "a chunk missed accounts");
            meter.commit()?;
        }
    }
    let folded = (PASSES * ACCOUNTS) as f64;
    let wal = wal_bytes(&mut session).await? - wal_before;
    let row = meter.row("fold", format!("UPDATE of {ACCOUNTS} accounts"), CHUNK, wal / folded, None);
    session.run("DROP SCHEMA ceiling CASCADE", None).await?;
    session.close().await;
    Ok(row)
}

fn cells(row: &PrototypeRow) -> [String; 9] {
    let thirds: Vec<String> = row.backend_us_per_commit_in_thirds.iter().map(|us| format!("{us:.0}")).collect();
    [
        row.choice.to_owned(),
        row.variant.clone(),
        row.rows_per_commit.to_string(),
        format!("{:.0}", row.per_s),
        format!("{:.2}", row.backend_us),
        format!("{:.0}", row.backend_us_per_commit),
        thirds.join(" "),
        format!("{:.0}", row.wal_bytes),
        row.disk_bytes.map_or_else(String::new, |bytes| format!("{bytes:.0}")),
    ]
}

impl super::ExperimentReport for PrototypeReport {
    fn is_right(&self) -> bool {
        true
    }

    fn figures(&self) -> &[super::figures::Figure] {
        &[]
    }

    fn print(&self) -> anyhow::Result<()> {
        let rows: Vec<[String; 9]> = self.rows.iter().map(cells).collect();
        output::table(
            [
                "choice",
                "variant",
                "rows/commit",
                "rows/s",
                "us/row",
                "us/commit",
                "in thirds",
                "WAL B/row",
                "disk B/row",
            ],
            &rows,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_this_process_grows() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = process_time_us(pid).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed().as_millis() < 20 {}
        assert!(process_time_us(pid).unwrap() >= before);
    }

    #[test]
    fn commits_are_counted_in_thirds() {
        let pid = i32::try_from(std::process::id()).unwrap();
        for commits in [3, 10, 300] {
            let mut meter = Meter::start(pid, commits);
            (0..commits).for_each(|_| meter.commit().unwrap());
            assert_eq!(meter.marks_us.len(), 4, "{commits}");
            assert_eq!(meter.row("fence", String::new(), 8, 0.0, None).rows_per_commit, 8);
        }
    }
}
