//! The passes over one shard's snapshot. Each pass is one statement that returns the violations.
//!
//! Every statement is a set operation (aggregate, hash join) over whole tables, so that a million transfers take
//! seconds. Each returns `(invariant, subject, detail, total)`: at most `$1` rows for each invariant, and the number
//! of all its violations.
//!
//! Codes in the SQL: entry kinds 3 posted, 4 reserved, 5 compensated, 6 held, 7 captured, 8 released, 9 expired
//! ([`ledger::journal::EntryKind`]); transfer status 1 pending, 2 posted, 3 rejected; hold status 1 held. Accounts that begin
//! with `@` are the shard's own in-transit accounts.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{
    invariant::Invariant,
    report::{Findings, Violation},
};

/// One pass over one shard.
pub struct Pass {
    /// The title that the progress bar shows.
    pub title: &'static str,
    /// Selects the violations as `(invariant, subject, detail)`.
    sql: &'static str,
}

pub const PASSES: [Pass; 8] = [
    Pass { title: "sums", sql: SUMS },
    Pass { title: "in transit", sql: IN_TRANSIT },
    Pass { title: "transfers against journal", sql: LEGS },
    Pass { title: "holds", sql: HOLDS },
    Pass { title: "reversals", sql: REVERSALS },
    Pass { title: "floors", sql: FLOORS },
    Pass { title: "chains", sql: CHAINS },
    Pass { title: "accounts against journal", sql: HEADS },
];

