//! `waypoint`: every 64th version of an account, to enter its chain of entries near any version or time.

use ledger::journal::{Entry, EntryKind};

use super::row_array::{RowArray, RowType};

/// A row for every entry that deserves a waypoint.
pub fn rows(row_type: RowType, entries: &[Entry]) -> RowArray {
    let mut rows = RowArray::new(row_type, 4, 16, 80);
    for entry in entries.iter().filter(|e| e.version % EntryKind::WAYPOINT_INTERVAL == 0) {
        rows.row().text(entry.account.as_str()).int8(entry.version).int8(entry.position.0).int8(entry.created_at_us);
    }
    rows
}
