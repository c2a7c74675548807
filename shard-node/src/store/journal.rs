//! `journal`: every change of every account, in commit order.

use ledger::journal::Entry;

use super::{StoreError, copy::CopyRows, session::Session, slot_column};

const COPY: &str = "COPY journal (position, previous, account, slot, version, kind, amount, posted, held, overdraft, \
     transfer_id, counterparty, detail, created_at_us) FROM STDIN (FORMAT binary)";

pub async fn append(session: &mut Session, entries: &[Entry]) -> Result<(), StoreError> {
    let mut rows = CopyRows::new(14, entries.len(), 220);
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
            .optional(entry.overdraft.to_nullable(), CopyRows::int8)
            .optional(entry.cause.as_ref().map(|c| c.transfer.0), CopyRows::uuid)
            .optional(entry.cause.as_ref().map(|c| c.counterparty.as_str()), CopyRows::text)
            .optional(entry.detail.as_deref(), CopyRows::text)
            .int8(entry.created_at_us);
    }
    session.copy_in(COPY, rows).await
}
