//! The columns of `shardledger.journal`, and how a row becomes a [`Booking`].
//!
//! Rows are decoded strictly: an unknown kind, a missing leg or a leg too many is an error. A program that reads a
//! booking of a later version must stop instead of computing with half of it.

use ledger::{
    AccountId, AccountStatus, AssetCode, Booking, BookingKind, Limit, Metadata, Position, Refusal, Refused, Side,
    TransferId,
    booking::{Attributes, Extra, Leg, Party, Role, change},
    operation::Purpose,
};
use sqlx::{Row, postgres::PgRow};

/// The columns that every booking has, in the order in which the lane writes them.
#[macro_export]
macro_rules! journal_columns {
    (core) => {
        "position, amount, at_us, payer_version, payer_previous, payer_posted, payer_held, payer_overdraft, payee_version, \
         payee_previous, payee_posted, payee_held, payee_overdraft, payer_slot, payee_slot, kind, role, id, payer, payee, asset"
    };
    (extra) => {
        "metadata, refusal, side, hold, reverses, whole, final, cross_shard, answer_position, first_attempt_us, expires_at_us, \
         captured, status, max_balance"
    };
    // All columns of a row named `j`.
    (j) => {
        "j.position, j.amount, j.at_us, j.payer_version, j.payer_previous, j.payer_posted, j.payer_held, j.payer_overdraft, \
         j.payee_version, j.payee_previous, j.payee_posted, j.payee_held, j.payee_overdraft, j.payer_slot, j.payee_slot, \
         j.kind, j.role, j.id, j.payer, j.payee, j.asset, j.metadata, j.refusal, j.side, j.hold, j.reverses, j.whole, j.final, \
         j.cross_shard, j.answer_position, j.first_attempt_us, j.expires_at_us, j.captured, j.status, j.max_balance"
    };
}

/// The slot columns of an account: -1 for an in-transit account, which belongs to the shard and to no slot.
pub fn slot_column(id: &AccountId) -> i16 {
    if id.is_system() { -1 } else { i16::try_from(shard_map::slot_of(id.as_str()).index()).unwrap_or(-1) }
}

/// The booking that a row with all columns of [`journal_columns!`] records.
///
/// # Errors
/// When a column is missing or holds what no booking holds.
pub fn booking_from_row(row: &PgRow) -> Result<Booking, sqlx::Error> {
    let position: i64 = row.try_get("position")?;
    let corrupt = |what: String| sqlx::Error::Decode(format!("booking {position}: {what}").into());
    let code: i16 = row.try_get("kind")?;
    let kind = u8::try_from(code)
        .ok()
        .and_then(BookingKind::from_code)
        .ok_or_else(|| corrupt(format!("kind {code} is unknown to this version")))?;
    let account = |text: &str| AccountId::any(text).map_err(|error| corrupt(error.to_string()));
    let payee: &str = row.try_get("payee")?;
    let id: Option<uuid::Uuid> = row.try_get("id")?;
    if id.is_some() != (kind.role() != Role::None) {
        return Err(corrupt(format!("kind {code} with or without an id")));
    }
    let extra = extra_from_row(row, kind).map_err(|error| match error {
        ExtraError::Row(error) => error,
        ExtraError::Content(what) => corrupt(what),
    })?;
    let purpose = extra.as_ref().map_or(Purpose::Payment, |extra| extra.purpose);
    let amount: i64 = row.try_get("amount")?;
    let leg = |party, names: [&str; 5]| -> Result<Option<Leg>, sqlx::Error> {
        let leg = leg_from_row(row, names)?;
        if leg.is_some() != change(kind, purpose, amount, party).is_some() {
            return Err(corrupt(format!("kind {code} with or without a leg of its {party:?}")));
        }
        Ok(leg)
    };
    Ok(Booking {
        position: Position(position),
        kind,
        id: id.map(TransferId),
        payer: account(row.try_get("payer")?)?,
        payee: if payee.is_empty() { None } else { Some(account(payee)?) },
        asset: AssetCode::new(row.try_get("asset")?).map_err(|error| corrupt(error.to_string()))?,
        amount,
        at_us: row.try_get("at_us")?,
        payer_leg: leg(
            Party::Payer,
            ["payer_version", "payer_previous", "payer_posted", "payer_held", "payer_overdraft"],
        )?,
        payee_leg: leg(
            Party::Payee,
            ["payee_version", "payee_previous", "payee_posted", "payee_held", "payee_overdraft"],
        )?,
        extra,
    })
}

/// The account and asset that a [`BookingKind::Marker`] is written with. No client can name the account.
pub const MARKER_ACCOUNT: &str = "@marker";
pub const MARKER_ASSET: &str = "XXX";

fn leg_from_row(row: &PgRow, [version, previous, posted, held, overdraft]: [&str; 5]) -> Result<Option<Leg>, sqlx::Error> {
    let Some(version) = row.try_get(version)? else { return Ok(None) };
    Ok(Some(Leg {
        version,
        previous: Position(row.try_get(previous)?),
        posted: row.try_get(posted)?,
        held: row.try_get(held)?,
        overdraft: Limit::from_nullable(row.try_get(overdraft)?),
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

fn extra_from_row(row: &PgRow, kind: BookingKind) -> Result<Option<Box<Extra>>, ExtraError> {
    let hold: Option<uuid::Uuid> = row.try_get("hold")?;
    let reverses: Option<uuid::Uuid> = row.try_get("reverses")?;
    let whole = row.try_get::<Option<bool>, _>("whole")?.unwrap_or(false);
    let purpose = match (hold, reverses) {
        (Some(_), Some(_)) => return Err(ExtraError::Content("both a capture and a reversal".to_owned())),
        (Some(hold), None) => {
            let finalize = row.try_get::<Option<bool>, _>("final")?.unwrap_or(false);
            Purpose::Capture { hold: TransferId(hold), whole, finalize }
        }
        (None, Some(of)) => Purpose::Reversal { of: TransferId(of), whole },
        (None, None) => Purpose::Payment,
    };
    let attributes = match row.try_get::<Option<i16>, _>("status")? {
        Some(status) => Some(Attributes {
            status: u8::try_from(status)
                .ok()
                .and_then(AccountStatus::from_code)
                .ok_or_else(|| ExtraError::Content(format!("status {status}")))?,
            max_balance: Limit::from_nullable(row.try_get("max_balance")?),
        }),
        None => None,
    };
    // An account's metadata may be empty, and is recorded all the same.
    let metadata = match row.try_get::<Option<&str>, _>("metadata")? {
        Some(text) => Some(Metadata::from_canonical(text)),
        None if matches!(kind, BookingKind::Opened | BookingKind::Updated) => Some(Metadata::empty()),
        None => None,
    };
    let extra = Extra {
        metadata,
        refused: refused_from_row(row)?,
        purpose,
        cross_shard: row.try_get::<Option<bool>, _>("cross_shard")?.unwrap_or(false),
        answer: row.try_get::<Option<i64>, _>("answer_position")?.map(Position),
        first_attempt_us: row.try_get("first_attempt_us")?,
        expires_at_us: row.try_get("expires_at_us")?,
        captured: row.try_get("captured")?,
        attributes,
    };
    Ok((extra != Extra::default()).then(|| Box::new(extra)))
}

fn refused_from_row(row: &PgRow) -> Result<Option<Refused>, ExtraError> {
    let Some(refusal) = row.try_get::<Option<i16>, _>("refusal")? else { return Ok(None) };
    let side: Option<i16> = row.try_get("side")?;
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
