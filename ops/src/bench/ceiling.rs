//! The raw append ceiling: how many journal rows this PostgreSQL accepts from one connection that does nothing else. Each commit is one
//! flight: `BEGIN`, the fence's lock and check, a binary COPY of the rows, `COMMIT`.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use pg_session::{ConnectOptions, CopyBuffer, Session};
use serde::Serialize;
use telemetry::clock;
use tokio::time::Instant;

use super::{
    request::{Ids, account_id, random_id, time_ordered_id},
    workload::Random,
};

const SCHEMA: &str = include_str!("../../sql/ceiling.sql");
/// The columns that a plain transfer between accounts of one shard fills.
pub const COLUMNS: &str = "position, amount, at_us, payer_version, payer_previous, payer_posted, payer_held, \
     payee_version, payee_previous, payee_posted, payee_held, payer_slot, payee_slot, kind, role, id, payer, payee, asset";
const COLUMN_COUNT: i16 = 19;
/// All columns of the journal: first COLUMNS in their order, then the columns that a plain transfer leaves null.
pub const ALL_COLUMNS: &str = "position, amount, at_us, payer_version, payer_previous, payer_posted, payer_held, \
     payee_version, payee_previous, payee_posted, payee_held, payer_slot, payee_slot, kind, role, id, payer, payee, asset, \
     payer_overdraft, payee_overdraft, metadata, refusal, side, hold, reverses, final, whole, cross_shard, answer_position, \
     first_attempt_us, expires_at_us, captured, status, max_balance";
/// How many of ALL_COLUMNS a plain transfer leaves null.
const RARE_COLUMNS: i16 = 16;

pub const ACCOUNTS: usize = 100_000;
pub const ROWS_PER_COMMIT: usize = 4096;
/// The memory that is reserved for one row of COPY, in bytes.
const ROW_BYTES: usize = 288;
const POSTED_LOCAL: i16 = 11;
const FIRST_ANSWER: i16 = 1;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Ceiling {
    pub transfers_per_s: f64,
    pub transfers: u64,
    pub rows_per_commit: usize,
    /// The bytes of tables and indexes for each transfer.
    pub disk_bytes_per_transfer: f64,
}

/// Drops what an earlier run left and creates the tables.
pub async fn prepare(url: &str) -> anyhow::Result<Session> {
    let options = ConnectOptions::from_url(url).map_err(|error| anyhow::anyhow!("the DSN {error}"))?;
    let mut session = Session::connect(&options.application_name("shardctl bench ceiling")).await?;
    session.run(SCHEMA, None).await.context("creating the tables of the raw append")?;
    Ok(session)
}

/// Appends for `duration`, and drops the tables.
pub async fn measure(url: &str, duration: Duration, seed: u64) -> anyhow::Result<Ceiling> {
    let mut session = prepare(url).await?;
    let mut bookings = Bookings::new(seed, Ids::TimeOrdered);
    let mut buffer = CopyBuffer::with_capacity(ROWS_PER_COMMIT * ROW_BYTES);
    let mut next = bookings.encode(&mut buffer, ROWS_PER_COMMIT, Columns::Used);
    let begin = Instant::now();
    let mut transfers = 0;
    while begin.elapsed() < duration {
        let script = commit_script(Fence::Lock, "journal", Columns::Used, transfers as i64, ROWS_PER_COMMIT);
        // The next rows are encoded while these are on their way.
        let mut following = CopyBuffer::with_capacity(ROWS_PER_COMMIT * ROW_BYTES);
        let encode = async { bookings.encode(&mut following, ROWS_PER_COMMIT, Columns::Used) };
        let (completed, encoded) = tokio::join!(session.run(&script, Some(next)), encode);
        committed(&completed?)?;
        next = encoded;
        transfers += ROWS_PER_COMMIT as u64;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let bytes = relation_bytes(&mut session, "ceiling.journal").await?;
    session.run("DROP SCHEMA ceiling CASCADE", None).await?;
    session.close().await;
    Ok(Ceiling {
        transfers_per_s: transfers as f64 / seconds,
        transfers,
        rows_per_commit: ROWS_PER_COMMIT,
        disk_bytes_per_transfer: bytes / transfers as f64,
    })
}

/// The size of a table with its indexes.
pub async fn relation_bytes(session: &mut Session, table: &str) -> anyhow::Result<f64> {
    let completed = session.run(&format!("SELECT pg_total_relation_size('{table}')"), None).await?;
    let bytes = completed.rows.first().and_then(|row| row.first()?.as_deref()).context("no size")?;
    Ok(bytes.parse()?)
}

/// Fails unless the last tag is COMMIT and there was no warning. An aborted transaction answers ROLLBACK.
pub fn committed(completed: &pg_session::Completed) -> anyhow::Result<()> {
    let last = completed.tags.last().map_or("nothing", pg_session::Tag::as_str);
    ensure!(last == "COMMIT" && completed.warnings.is_empty(), "not committed: {last}, {:?}", completed.warnings);
    Ok(())
}

/// How a transaction makes sure that no other writer has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// A lock of an empty table, and a function that compares the highest position.
    Lock,
    /// A compare-and-set of one row.
    Update,
    /// No fence, for measurements of other choices.
    None,
}

