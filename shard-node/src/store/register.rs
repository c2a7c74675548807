//! `register`: the write-once verdicts of sagas that end here.

use ledger::{
    AccountId, AssetCode, TransferId, TransferKey,
    batch::{NewRegister, StoredRegister},
    operation::Verdict,
};
use wire::convert::refused_from_wire;

use super::{
    StoreError,
    row_array::{RowArray, RowType},
    session::{Session, column},
    slot_column,
};

/// The new rows.
pub fn rows(row_type: RowType, registers: &[NewRegister]) -> RowArray {
    let mut rows = RowArray::new(row_type, 10, registers.len(), 160);
    for NewRegister { key, stored } in registers {
        let refused = match stored.verdict {
            Verdict::Credited => None,
            Verdict::Refused(refused) => Some(refused),
        };
        rows.row()
            .uuid(key.id.0)
            .text(key.debit.as_str())
            .text(stored.credit.as_str())
            .int4(slot_column(&stored.credit))
            .text(stored.asset.as_str())
            .int8(stored.amount)
            .bool(refused.is_none())
            .optional_int2(refused.map(|r| r.refusal.code().into()))
            .optional_int2(refused.and_then(|r| r.side).map(|s| s.code().into()))
            .int8(stored.decided_at_us);
    }
    rows
}

const SELECT_MANY: &str = "SELECT r.transfer_id, r.debit, r.credit, r.asset, r.amount, r.credited, r.refusal, r.side, \
     r.decided_at_us \
     FROM unnest($1::uuid[], $2::text[]) AS wanted(id, debit) \
     JOIN register r ON r.transfer_id = wanted.id AND r.debit = wanted.debit";

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

pub fn from_row(row: &sqlx::postgres::PgRow) -> Result<(TransferKey, StoredRegister), StoreError> {
    let id: uuid::Uuid = column(row, "transfer_id")?;
    let corrupt = |what: String| StoreError::Corrupt(format!("register of transfer {id}: {what}"));
    let account = |text: &str| AccountId::any(text).map_err(|e| corrupt(e.to_string()));
    let credited: bool = column(row, "credited")?;
    let verdict = if credited {
        Verdict::Credited
    } else {
        Verdict::Refused(refused_columns(row).map_err(|e| corrupt(e.to_string()))?)
    };
    let key = TransferKey { id: TransferId(id), debit: account(column(row, "debit")?)? };
    let stored = StoredRegister {
        credit: account(column(row, "credit")?)?,
        asset: AssetCode::new(column(row, "asset")?).map_err(|e| corrupt(e.to_string()))?,
        amount: column(row, "amount")?,
        verdict,
        decided_at_us: column(row, "decided_at_us")?,
    };
    Ok((key, stored))
}

/// The columns `refusal` and `side` of a row that has them.
pub fn refused_columns(row: &sqlx::postgres::PgRow) -> Result<ledger::Refused, StoreError> {
    let refusal: Option<i16> = column(row, "refusal")?;
    let side: Option<i16> = column(row, "side")?;
    let code = |value: Option<i16>| value.and_then(|v| u32::try_from(v).ok()).unwrap_or(0);
    refused_from_wire(code(refusal), code(side)).map_err(|e| StoreError::Corrupt(e.to_string()))
}
