//! What clients ordered, as tables that are derived from a shard's journal: of the slots that the shard owns, because a move of slots leaves
//! copies behind. They are parts of statements for
//! [`database::number`](crate::database::number) and its neighbours: `SELECT count(*) FROM {TRANSFERS} WHERE …`.

/// Columns: `id`, `debit`, `credit`, `amount`, `cross_shard`, `reversed`, and `status`: 1 pending, 2 posted, 3 rejected.
pub const TRANSFERS: &str = "(SELECT f.id, f.payer AS debit, f.payee AS credit, f.amount, \
       f.kind IN (13, 14) OR f.cross_shard IS TRUE AS cross_shard, \
       coalesce((SELECT sum(r.amount) FROM journal r \
                 WHERE r.reverses = f.id AND r.payee = f.payer AND r.kind IN (11, 31)), 0)::int8 AS reversed, \
       (CASE WHEN f.kind = 11 OR s.kind = 21 THEN 2 WHEN f.kind = 12 OR s.kind IS NOT NULL THEN 3 ELSE 1 END)::int2 AS status \
     FROM journal f LEFT JOIN journal s ON s.id = f.id AND s.payer = f.payer AND s.role = 2 \
     WHERE f.role = 1 AND f.payer_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) transfer";

/// Columns: `id`, `debit`, `credit`, `amount`, `credited`.
pub const REGISTERS: &str = "(SELECT id, payer AS debit, payee AS credit, amount, kind = 31 AS credited \
     FROM journal WHERE role = 3 AND payee_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) register";

/// Columns: `id`, `debit`, `captured`, `capture_id`, `expires_at_us`, `ended_at_us`, and `status`: 1 held, 2 captured,
/// 3 released, 4 expired, 5 rejected.
pub const HOLDS: &str = "(SELECT f.id, f.payer AS debit, coalesce(e.captured, o.captured, 0) AS captured, o.capture_id, \
       f.expires_at_us, e.at_us AS ended_at_us, \
       (CASE WHEN f.kind = 42 THEN 5 WHEN e.kind = 51 THEN 2 WHEN e.kind = 52 THEN 3 WHEN e.kind = 53 THEN 4 ELSE 1 END)::int2 \
         AS status \
     FROM journal f LEFT JOIN journal e ON e.id = f.id AND e.payer = f.payer AND e.role = 5 \
       LEFT JOIN hold o ON o.id = f.id AND o.payer = f.payer \
     WHERE f.role = 4 AND f.payer_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) hold";

/// The newest balance of every client account, folded or not. Columns: `id`, `posted`. Ids that begin with `@` are the
/// shard's own.
pub const BALANCES: &str = "(SELECT DISTINCT ON (id) id, posted FROM ( \
         SELECT payer AS id, payer_version AS version, payer_posted AS posted FROM journal \
         WHERE payer_version IS NOT NULL AND payer_slot IN (SELECT slot FROM slot_ownership WHERE state = 1) \
         UNION ALL \
         SELECT payee, payee_version, payee_posted FROM journal \
         WHERE payee_version IS NOT NULL AND payee_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)) leg \
       WHERE id NOT LIKE '@%' ORDER BY id, version DESC) balance";