/// Limits the number of returned rows and counts the others.
const BOUNDED: (&str, &str) = (
    "SELECT invariant, subject, detail, total FROM (
         SELECT invariant, subject, detail, count(*) OVER (PARTITION BY invariant) AS total,
                row_number() OVER (PARTITION BY invariant ORDER BY subject, detail) AS place
         FROM (",
    ") violations) counted WHERE place <= $1 ORDER BY invariant, place",
);

impl Pass {
    pub async fn run(&self, snapshot: &mut PgConnection, examples: i64) -> sqlx::Result<Findings> {
        // Both parts are constants of this file.
        let statement = AssertSqlSafe([BOUNDED.0, self.sql, BOUNDED.1].concat());
        let rows = sqlx::query(statement).bind(examples).fetch_all(snapshot).await?;
        let mut findings = Findings::default();
        for row in rows {
            let name: &str = row.try_get("invariant")?;
            let invariant = Invariant::from_name(name).ok_or_else(|| {
                sqlx::Error::Decode(format!("pass {:?} names no invariant: {name}", self.title).into())
            })?;
            let total: i64 = row.try_get("total")?;
            findings.count_in_full(invariant, u64::try_from(total).unwrap_or_default());
            findings.add_example(
                invariant,
                Violation { subject: row.try_get("subject")?, detail: row.try_get("detail")? },
            );
        }
        Ok(findings)
    }
}

const SUMS: &str = "
    SELECT 'I1' AS invariant, asset::text AS subject, format('accounts sum to %s minor units', sum(posted)) AS detail
    FROM shardledger.account GROUP BY asset HAVING sum(posted) <> 0
    UNION ALL
    SELECT 'I1', account::text, format('entry %s of kind %s moves %s minor units for no transfer', position, kind, amount)
    FROM shardledger.journal WHERE transfer_id IS NULL AND amount <> 0";

/// The in-transit account equals the reserves that were not given back, less the credits made on this shard.
const IN_TRANSIT: &str = "
    SELECT 'I2' AS invariant, asset::text AS subject,
           format('in transit are %s minor units, the sagas account for %s', coalesce(held, 0), coalesce(due, 0)) AS detail
    FROM (SELECT asset, sum(amount) AS due
          FROM (SELECT asset, amount::numeric FROM shardledger.transfer
                WHERE cross_shard AND debit_position IS NOT NULL AND status <> 3
                UNION ALL
                SELECT asset, -amount::numeric FROM shardledger.register WHERE credited) moved
          GROUP BY asset) expected
    FULL JOIN (SELECT asset, sum(posted) AS held FROM shardledger.account WHERE id LIKE '@in-transit:%' GROUP BY asset) found
    USING (asset)
    WHERE coalesce(held, 0) <> coalesce(due, 0)";

/// Compares the journal's entries of each transfer with what the rows of the transfer and the register require.
const LEGS: &str = "
    SELECT invariant, subject, format('debit %s: %s', debit, detail) AS detail
    FROM (
        SELECT id::text AS subject, debit,
               CASE WHEN debits + reserves + captures > 1 OR credits > 1 OR compensations > 1 OR (credits > 0 AND compensations > 0)
                    THEN 'I4'
                    WHEN balance <> 0 OR NOT (cross_shard OR decided) THEN 'I1'
                    WHEN status IN (2, 3) THEN 'I8'
                    ELSE 'I2' END AS invariant,
               format('%s debits, %s credits, %s reserves, %s captures, %s compensations, %s/%s/%s in transit, %s unknown, sum %s; '
                      'expected %s debits, %s credits, %s reserves, %s captures, %s compensations (transfer %s, register %s)',
                      debits, credits, reserves, captures, compensations, transit_in, transit_out, transit_back, unknown,
                      balance, local_due * payment, local_due + credit_due, reserve_due * payment, capture_due,
                      compensation_due,
                      coalesce('of status ' || status, 'absent'),
                      CASE WHEN NOT decided THEN 'absent' WHEN credit_due = 1 THEN 'credited' ELSE 'refused' END) AS detail
        FROM (
            SELECT coalesce(t.id, l.transfer_id, r.transfer_id) AS id, coalesce(t.debit, l.debit, r.debit) AS debit,
                   t.status, coalesce(t.cross_shard, FALSE) AS cross_shard, r.transfer_id IS NOT NULL AS decided,
                   coalesce(l.balance, 0) AS balance,
                   coalesce(l.debits, 0) AS debits, coalesce(l.credits, 0) AS credits,
                   coalesce(l.reserves, 0) AS reserves, coalesce(l.compensations, 0) AS compensations,
                   coalesce(l.captures, 0) AS captures, (t.hold IS NULL)::int AS payment,
                   (t.hold IS NOT NULL AND t.debit_position IS NOT NULL)::int AS capture_due,
                   coalesce(l.transit_in, 0) AS transit_in, coalesce(l.transit_out, 0) AS transit_out,
                   coalesce(l.transit_back, 0) AS transit_back, coalesce(l.unknown, 0) AS unknown,
                   coalesce(NOT t.cross_shard AND t.status = 2, FALSE)::int AS local_due,
                   coalesce(t.cross_shard AND t.debit_position IS NOT NULL, FALSE)::int AS reserve_due,
                   coalesce(t.cross_shard AND t.debit_position IS NOT NULL AND t.status = 3, FALSE)::int
                       AS compensation_due,
                   coalesce(r.credited, FALSE)::int AS credit_due,
                   l.least, l.most, l.payee, coalesce(t.amount, r.amount) AS amount, coalesce(t.credit, r.credit) AS credit
            FROM (
                SELECT transfer_id,
                       CASE WHEN transit OR (kind = 3 AND amount > 0) THEN counterparty ELSE account END AS debit,
                       sum(amount) AS balance, min(abs(amount)) AS least, max(abs(amount)) AS most,
                       count(*) FILTER (WHERE kind = 3 AND amount < 0 AND NOT transit) AS debits,
                       count(*) FILTER (WHERE kind = 3 AND amount > 0 AND NOT transit) AS credits,
                       max(account) FILTER (WHERE kind = 3 AND amount > 0 AND NOT transit) AS payee,
                       count(*) FILTER (WHERE kind = 4 AND amount < 0 AND NOT transit) AS reserves,
                       count(*) FILTER (WHERE kind = 7 AND amount < 0 AND NOT transit) AS captures,
                       count(*) FILTER (WHERE kind = 5 AND amount > 0 AND NOT transit) AS compensations,
                       count(*) FILTER (WHERE kind = 4 AND amount > 0 AND transit) AS transit_in,
                       count(*) FILTER (WHERE kind = 3 AND amount < 0 AND transit) AS transit_out,
                       count(*) FILTER (WHERE kind = 5 AND amount < 0 AND transit) AS transit_back,
                       count(*) FILTER (WHERE kind NOT IN (3, 4, 5, 7) OR amount = 0
                                           OR (amount > 0) <> CASE WHEN transit THEN kind = 4
                                                                   ELSE kind = 5 OR (kind = 3 AND amount > 0) END)
                           AS unknown
                FROM (SELECT transfer_id, account, counterparty, kind, amount, account LIKE '@%' AS transit
                      FROM shardledger.journal WHERE transfer_id IS NOT NULL AND kind NOT IN (6, 8, 9)) entry
                GROUP BY 1, 2
            ) l
            FULL JOIN shardledger.transfer t ON t.id = l.transfer_id AND t.debit = l.debit
            FULL JOIN shardledger.register r ON r.transfer_id = coalesce(t.id, l.transfer_id) AND r.debit = coalesce(t.debit, l.debit)
        ) joined
        WHERE balance <> 0 OR unknown > 0
           OR debits <> local_due * payment OR credits <> local_due + credit_due
           OR captures <> capture_due OR reserves <> reserve_due * payment OR transit_in <> reserve_due
           OR compensations <> compensation_due OR transit_back <> compensation_due
           OR transit_out <> credit_due
           OR least <> amount OR most <> amount OR payee <> credit
    ) judged";

/// An account's held amount is what remains of its holds. A capture in flight belongs to its hold and to a pending
/// transfer.
const HOLDS: &str = "
    SELECT 'I8' AS invariant, coalesce(account, debit)::text AS subject,
           format('the account holds %s minor units, its holds %s', coalesce(held, 0), coalesce(due, 0)) AS detail
    FROM (SELECT id AS account, held FROM shardledger.account WHERE held <> 0) found
    FULL JOIN (SELECT debit, sum(amount - captured - capture_amount) AS due FROM shardledger.hold WHERE status = 1 GROUP BY debit
               HAVING sum(amount - captured - capture_amount) <> 0) expected ON account = debit
    WHERE coalesce(held, 0) <> coalesce(due, 0)
    UNION ALL
    SELECT 'I8', h.id::text, format('debit %s: %s captured, its captures come to %s', h.debit, h.captured, coalesce(c.sum, 0))
    FROM shardledger.hold h
    LEFT JOIN (SELECT hold, debit, sum(amount) AS sum FROM shardledger.transfer WHERE hold IS NOT NULL AND status = 2
               GROUP BY hold, debit) c ON c.hold = h.id AND c.debit = h.debit
    WHERE h.captured <> coalesce(c.sum, 0)
    UNION ALL
    SELECT 'I8', h.id::text, format('debit %s: capture %s of %s is said to be in flight, and is not', h.debit, h.capture_id, h.capture_amount)
    FROM shardledger.hold h
    LEFT JOIN shardledger.transfer t ON t.id = h.capture_id AND t.debit = h.debit AND t.hold = h.id AND t.status = 1
      AND t.refusal IS NULL AND t.amount = h.capture_amount
    WHERE h.capture_id IS NOT NULL AND t.id IS NULL";

/// The reversed amount of a transfer is the sum of its reversals, and each reversal was paid back.
const REVERSALS: &str = "
    SELECT 'I4' AS invariant, t.id::text AS subject,
           format('debit %s: %s of %s reversed, its reversals come to %s', t.debit, t.reversed, t.amount, coalesce(r.sum, 0)) AS detail
    FROM shardledger.transfer t
    FULL JOIN (SELECT original, debit, sum(amount) AS sum FROM shardledger.reversal GROUP BY original, debit) r
      ON r.original = t.id AND r.debit = t.debit
    WHERE coalesce(t.reversed, 0) <> coalesce(r.sum, 0)
    UNION ALL
    SELECT 'I4', r.reversal::text, format('reverses %s of %s by %s, and was never paid back', r.original, r.debit, r.amount)
    FROM shardledger.reversal r
    JOIN shardledger.transfer o ON o.id = r.original AND o.debit = r.debit
    LEFT JOIN shardledger.transfer l ON l.id = r.reversal AND l.debit = o.credit AND l.status = 2 AND l.amount = r.amount
    LEFT JOIN shardledger.register g ON g.transfer_id = r.reversal AND g.debit = o.credit AND g.credited AND g.amount = r.amount
    WHERE l.id IS NULL AND g.transfer_id IS NULL";

/// The floor is checked without adding balances: they may come from a damaged row and overflow.
const FLOORS: &str = "
    SELECT 'I9' AS invariant, account::text AS subject,
           format('version %s: posted %s, held %s, overdraft %s', version, posted, held, overdraft) AS detail
    FROM shardledger.journal WHERE overdraft IS NOT NULL AND posted < held - overdraft";

/// Compares each entry with its predecessor. Entries of two accounts may share a position. A moved account brings its
/// whole chain, so positions need not grow along the chain.
const CHAINS: &str = "
    SELECT CASE WHEN coalesce(linked, FALSE) THEN 'I13' ELSE 'I10' END AS invariant, account::text AS subject,
           CASE WHEN coalesce(linked, FALSE)
                THEN format('version %s of kind %s: posted %s, held %s; before it %s, %s; amount %s', version, kind, posted, held,
                            before, held_before, amount)
                ELSE format('version %s at position %s: the entry before it, at %s, is %s', version, position, previous,
                            coalesce('version ' || before_version, 'missing')) END AS detail
    FROM (
        SELECT j.account, j.version, j.position, j.previous, j.kind, j.posted, j.held, j.amount,
               coalesce(p.held, 0) AS held_before, p.version AS before_version, coalesce(p.posted, 0) AS before,
               CASE WHEN j.version = 1 THEN j.previous = 0 ELSE p.version = j.version - 1 END AS linked,
               j.posted::numeric - j.amount = coalesce(p.posted, 0)
                   AND CASE j.kind WHEN 6 THEN j.held > coalesce(p.held, 0)
                                   WHEN 7 THEN j.held = coalesce(p.held, 0)::numeric + j.amount
                                   WHEN 5 THEN j.held - coalesce(p.held, 0)::numeric IN (0, j.amount)
                                   WHEN 8 THEN j.held < coalesce(p.held, 0)
                                   WHEN 9 THEN j.held < coalesce(p.held, 0)
                                   ELSE j.held = coalesce(p.held, 0) END AS folds
        FROM shardledger.journal j LEFT JOIN shardledger.journal p ON p.position = j.previous AND p.account = j.account
    ) linked
    WHERE NOT coalesce(linked, FALSE) OR NOT folds
    UNION ALL
    SELECT 'I10', w.account::text, format('the waypoint of version %s points to position %s, which is not it', w.version, w.position)
    FROM shardledger.waypoint w LEFT JOIN shardledger.journal j ON j.position = w.position AND j.account = w.account
    WHERE j.version IS DISTINCT FROM w.version";

/// If every entry is linked to the previous version, and the number of entries equals the newest version, the chain
/// has no gaps and no branches.
const HEADS: &str = "
    SELECT CASE WHEN gapless THEN 'I13' ELSE 'I10' END AS invariant, id::text AS subject, detail
    FROM (
        SELECT coalesce(a.id, f.account) AS id,
               a.id IS NULL OR coalesce(f.entries = a.version AND f.version = a.version, FALSE) AS gapless,
               CASE WHEN a.id IS NULL THEN format('%s entries of an account that has no row', f.entries)
                    ELSE format('row: version %s, posted %s, held %s, head %s; journal: %s entries to version %s, sum %s; head: '
                                'version %s, posted %s, held %s', a.version, a.posted, a.held, a.head, coalesce(f.entries, 0),
                                coalesce(f.version, 0), coalesce(f.posted, 0), coalesce(h.version::text, 'none'),
                                coalesce(h.posted::text, '-'), coalesce(h.held::text, '-')) END AS detail,
               coalesce(f.entries = a.version AND f.version = a.version AND f.posted = a.posted
                        AND h.version = a.version AND h.posted = a.posted AND h.held = a.held
                        AND h.overdraft IS NOT DISTINCT FROM a.overdraft, FALSE) AS holds
        FROM shardledger.account a
        FULL JOIN (SELECT account, count(*) AS entries, max(version) AS version, sum(amount) AS posted
                   FROM shardledger.journal GROUP BY account) f ON f.account = a.id
        LEFT JOIN shardledger.journal h ON h.position = a.head AND h.account = a.id
    ) compared
    WHERE NOT holds";
