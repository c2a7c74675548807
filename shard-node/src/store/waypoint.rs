//! `waypoint`: every 64th version of an account, to enter its chain of entries near any version or time.

use ledger::journal::{Entry, EntryKind};

use super::{StoreError, row_array::RowArray, session::Session};

const INSERT: &str = "INSERT INTO waypoint SELECT * FROM unnest($1::waypoint[])";

/// Leaves a waypoint for every entry that deserves one.
pub async fn leave(session: &mut Session, entries: &[Entry]) -> Result<(), StoreError> {
    let mut rows = RowArray::new(session.row_types().waypoint, 4, 16, 80);
    for entry in entries.iter().filter(|e| e.version % EntryKind::WAYPOINT_INTERVAL == 0) {
        rows.row().text(entry.account.as_str()).int8(entry.version).int8(entry.position.0).int8(entry.created_at_us);
    }
    if rows.rows() == 0 {
        return Ok(());
    }
    session.insert(INSERT, rows).await
}
