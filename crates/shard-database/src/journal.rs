//! The columns of `shardledger.journal`, and how a row becomes a [`Booking`].
//!
//! Rows are decoded strictly: an unknown kind, a missing leg or a leg too many is an error. A program that reads a
//! booking of a later version must stop instead of computing with half of it.

use ledger::{
    AccountId, AccountStatus, AssetCode, Booking, BookingKind, KeyName, Limit, Metadata, Position, Refusal, Refused,
    Side, TransferId,
    booking::{Attributes, Extra, Leg, Party, Role, change},
    operation::Purpose,
};
use sqlx::{Column, Decode, Postgres, Row, Type, ValueRef, postgres::PgRow};

/// The columns that every booking has, in the order in which the lane writes them.
#[macro_export]
macro_rules! journal_columns {
    (core) => {
        "position, amount, at_us, payer_version, payer_previous, payer_posted, payer_held, payer_overdraft, payee_version, \
         payee_previous, payee_posted, payee_held, payee_overdraft, payer_slot, payee_slot, kind, role, id, payer, payee, asset"
    };
    // Columns that few bookings have. The last one is `ordered_by`, which all first answers have if routers have keys.
    (extra) => {
        "metadata, refusal, side, hold, reverses, whole, final, cross_shard, answer_position, first_attempt_us, expires_at_us, \
         captured, status, max_balance, erases, ordered_by"
    };
    // All columns of a row named `j`.
    (j) => {
        "j.position, j.amount, j.at_us, j.payer_version, j.payer_previous, j.payer_posted, j.payer_held, j.payer_overdraft, \
         j.payee_version, j.payee_previous, j.payee_posted, j.payee_held, j.payee_overdraft, j.payer_slot, j.payee_slot, \
         j.kind, j.role, j.id, j.payer, j.payee, j.asset, j.metadata, j.refusal, j.side, j.hold, j.reverses, j.whole, j.final, \
         j.cross_shard, j.answer_position, j.first_attempt_us, j.expires_at_us, j.captured, j.status, j.max_balance, j.erases, j.ordered_by"
    };
}

/// The slot columns of an account: -1 for an in-transit account, which belongs to the shard and to no slot.
pub fn slot_column(id: &AccountId) -> i16 {
    if id.is_system() { -1 } else { i16::try_from(shard_map::slot_of(id.as_str()).index()).unwrap_or(-1) }
}

/// The booking of a row that begins with `journal_columns!(j)`, or with `journal_columns!(core)` and `journal_columns!(extra)`. The
/// columns are taken by their places, because a look-up by name costs as much as the rest: a starting node reads hundreds of thousands of rows.
///
/// # Errors
/// When the columns are others, or hold what no booking holds.
pub fn booking_from_row(row: &PgRow) -> Result<Booking, sqlx::Error> {
    let names_are = |column: usize| row.try_column(column).is_ok_and(|there| there.name() == NAMES[column]);
    if !names_are(POSITION) || !names_are(ASSET) || !names_are(ORDERED_BY) {
        return Err(sqlx::Error::Decode("the row does not begin with the columns of the journal".into()));
    }
    booking(&Columns { row })
}

/// The slot columns of such a row, of payer and payee. A booking does not contain them, because they follow from the ids.
///
/// # Errors
/// When a column is missing.
pub fn slots_from_row(row: &PgRow) -> Result<(i16, i16), sqlx::Error> {
    Ok((row.try_get(PAYER_SLOT)?, row.try_get(PAYEE_SLOT)?))
}

