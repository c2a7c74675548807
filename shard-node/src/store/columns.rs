//! The columns of each table by name. No statement selects `*`, so a column added to a table changes no statement,
//! prepared or not.

/// The columns of a table as a literal for `concat!`, in the order of its `…_row` type. `columns!(t: transfer)`
/// prefixes each with `t.`.
macro_rules! columns {
    (account) => {
        "id, slot, asset, status, posted, held, overdraft, max_balance, version, head, metadata, \
         created_at_us, updated_at_us"
    };
    (a: account) => {
        "a.id, a.slot, a.asset, a.status, a.posted, a.held, a.overdraft, a.max_balance, a.version, a.head, \
         a.metadata, a.created_at_us, a.updated_at_us"
    };
    (journal) => {
        "position, previous, account, slot, version, kind, amount, posted, held, overdraft, transfer_id, \
         counterparty, detail, created_at_us"
    };
    (waypoint) => {
        "account, version, position, created_at_us"
    };
    (transfer) => {
        "id, debit, slot, credit, asset, amount, metadata, cross_shard, status, refusal, side, \
         debit_position, created_at_us, finished_at_us, attempts, next_attempt_us, hold, final, reverses, \
         whole, reversed"
    };
    (t: transfer) => {
        "t.id, t.debit, t.slot, t.credit, t.asset, t.amount, t.metadata, t.cross_shard, t.status, t.refusal, \
         t.side, t.debit_position, t.created_at_us, t.finished_at_us, t.attempts, t.next_attempt_us, t.hold, \
         t.final, t.reverses, t.whole, t.reversed"
    };
    (register) => {
        "transfer_id, debit, credit, slot, asset, amount, credited, refusal, side, decided_at_us"
    };
    (hold) => {
        "id, debit, slot, credit, asset, amount, metadata, status, refusal, side, captured, capture_id, \
         capture_amount, expires_at_us, debit_position, created_at_us, ended_at_us"
    };
    (h: hold) => {
        "h.id, h.debit, h.slot, h.credit, h.asset, h.amount, h.metadata, h.status, h.refusal, h.side, \
         h.captured, h.capture_id, h.capture_amount, h.expires_at_us, h.debit_position, h.created_at_us, \
         h.ended_at_us"
    };
    // The columns of a journal entry that a walk along an account's chain returns.
    (j: entry) => {
        "j.position, j.previous, j.version, j.kind, j.amount, j.posted, j.held, j.overdraft, j.transfer_id, \
         j.counterparty, j.created_at_us"
    };
    // The debit account's entry of a transfer or hold.
    (j: debit_after) => {
        "j.version AS debit_version, j.posted AS debit_posted, j.held AS debit_held, j.overdraft AS debit_overdraft"
    };
}

/// An INSERT that takes an array of the table's row type as its parameter.
macro_rules! insert {
    ($table:ident, $parameter:literal) => {
        concat!(
            "INSERT INTO shardledger.",
            stringify!($table),
            " (",
            $crate::store::columns::columns!($table),
            ") SELECT ",
            $crate::store::columns::columns!($table),
            " FROM unnest(",
            $parameter,
            "::shardledger.",
            stringify!($table),
            "_row[])"
        )
    };
}

pub(super) use {columns, insert};
