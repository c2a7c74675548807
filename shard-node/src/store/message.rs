//! A batch as one message to PostgreSQL: a script with the rows of the journal.
//!
//! The script is one simple-protocol query: BEGIN, the lock, the check of the fence, COPY, what else the batch changes,
//! and COMMIT. Everything is on the wire at once, so a batch costs one round trip. A statement that fails ends the
//! script, so nothing of the batch can be carried out without the check. BEGIN and COMMIT must stay in one script: after
//! a BEGIN that failed alone, later scripts would commit statement by statement.

use std::fmt::Write;

use bytes::Bytes;
use ledger::{
    Booking, Hold,
    batch::{Effects, HoldRow},
    booking::{BookingKind, Extra, Leg},
    operation::Purpose,
};
use pg_session::CopyBuffer;
use shard_database::{ShardState, journal::slot_column, journal_columns};

use super::{Append, evidence};

/// A batch as it is sent.
#[derive(Debug)]
pub struct Message {
    pub script: String,
    pub rows: Option<Bytes>,
}

/// Begins a transaction and takes the lock. The lock comes first, in a statement of its own: the check then sees what every
/// earlier writer has committed.
pub const BEGIN: &str = "BEGIN; LOCK TABLE shardledger.lane_fence IN SHARE ROW EXCLUSIVE MODE; ";

/// What a COPY names: the columns that every booking has, these and the name of the key, or all. It names no column that no booking of the
/// batch needs: each column costs the server time in each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    Core,
    Named,
    All,
}

const CORE_COLUMNS: i16 = 21;
const ALL_COLUMNS: i16 = CORE_COLUMNS + 16;
const COPY_CORE: &str =
    concat!("COPY shardledger.journal (", journal_columns!(core), ") FROM STDIN (FORMAT binary); ");
const COPY_NAMED: &str =
    concat!("COPY shardledger.journal (", journal_columns!(core), ", ordered_by) FROM STDIN (FORMAT binary); ");
const COPY_ALL: &str = concat!(
    "COPY shardledger.journal (",
    journal_columns!(core),
    ", ",
    journal_columns!(extra),
    ") FROM STDIN (FORMAT binary); "
);

/// Inserts the rows of accounts that the batch opened, from the bookings that opened them.
const INSERT_OPENED: &str = "INSERT INTO shardledger.account (id, slot, asset, status, posted, held, overdraft, max_balance, version, head, \
       opened, metadata, created_at_us, updated_at_us) \
     SELECT payer, payer_slot, asset, status, payer_posted, payer_held, payer_overdraft, max_balance, payer_version, position, \
       position, metadata, at_us, at_us FROM shardledger.journal";

/// An estimate of a row's bytes, so that the buffer is allocated once.
const ROW_BYTES: usize = 300;

impl Message {
    /// The message that writes a batch.
    pub fn of(append: &Append<'_>) -> Self {
        Self::after(BEGIN, append, "")
    }

    /// The rest of a transaction that holds the lock already. `statements` are run before its COMMIT.
    pub fn under_lock(append: &Append<'_>, statements: &str) -> Self {
        Self::after("", append, statements)
    }

    fn after(begin: &str, append: &Append<'_>, statements: &str) -> Self {
        let Append { state, effects, marks, scales } = append;
        let mut script = format!("{begin}{}", check(state));
        let rows = (!effects.bookings.is_empty()).then(|| {
            let columns = Columns::of(&effects.bookings);
            script.push_str(columns.copy());
            encode(&effects.bookings, columns)
        });
        if effects.bookings.iter().any(|booking| booking.kind == BookingKind::Opened) {
            let (first, end) = (state.next_position, effects.next_position.0);
            let opened = BookingKind::Opened.code();
            // Writing to a String cannot fail, here and below.
            let _ = write!(
                script,
                "{INSERT_OPENED} WHERE position >= {first} AND position < {end} AND kind = {opened}; "
            );
        }
        push_holds(&mut script, effects);
        if effects.bookings.iter().any(|booking| booking.erasure().is_some()) {
            let (before, last) = (state.next_position - 1, effects.next_position.0 - 1);
            let _ = write!(script, "SELECT shardledger.apply_erasures({before}, {last}); ");
        }
        script.push_str(&evidence::insert_marks(marks));
        for (asset, scale) in *scales {
            script.push_str(&evidence::insert_scale(*asset, *scale));
        }
        script.push_str(statements);
        script.push_str("COMMIT");
        Self { script, rows }
    }
}

/// Passes the fence.
fn check(state: &ShardState) -> String {
    let ShardState { next_position, ownership_version, incarnation, schema_version } = state;
    let highest = next_position - 1;
    format!("SELECT shardledger.check_fence({highest}, {ownership_version}, {incarnation}, {schema_version}); ")
}