/// The names of the columns, in the order of [`journal_columns!`].
const NAMES: [&str; 37] = [
    "position",
    "amount",
    "at_us",
    "payer_version",
    "payer_previous",
    "payer_posted",
    "payer_held",
    "payer_overdraft",
    "payee_version",
    "payee_previous",
    "payee_posted",
    "payee_held",
    "payee_overdraft",
    "payer_slot",
    "payee_slot",
    "kind",
    "role",
    "id",
    "payer",
    "payee",
    "asset",
    "metadata",
    "refusal",
    "side",
    "hold",
    "reverses",
    "whole",
    "final",
    "cross_shard",
    "answer_position",
    "first_attempt_us",
    "expires_at_us",
    "captured",
    "status",
    "max_balance",
    "erases",
    "ordered_by",
];
// Places in NAMES. Those of a leg are the place of its version and the four after it.
const POSITION: usize = 0;
const AMOUNT: usize = 1;
const AT_US: usize = 2;
const PAYER_LEG: usize = 3;
const PAYEE_LEG: usize = 8;
const PAYER_SLOT: usize = 13;
const PAYEE_SLOT: usize = 14;
const KIND: usize = 15;
const ROLE: usize = 16;
const ID: usize = 17;
const PAYER: usize = 18;
const PAYEE: usize = 19;
const ASSET: usize = 20;
const METADATA: usize = 21;
const REFUSAL: usize = 22;
const SIDE: usize = 23;
const HOLD: usize = 24;
const REVERSES: usize = 25;
const WHOLE: usize = 26;
const FINAL: usize = 27;
const CROSS_SHARD: usize = 28;
const ANSWER_POSITION: usize = 29;
const FIRST_ATTEMPT_US: usize = 30;
const EXPIRES_AT_US: usize = 31;
const CAPTURED: usize = 32;
const STATUS: usize = 33;
const MAX_BALANCE: usize = 34;
const ERASES: usize = 35;
const ORDERED_BY: usize = 36;

/// The journal's columns of a row, by their places in [`NAMES`].
struct Columns<'r> {
    row: &'r PgRow,
}

impl<'r> Columns<'r> {
    fn get<T: Decode<'r, Postgres> + Type<Postgres>>(&self, column: usize) -> Result<T, sqlx::Error> {
        self.row.try_get(column)
    }

    fn is_null(&self, column: usize) -> Result<bool, sqlx::Error> {
        Ok(self.row.try_get_raw(column)?.is_null())
    }
}

fn booking(row: &Columns<'_>) -> Result<Booking, sqlx::Error> {
    let position: i64 = row.get(POSITION)?;
    let corrupt = |what: String| sqlx::Error::Decode(format!("booking {position}: {what}").into());
    let code: i16 = row.get(KIND)?;
    let kind = u8::try_from(code)
        .ok()
        .and_then(BookingKind::from_code)
        .ok_or_else(|| corrupt(format!("kind {code} is unknown to this version")))?;
    let role: i16 = row.get(ROLE)?;
    if role != i16::from(kind.role().code()) {
        return Err(corrupt(format!("kind {code} with role {role}")));
    }
    let account = |text: &str| AccountId::any(text).map_err(|error| corrupt(error.to_string()));
    let payee: &str = row.get(PAYEE)?;
    let id: Option<uuid::Uuid> = row.get(ID)?;
    if id.is_some() != (kind.role() != Role::None) {
        return Err(corrupt(format!("kind {code} with or without an id")));
    }
    let extra = extra(row, kind).map_err(|error| match error {
        ExtraError::Row(error) => error,
        ExtraError::Content(what) => corrupt(what),
    })?;
    let purpose = extra.as_ref().map_or(Purpose::Payment, |extra| extra.purpose);
    let amount: i64 = row.get(AMOUNT)?;
    let leg = |party, first| -> Result<Option<Leg>, sqlx::Error> {
        let leg = leg(row, first)?;
        if leg.is_some() != change(kind, purpose, amount, party).is_some() {
            return Err(corrupt(format!("kind {code} with or without a leg of its {party:?}")));
        }
        Ok(leg)
    };
    let payee_leg = leg(Party::Payee, PAYEE_LEG)?;
    if payee.is_empty() && payee_leg.is_some() {
        return Err(corrupt("a leg of no payee".to_owned()));
    }
    Ok(Booking {
        position: Position(position),
        kind,
        id: id.map(TransferId),
        payer: account(row.get(PAYER)?)?,
        payee: if payee.is_empty() { None } else { Some(account(payee)?) },
        asset: AssetCode::new(row.get(ASSET)?).map_err(|error| corrupt(error.to_string()))?,
        amount,
        at_us: row.get(AT_US)?,
        payer_leg: leg(Party::Payer, PAYER_LEG)?,
        payee_leg,
        ordered_by: match row.get::<Option<&str>>(ORDERED_BY)? {
            Some(name) => Some(KeyName::new(name).map_err(|error| corrupt(error.to_string()))?),
            None => None,
        },
        extra,
    })
}

/// `first`: the place of the leg's version.
fn leg(row: &Columns<'_>, first: usize) -> Result<Option<Leg>, sqlx::Error> {
    let Some(version) = row.get(first)? else { return Ok(None) };
    Ok(Some(Leg {
        version,
        previous: Position(row.get(first + 1)?),
        posted: row.get(first + 2)?,
        held: row.get(first + 3)?,
        overdraft: Limit::from_nullable(row.get(first + 4)?),
    }))
}

