//! How much of a shard is in each slot, for the planner.

use sqlx::Row;

use super::{MoveError, Moves};
use crate::store::session::column;

impl Moves {
    /// Counts accounts and their legs by slot. Reads every row of `account`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(&self) -> Result<wire::LoadResponse, MoveError> {
        // The version of an account is the number of its legs.
        const ACCOUNTS: &str = "SELECT a.slot, count(*)::int8 AS accounts, sum(a.version)::int8 AS legs FROM shardledger.account a \
             JOIN shardledger.slot_ownership o ON o.slot = a.slot AND o.state = 1 GROUP BY a.slot";
        const SIZE: &str = "SELECT (pg_catalog.pg_total_relation_size('shardledger.journal') \
             + pg_catalog.pg_total_relation_size('shardledger.account'))::int8 AS bytes, \
             (SELECT greatest(reltuples, 0)::int8 FROM pg_catalog.pg_class WHERE oid = 'shardledger.journal'::regclass) AS bookings";
        let mut connection = self.connection().await?;
        let mut slots = Vec::new();
        for row in sqlx::query(ACCOUNTS).fetch_all(&mut *connection).await? {
            let slot: i32 = column(&row, "slot")?;
            slots.push(wire::SlotLoad {
                slot: u32::try_from(slot).unwrap_or(0),
                accounts: column(&row, "accounts")?,
                legs: column(&row, "legs")?,
            });
        }
        let size = sqlx::query(SIZE).fetch_one(&mut *connection).await?;
        Ok(wire::LoadResponse { slots, bytes: size.try_get("bytes")?, bookings: size.try_get("bookings")? })
    }
}
