//! How much of a shard is in each slot, for the planner.

use std::collections::BTreeMap;

use sqlx::Row;

use super::{MoveError, Moves, source::Part};
use crate::store::{moves as tables, session::column};

/// The write rate of a slot is measured over so many positions.
const RECENT: i64 = 200_000;

impl Moves {
    /// Counts accounts and recent legs by slot. Reads every row of `account`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(&self) -> Result<wire::LoadResponse, MoveError> {
        const ACCOUNTS: &str = "SELECT a.slot, count(*)::int8 AS accounts FROM shardledger.account a \
             JOIN shardledger.slot_ownership o ON o.slot = a.slot AND o.state = 1 GROUP BY a.slot";
        const LEGS: &str = "SELECT slot, count(*)::int8 AS legs FROM ( \
               SELECT payer_slot::int4 AS slot FROM shardledger.journal WHERE position > $1 AND position <= $2 AND payer_version IS NOT NULL \
               UNION ALL \
               SELECT payee_slot::int4 FROM shardledger.journal WHERE position > $1 AND position <= $2 AND payee_version IS NOT NULL) AS leg \
             GROUP BY slot";
        const TIMES: &str = "SELECT coalesce(max(at_us) - min(at_us), 0)::int8 FROM shardledger.journal WHERE position > $1 AND position <= $2";
        const SIZE: &str = "SELECT (pg_catalog.pg_total_relation_size('shardledger.journal') \
             + pg_catalog.pg_total_relation_size('shardledger.account'))::int8 AS bytes, \
             (SELECT greatest(reltuples, 0)::int8 FROM pg_catalog.pg_class WHERE oid = 'shardledger.journal'::regclass) AS bookings";
        let own = Part::own(self.number()?);
        let mut connection = self.connection().await?;
        let mut slots: BTreeMap<i32, wire::SlotLoad> = BTreeMap::new();
        for row in sqlx::query(ACCOUNTS).fetch_all(&mut *connection).await? {
            let slot: i32 = column(&row, "slot")?;
            let accounts = column(&row, "accounts")?;
            let load = wire::SlotLoad { slot: u32::try_from(slot).unwrap_or(0), accounts, recent_legs: 0 };
            slots.insert(slot, load);
        }
        let highest = tables::highest(&mut connection, own.after, own.last).await?.unwrap_or(own.after);
        let after = own.after.max(highest - RECENT);
        for row in sqlx::query(LEGS).bind(after).bind(highest).fetch_all(&mut *connection).await? {
            let slot: i32 = column(&row, "slot")?;
            if let Some(load) = slots.get_mut(&slot) {
                load.recent_legs = column(&row, "legs")?;
            }
        }
        let recent_us = sqlx::query_scalar(TIMES).bind(after).bind(highest).fetch_one(&mut *connection).await?;
        let size = sqlx::query(SIZE).fetch_one(&mut *connection).await?;
        Ok(wire::LoadResponse {
            slots: slots.into_values().collect(),
            bytes: size.try_get("bytes")?,
            bookings: size.try_get("bookings")?,
            recent_us,
        })
    }
}