// Account ids consist of letters, digits and . _ : - { } @, so that they need no escape. Everything else is a number.
fn push_holds(script: &mut String, effects: &Effects) {
    for row in &effects.holds {
        let _ = match row {
            HoldRow::Insert { key, hold, position } => {
                let (capture, capture_amount) = in_flight(hold);
                let expires = hold.expires_at_us.map_or("NULL".to_owned(), |at_us| at_us.to_string());
                write!(
                    script,
                    "INSERT INTO shardledger.hold (id, payer, payer_slot, position, amount, captured, capture_id, \
                     capture_amount, expires_at_us) VALUES ('{}', '{}', {}, {}, {}, {}, {capture}, {capture_amount}, {expires}); ",
                    key.id.0,
                    key.debit,
                    slot_column(&key.debit),
                    position.0,
                    hold.amount,
                    hold.captured,
                )
            }
            HoldRow::Update { key, hold } => {
                let (capture, capture_amount) = in_flight(hold);
                write!(
                    script,
                    "SELECT shardledger.change_hold('{}', '{}', {}, {capture}, {capture_amount}); ",
                    key.id.0, key.debit, hold.captured,
                )
            }
            HoldRow::Delete { key } => {
                write!(script, "SELECT shardledger.end_hold('{}', '{}'); ", key.id.0, key.debit)
            }
        };
    }
}

/// The columns `capture_id` and `capture_amount` as literals.
fn in_flight(hold: &Hold) -> (String, i64) {
    match hold.in_flight {
        Some(flying) => (format!("'{}'", flying.capture.0), flying.amount),
        None => ("NULL".to_owned(), 0),
    }
}

impl Columns {
    /// Those that the bookings need.
    fn of(bookings: &[Booking]) -> Self {
        let mut columns = Self::Core;
        for booking in bookings {
            if booking.extra.is_some() {
                return Self::All;
            }
            if booking.ordered_by.is_some() {
                columns = Self::Named;
            }
        }
        columns
    }

    fn copy(self) -> &'static str {
        match self {
            Self::Core => COPY_CORE,
            Self::Named => COPY_NAMED,
            Self::All => COPY_ALL,
        }
    }

    fn count(self) -> i16 {
        match self {
            Self::Core => CORE_COLUMNS,
            Self::Named => CORE_COLUMNS + 1,
            Self::All => ALL_COLUMNS,
        }
    }
}

fn encode(bookings: &[Booking], columns: Columns) -> Bytes {
    let mut rows = CopyBuffer::with_capacity(bookings.len() * ROW_BYTES);
    rows.begin();
    for booking in bookings {
        rows.row(columns.count());
        rows.int8(booking.position.0);
        rows.int8(booking.amount);
        rows.int8(booking.at_us);
        encode_leg(&mut rows, booking.payer_leg.as_ref());
        encode_leg(&mut rows, booking.payee_leg.as_ref());
        rows.int2(slot_column(&booking.payer));
        rows.int2(booking.payee.as_ref().map_or(-1, slot_column));
        rows.int2(booking.kind.code().into());
        rows.int2(booking.kind.role().code().into());
        rows.optional(booking.id, |rows, id| rows.uuid(*id.0.as_bytes()));
        rows.text(booking.payer.as_str());
        rows.text(booking.payee.as_ref().map_or("", |payee| payee.as_str()));
        rows.text(booking.asset.as_str());
        if columns == Columns::All {
            encode_extra(&mut rows, booking.extra.as_deref());
        }
        if columns != Columns::Core {
            rows.optional(booking.ordered_by.as_ref(), |rows, name| rows.text(name.as_str()));
        }
    }
    rows.finish()
}

fn encode_leg(rows: &mut CopyBuffer, leg: Option<&Leg>) {
    match leg {
        Some(leg) => {
            rows.int8(leg.version);
            rows.int8(leg.previous.0);
            rows.int8(leg.posted);
            rows.int8(leg.held);
            rows.optional(leg.overdraft.to_nullable(), CopyBuffer::int8);
        }
        None => (0..5).for_each(|_| rows.null()),
    }
}

fn encode_extra(rows: &mut CopyBuffer, extra: Option<&Extra>) {
    let Some(extra) = extra else {
        // All but `ordered_by`.
        return (CORE_COLUMNS + 1..ALL_COLUMNS).for_each(|_| rows.null());
    };
    let purpose = extra.purpose;
    let is_capture = purpose.captured_hold().is_some();
    rows.optional(extra.metadata.as_ref(), |rows, metadata| rows.text(metadata.as_str()));
    rows.optional(extra.refused, |rows, refused| rows.int2(refused.refusal.code().into()));
    rows.optional(extra.refused.and_then(|refused| refused.side), |rows, side| rows.int2(side.code().into()));
    rows.optional(purpose.captured_hold(), |rows, id| rows.uuid(*id.0.as_bytes()));
    rows.optional(purpose.reversed_transfer(), |rows, id| rows.uuid(*id.0.as_bytes()));
    rows.optional((purpose != Purpose::Payment).then(|| purpose.is_whole()), CopyBuffer::bool);
    rows.optional(is_capture.then(|| purpose.finalizes()), CopyBuffer::bool);
    rows.optional(extra.cross_shard.then_some(true), CopyBuffer::bool);
    rows.optional(extra.answer, |rows, position| rows.int8(position.0));
    rows.optional(extra.first_attempt_us, CopyBuffer::int8);
    rows.optional(extra.expires_at_us, CopyBuffer::int8);
    rows.optional(extra.captured, CopyBuffer::int8);
    rows.optional(extra.attributes, |rows, attributes| rows.int2(attributes.status.code().into()));
    rows.optional(extra.attributes.and_then(|attributes| attributes.max_balance.to_nullable()), CopyBuffer::int8);
    rows.optional(extra.erases, |rows, id| rows.uuid(*id.0.as_bytes()));
}