/// Which columns COPY lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    Used,
    All,
}

/// A transaction that appends `rows` rows behind `highest`.
pub fn commit_script(fence: Fence, table: &str, columns: Columns, highest: i64, rows: usize) -> String {
    let fence = match fence {
        Fence::Lock => format!(
            "LOCK TABLE ceiling.lane_fence IN SHARE ROW EXCLUSIVE MODE; SELECT ceiling.check_fence({highest}, 1, 1, 1); "
        ),
        Fence::Update => format!(
            "UPDATE ceiling.shard_state SET next_position = {} WHERE next_position = {highest} AND ownership_version = 1 \
             AND incarnation = 1 AND schema_version = 1; ",
            highest + rows as i64
        ),
        Fence::None => String::new(),
    };
    let columns = match columns {
        Columns::Used => COLUMNS,
        Columns::All => ALL_COLUMNS,
    };
    format!("BEGIN; {fence}COPY ceiling.{table} ({columns}) FROM STDIN (FORMAT binary); COMMIT")
}

/// The target of the fields of a row: a COPY, or an array of rows.
pub trait RowSink {
    fn row(&mut self, fields: i16);
    fn int2(&mut self, value: i16);
    fn int8(&mut self, value: i64);
    fn uuid(&mut self, value: [u8; 16]);
    fn text(&mut self, value: &str);
    fn null(&mut self);
}

impl RowSink for CopyBuffer {
    fn row(&mut self, fields: i16) {
        self.row(fields);
    }

    fn int2(&mut self, value: i16) {
        self.int2(value);
    }

    fn int8(&mut self, value: i64) {
        self.int8(value);
    }

    fn uuid(&mut self, value: [u8; 16]) {
        self.uuid(value);
    }

    fn text(&mut self, value: &str) {
        self.text(value);
    }

    fn null(&mut self) {
        self.null();
    }
}

/// Plain transfers among accounts of one shard, with balances as a ledger would have them.
pub struct Bookings {
    random: Random,
    ids: Ids,
    accounts: Vec<AccountRow>,
    position: i64,
}

struct AccountRow {
    id: String,
    slot: i16,
    version: i64,
    position: i64,
    posted: i64,
}

/// One transfer.
pub struct Booking<'a> {
    pub position: i64,
    pub at_us: i64,
    pub id: [u8; 16],
    pub amount: i64,
    pub payer: Leg<'a>,
    pub payee: Leg<'a>,
}

/// One account's side of a transfer.
#[derive(Clone, Copy)]
pub struct Leg<'a> {
    pub account: &'a str,
    pub slot: i16,
    pub version: i64,
    pub previous: i64,
    pub posted: i64,
}

impl Bookings {
    pub fn new(seed: u64, ids: Ids) -> Self {
        let accounts = (0..ACCOUNTS).map(|number| {
            let id = account_id(number);
            let slot = shard_map::slot_of(&id).index() as i16;
            AccountRow { id, slot, version: 1, position: 0, posted: 0 }
        });
        Self { random: Random::new(seed, 0), ids, accounts: accounts.collect(), position: 0 }
    }

