//! `hold`: money reserved at its debit account, under (id, debit).

use ledger::{Hold, HoldKey, Metadata, TransferId, batch::NewHold, hold::CaptureInFlight};
use sqlx::postgres::PgRow;
use wire::convert::hold_status_from_wire;

use super::{
    StoreError,
    columns::{columns, insert},
    record::{Record, refused_columns},
    row_array::{RowArray, RowType},
    session::{Session, check_rows},
    slot_column,
};

/// Builds the new rows, for the statement that inserts them.
pub fn rows(row_type: RowType, holds: &[NewHold]) -> RowArray {
    let mut rows = RowArray::new(row_type, 17, holds.len(), 240);
    for NewHold { key, stored, debit_position } in holds {
        let (refusal, side) = refused_columns(stored.status.refused());
        rows.row()
            .uuid(key.id.0)
            .text(key.debit.as_str())
            .int4(slot_column(&key.debit))
            .text(stored.credit.as_str())
            .text(stored.asset.as_str())
            .int8(stored.amount)
            .text(stored.metadata.as_str())
            .int2(stored.status.code().into())
            .optional_int2(refusal)
            .optional_int2(side)
            .int8(stored.captured)
            .optional_uuid(stored.in_flight.map(|flying| flying.capture.0))
            .int8(stored.in_flight.map_or(0, |flying| flying.amount))
            .optional_int8(stored.expires_at_us)
            .optional_int8(debit_position.map(|p| p.0))
            .int8(stored.created_at_us)
            .optional_int8(stored.ended_at_us);
    }
    rows
}

const INSERT: &str = insert!(hold, "$1");

pub async fn insert(session: &mut Session, holds: &[NewHold]) -> Result<(), StoreError> {
    let new = rows(session.row_types().hold, holds).finish();
    session.run(async |c| sqlx::query(INSERT).bind(new).execute(c).await).await.map(|_| ())
}

// Only a hold in status held changes. `status + 0` keeps the planner on the primary key, as in `transfer::settle`.
const UPDATE: &str = "UPDATE shardledger.hold AS h \
     SET status = u.status, captured = u.captured, capture_id = u.capture_id, capture_amount = u.capture_amount, \
       ended_at_us = u.ended_at_us \
     FROM unnest($1::uuid[], $2::text[], $3::int2[], $4::int8[], $5::uuid[], $6::int8[], $7::int8[]) \
       AS u(id, debit, status, captured, capture_id, capture_amount, ended_at_us) \
     WHERE h.id = u.id AND h.debit = u.debit AND h.status + 0 = 1";

pub async fn update(session: &mut Session, holds: &[(HoldKey, Hold)]) -> Result<(), StoreError> {
    let ids: Vec<uuid::Uuid> = holds.iter().map(|(key, _)| key.id.0).collect();
    let debits: Vec<&str> = holds.iter().map(|(key, _)| key.debit.as_str()).collect();
    let status: Vec<i16> = holds.iter().map(|(_, hold)| hold.status.code().into()).collect();
    let captured: Vec<i64> = holds.iter().map(|(_, hold)| hold.captured).collect();
    let capture_ids: Vec<Option<uuid::Uuid>> =
        holds.iter().map(|(_, hold)| hold.in_flight.map(|flying| flying.capture.0)).collect();
    let capture_amounts: Vec<i64> =
        holds.iter().map(|(_, hold)| hold.in_flight.map_or(0, |flying| flying.amount)).collect();
    let ended: Vec<Option<i64>> = holds.iter().map(|(_, hold)| hold.ended_at_us).collect();
    let touched = session
        .run(async |c| {
            let done = sqlx::query(UPDATE)
                .bind(ids)
                .bind(debits)
                .bind(status)
                .bind(captured)
                .bind(capture_ids)
                .bind(capture_amounts)
                .bind(ended)
                .execute(c)
                .await?;
            Ok(done.rows_affected())
        })
        .await?;
    check_rows("the update of holds", holds.len() as u64, touched)
}

const SELECT_MANY: &str = concat!(
    "SELECT ",
    columns!(h: hold),
    ", ",
    columns!(j: debit_after),
    " FROM unnest($1::uuid[], $2::text[]) AS wanted(id, debit) \
     JOIN shardledger.hold h ON h.id = wanted.id AND h.debit = wanted.debit \
     LEFT JOIN shardledger.journal j ON j.position = h.debit_position"
);

/// The holds among `keys` that exist.
pub async fn load(session: &mut Session, keys: &[HoldKey]) -> Result<Vec<(HoldKey, Hold)>, StoreError> {
    let ids: Vec<uuid::Uuid> = keys.iter().map(|k| k.id.0).collect();
    let debits: Vec<&str> = keys.iter().map(|k| k.debit.as_str()).collect();
    let rows = session.run(async |c| sqlx::query(SELECT_MANY).bind(ids).bind(debits).fetch_all(c).await).await?;
    rows.iter().map(from_row).collect()
}

pub fn from_row(row: &PgRow) -> Result<(HoldKey, Hold), StoreError> {
    let row = Record::read(row, "hold", "id")?;
    let status = hold_status_from_wire(row.code("status")?, row.code("refusal")?, row.code("side")?)
        .map_err(|error| row.corrupt(error))?;
    let in_flight = match row.column::<Option<uuid::Uuid>>("capture_id")? {
        Some(id) => Some(CaptureInFlight { capture: TransferId(id), amount: row.column("capture_amount")? }),
        None => None,
    };
    let key = HoldKey { id: row.id(), debit: row.account("debit")? };
    let hold = Hold {
        credit: row.account("credit")?,
        asset: row.asset()?,
        amount: row.column("amount")?,
        metadata: Metadata::from_canonical(row.column("metadata")?),
        status,
        captured: row.column("captured")?,
        in_flight,
        expires_at_us: row.column("expires_at_us")?,
        debit_after: row.debit_after()?,
        created_at_us: row.column("created_at_us")?,
        ended_at_us: row.column("ended_at_us")?,
    };
    Ok((key, hold))
}