enum ExtraError {
    Row(sqlx::Error),
    Content(String),
}

impl From<sqlx::Error> for ExtraError {
    fn from(error: sqlx::Error) -> Self {
        Self::Row(error)
    }
}

fn extra(row: &Columns<'_>, kind: BookingKind) -> Result<Option<Box<Extra>>, ExtraError> {
    let of_account = matches!(kind, BookingKind::Opened | BookingKind::Updated);
    // Most bookings have nothing of all this.
    let mut is_bare = !of_account;
    for column in METADATA..ORDERED_BY {
        is_bare = is_bare && row.is_null(column)?;
    }
    if is_bare {
        return Ok(None);
    }
    let hold: Option<uuid::Uuid> = row.get(HOLD)?;
    let reverses: Option<uuid::Uuid> = row.get(REVERSES)?;
    let whole = row.get::<Option<bool>>(WHOLE)?.unwrap_or(false);
    let purpose = match (hold, reverses) {
        (Some(_), Some(_)) => return Err(ExtraError::Content("both a capture and a reversal".to_owned())),
        (Some(hold), None) => {
            let finalize = row.get::<Option<bool>>(FINAL)?.unwrap_or(false);
            Purpose::Capture { hold: TransferId(hold), whole, finalize }
        }
        (None, Some(of)) => Purpose::Reversal { of: TransferId(of), whole },
        (None, None) => Purpose::Payment,
    };
    let attributes = match row.get::<Option<i16>>(STATUS)? {
        Some(status) => Some(Attributes {
            status: u8::try_from(status)
                .ok()
                .and_then(AccountStatus::from_code)
                .ok_or_else(|| ExtraError::Content(format!("status {status}")))?,
            max_balance: Limit::from_nullable(row.get(MAX_BALANCE)?),
        }),
        None => None,
    };
    // An account's metadata may be empty, and is recorded all the same.
    let metadata = match row.get::<Option<&str>>(METADATA)? {
        Some(text) => Some(Metadata::from_canonical(text)),
        None if of_account => Some(Metadata::empty()),
        None => None,
    };
    let extra = Extra {
        metadata,
        refused: refused(row)?,
        purpose,
        cross_shard: row.get::<Option<bool>>(CROSS_SHARD)?.unwrap_or(false),
        answer: row.get::<Option<i64>>(ANSWER_POSITION)?.map(Position),
        first_attempt_us: row.get(FIRST_ATTEMPT_US)?,
        expires_at_us: row.get(EXPIRES_AT_US)?,
        captured: row.get(CAPTURED)?,
        attributes,
        erases: row.get::<Option<uuid::Uuid>>(ERASES)?.map(TransferId),
    };
    Ok((extra != Extra::default()).then(|| Box::new(extra)))
}

fn refused(row: &Columns<'_>) -> Result<Option<Refused>, ExtraError> {
    let Some(refusal) = row.get::<Option<i16>>(REFUSAL)? else { return Ok(None) };
    let side: Option<i16> = row.get(SIDE)?;
    let known = |code: i16| u8::try_from(code).ok();
    let refusal = known(refusal)
        .and_then(Refusal::from_code)
        .ok_or_else(|| ExtraError::Content(format!("refusal {refusal} is unknown to this version")))?;
    let side = match side {
        None => None,
        Some(side) => Some(
            known(side)
                .and_then(Side::from_code)
                .ok_or_else(|| ExtraError::Content(format!("side {side} is unknown to this version")))?,
        ),
    };
    Ok(Some(Refused { refusal, side }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_of_columns_are_those_of_the_statements() {
        let listed = concat!(journal_columns!(core), ", ", journal_columns!(extra));
        assert!(listed.split(", ").eq(NAMES));
        assert!(journal_columns!(j).split(", ").map(|name| name.trim_start_matches("j.")).eq(NAMES));
        for (place, name) in [
            (POSITION, "position"),
            (PAYER_LEG, "payer_version"),
            (PAYEE_LEG, "payee_version"),
            (PAYER_SLOT, "payer_slot"),
            (ROLE, "role"),
            (ASSET, "asset"),
            (METADATA, "metadata"),
            (HOLD, "hold"),
            (ANSWER_POSITION, "answer_position"),
            (MAX_BALANCE, "max_balance"),
            (ERASES, "erases"),
            (ORDERED_BY, "ordered_by"),
        ] {
            assert_eq!(NAMES[place], name);
        }
    }
}