    /// The rows of the next commit.
    pub fn encode(&mut self, buffer: &mut CopyBuffer, rows: usize, columns: Columns) -> Bytes {
        buffer.begin();
        self.write(buffer, rows, columns);
        if cfg!(debug_assertions) {
            assert_eq!(buffer.rows(), rows as u64);
        }
        buffer.finish()
    }

    pub fn write(&mut self, sink: &mut impl RowSink, rows: usize, columns: Columns) {
        let rare = if columns == Columns::All { RARE_COLUMNS } else { 0 };
        let at_us = clock::now_us();
        for _ in 0..rows {
            let booking = self.next(at_us);
            sink.row(COLUMN_COUNT + rare);
            sink.int8(booking.position);
            sink.int8(booking.amount);
            sink.int8(booking.at_us);
            for leg in [booking.payer, booking.payee] {
                sink.int8(leg.version);
                sink.int8(leg.previous);
                sink.int8(leg.posted);
                sink.int8(0);
            }
            sink.int2(booking.payer.slot);
            sink.int2(booking.payee.slot);
            sink.int2(POSTED_LOCAL);
            sink.int2(FIRST_ANSWER);
            sink.uuid(booking.id);
            sink.text(booking.payer.account);
            sink.text(booking.payee.account);
            sink.text("USD");
            (0..rare).for_each(|_| sink.null());
        }
    }

    /// The next transfer; positions begin with 1.
    pub fn next(&mut self, at_us: i64) -> Booking<'_> {
        let payer = self.random.below(ACCOUNTS);
        let payee = (payer + 1 + self.random.below(ACCOUNTS - 1)) % ACCOUNTS;
        let amount = 1 + (self.random.next() % 10_000) as i64;
        let id = match self.ids {
            Ids::TimeOrdered => time_ordered_id((at_us / 1_000).unsigned_abs(), &mut self.random),
            Ids::Random => random_id(&mut self.random),
        };
        self.position += 1;
        let mut change = |account: usize, by: i64| {
            let account = &mut self.accounts[account];
            let previous = std::mem::replace(&mut account.position, self.position);
            account.version += 1;
            account.posted += by;
            previous
        };
        let previous = [change(payer, -amount), change(payee, amount)];
        let leg = |account: usize, previous: i64| {
            let AccountRow { id, slot, version, posted, .. } = &self.accounts[account];
            Leg { account: id, slot: *slot, version: *version, previous, posted: *posted }
        };
        Booking {
            position: self.position,
            at_us,
            id,
            amount,
            payer: leg(payer, previous[0]),
            payee: leg(payee, previous[1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_positions_form_a_chain() {
        let mut bookings = Bookings::new(1, Ids::TimeOrdered);
        let mut heads = std::collections::HashMap::new();
        for position in 1..=1_000 {
            let booking = bookings.next(1_000_000);
            assert_eq!(booking.position, position);
            assert_ne!(booking.payer.account, booking.payee.account);
            for leg in [booking.payer, booking.payee] {
                let (previous, version) = heads.get(leg.account).copied().unwrap_or((0, 1));
                assert_eq!((leg.previous, leg.version), (previous, version + 1));
                heads.insert(leg.account.to_owned(), (position, leg.version));
            }
        }
        assert_eq!(bookings.accounts.iter().map(|account| account.posted).sum::<i64>(), 0);
    }

    #[test]
    fn the_column_lists_have_the_announced_lengths() {
        let count = |list: &str| list.split(',').count();
        assert_eq!(count(COLUMNS), COLUMN_COUNT as usize);
        assert_eq!(count(ALL_COLUMNS), (COLUMN_COUNT + RARE_COLUMNS) as usize);
        assert!(ALL_COLUMNS.starts_with(COLUMNS));
    }

    #[test]
    fn a_commit_is_one_script() {
        let script = commit_script(Fence::Lock, "journal", Columns::Used, 7, 8);
        assert!(script.starts_with("BEGIN; LOCK TABLE ceiling.lane_fence"), "{script}");
        assert!(script.contains("check_fence(7, 1, 1, 1)") && script.ends_with("(FORMAT binary); COMMIT"));
        let script = commit_script(Fence::Update, "journal", Columns::All, 7, 8);
        assert!(script.contains("next_position = 15 WHERE next_position = 7"), "{script}");
    }
}
