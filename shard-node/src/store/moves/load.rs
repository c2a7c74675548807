//! The statements that tell what a shard has: in each slot, and altogether.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use super::tables;
use crate::{
    moves::{error::MoveError, id_to_wire, phase::Phase},
    store::session::column,
};

/// Rows of each kind are counted up to this number.
const MOST: i64 = 1_000_000;
/// How long a count may take, in milliseconds.
const COUNTED_WITHIN_MS: u32 = 4_000;

/// Counts accounts and their legs by slot. Reads every row of `account`.
pub async fn load(connection: &mut PgConnection) -> Result<wire::LoadResponse, MoveError> {
    // The version of an account is the number of its legs.
    const ACCOUNTS: &str = "SELECT a.slot, count(*)::int8 AS accounts, sum(a.version)::int8 AS legs FROM shardledger.account a \
         JOIN shardledger.slot_ownership o ON o.slot = a.slot AND o.state = 1 GROUP BY a.slot";
    const SIZE: &str = "SELECT (pg_catalog.pg_total_relation_size('shardledger.journal') \
         + pg_catalog.pg_total_relation_size('shardledger.account'))::int8 AS bytes, \
         (SELECT greatest(reltuples, 0)::int8 FROM pg_catalog.pg_class WHERE oid = 'shardledger.journal'::regclass) AS bookings";
    let mut slots = Vec::new();
    for row in sqlx::query(ACCOUNTS).fetch_all(&mut *connection).await? {
        let slot: i32 = column(&row, "slot")?;
        slots.push(wire::SlotLoad {
            slot: u32::try_from(slot).unwrap_or(0),
            accounts: column(&row, "accounts")?,
            legs: column(&row, "legs")?,
        });
    }
    let size = sqlx::query(SIZE).fetch_one(connection).await?;
    Ok(wire::LoadResponse { slots, bytes: size.try_get("bytes")?, bookings: size.try_get("bookings")? })
}

/// Waits until each move that begins is visible, and counts the client data that is still on the shard, up to [`MOST`] of each. The shard's own
/// in-transit accounts do not count as accounts.
///
/// # Errors
/// When the database does not answer within [`COUNTED_WITHIN_MS`].
pub async fn count_client_data(pool: &PgPool, after_moves: bool) -> Result<wire::ClientDataResponse, MoveError> {
    const COUNTS: &str = "SELECT \
         (SELECT count(*) FROM shardledger.slot_ownership WHERE state IN (1, 3)) AS slots, \
         (SELECT count(*) FROM (SELECT FROM shardledger.account WHERE slot >= 0 LIMIT $2) AS a) AS accounts, \
         (SELECT count(*) FROM (SELECT FROM shardledger.hold LIMIT $2) AS h) AS holds, \
         (SELECT count(*) FROM (SELECT FROM shardledger.saga LIMIT $2) AS s) AS sagas, \
         (SELECT count(*) FROM (SELECT FROM shardledger.account a WHERE a.slot >= 0 \
            AND NOT EXISTS (SELECT FROM shardledger.slot_ownership o WHERE o.slot = a.slot AND o.state IN (1, 3)) \
            AND NOT EXISTS (SELECT FROM shardledger.slot_move m WHERE a.slot <@ m.slots AND m.phase = ANY($1)) LIMIT $2) AS o) AS orphans";
    // A row may be behind the journal until the fold has written it.
    const IN_TRANSIT: &str =
        "SELECT asset, posted::text AS posted FROM shardledger.account WHERE slot < 0 AND posted <> 0";
    if after_moves {
        // A move that begins now is visible when the lock was granted. It is not held during the count: a cut-over would wait for it.
        let mut locked = pool.begin().await?;
        tables::lock(&mut locked).await?;
        locked.commit().await?;
    }
    let mut transaction = pool.begin().await?;
    let limit = format!("SET LOCAL statement_timeout = {COUNTED_WITHIN_MS}");
    sqlx::query(AssertSqlSafe(limit)).execute(&mut *transaction).await?;
    let open: Vec<i16> = Phase::ALL.into_iter().filter(|phase| phase.is_open()).map(Phase::code).collect();
    let counts = sqlx::query(COUNTS).bind(open).bind(MOST).fetch_one(&mut *transaction).await?;
    let in_transit = sqlx::query(IN_TRANSIT).fetch_all(&mut *transaction).await?;
    let in_transit = in_transit.iter().map(|row| {
        let (asset, posted) = (column(row, "asset")?, column(row, "posted")?);
        Ok(wire::MoveAssetSum { asset, posted, shares: "0".to_owned() })
    });
    let open = tables::list(&mut transaction).await?.into_iter().filter(|row| row.phase.is_open());
    let answer = wire::ClientDataResponse {
        slots: column(&counts, "slots")?,
        accounts: column(&counts, "accounts")?,
        holds: column(&counts, "holds")?,
        sagas: column(&counts, "sagas")?,
        moves: open.map(|row| id_to_wire(row.id)).collect(),
        orphaned_accounts: column(&counts, "orphans")?,
        in_transit: in_transit.collect::<Result<_, MoveError>>()?,
    };
    transaction.commit().await?;
    Ok(answer)
}
