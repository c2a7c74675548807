//! `journal`: every change of every account, in commit order.

use ledger::journal::Entry;

use super::{
    row_array::{RowArray, RowType},
    slot_column,
};

/// The new rows.
pub fn rows(row_type: RowType, entries: &[Entry]) -> RowArray {
    let mut rows = RowArray::new(row_type, 14, entries.len(), 220);
    for entry in entries {
        rows.row()
            .int8(entry.position.0)
            .int8(entry.previous.0)
            .text(entry.account.as_str())
            .int4(slot_column(&entry.account))
            .int8(entry.version)
            .int2(entry.kind.code().into())
            .int8(entry.amount)
            .int8(entry.posted)
            .int8(entry.held)
            .optional_int8(entry.overdraft.to_nullable())
            .optional_uuid(entry.cause.as_ref().map(|c| c.transfer.0))
            .optional_text(entry.cause.as_ref().map(|c| c.counterparty.as_str()))
            .optional_text(entry.detail.as_deref())
            .int8(entry.created_at_us);
    }
    rows
}
