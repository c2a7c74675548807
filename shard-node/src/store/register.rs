//! `register`: the write-once verdicts of sagas that end here.

use ledger::{
    TransferKey,
    batch::{NewRegister, StoredRegister},
    operation::Verdict,
};
use sqlx::postgres::PgRow;

use super::{
    StoreError,
    record::{Record, refused_columns},
    row_array::{RowArray, RowType},
    session::Session,
    slot_column,
};

/// Builds the new rows, for the statement that inserts them.
pub fn rows(row_type: RowType, registers: &[NewRegister]) -> RowArray {
    let mut rows = RowArray::new(row_type, 10, registers.len(), 160);
    for NewRegister { key, stored } in registers {
        let (refusal, side) = refused_columns(stored.verdict.refused());
        rows.row()
            .uuid(key.id.0)
            .text(key.debit.as_str())
            .text(stored.credit.as_str())
            .int4(slot_column(&stored.credit))
            .text(stored.asset.as_str())
            .int8(stored.amount)
            .bool(stored.verdict == Verdict::Credited)
            .optional_int2(refusal)
            .optional_int2(side)
            .int8(stored.decided_at_us);
    }
    rows
}

const SELECT_MANY: &str = "SELECT r.transfer_id, r.debit, r.credit, r.asset, r.amount, r.credited, r.refusal, r.side, \
       r.decided_at_us \
     FROM unnest($1::uuid[], $2::text[]) AS wanted(id, debit) \
     JOIN shardledger.register r ON r.transfer_id = wanted.id AND r.debit = wanted.debit";

/// The registers among `keys` that exist.
pub async fn load(
    session: &mut Session,
    keys: &[TransferKey],
) -> Result<Vec<(TransferKey, StoredRegister)>, StoreError> {
    let ids: Vec<uuid::Uuid> = keys.iter().map(|k| k.id.0).collect();
    let debits: Vec<&str> = keys.iter().map(|k| k.debit.as_str()).collect();
    let rows = session.run(async |c| sqlx::query(SELECT_MANY).bind(ids).bind(debits).fetch_all(c).await).await?;
    rows.iter().map(from_row).collect()
}

pub fn from_row(row: &PgRow) -> Result<(TransferKey, StoredRegister), StoreError> {
    let row = Record::read(row, "register of transfer", "transfer_id")?;
    let verdict = if row.column("credited")? { Verdict::Credited } else { Verdict::Refused(row.refused()?) };
    let key = TransferKey { id: row.id(), debit: row.account("debit")? };
    let stored = StoredRegister {
        credit: row.account("credit")?,
        asset: row.asset()?,
        amount: row.column("amount")?,
        verdict,
        decided_at_us: row.column("decided_at_us")?,
    };
    Ok((key, stored))
}
