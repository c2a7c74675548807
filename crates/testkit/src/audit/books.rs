//! Transfers, registers and balances as the shards' databases hold them.

use std::collections::HashMap;

use anyhow::Context;
use futures_util::future::try_join_all;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::{
    cluster::Status,
    database::{self, BALANCES, HOLDS, REGISTERS, TRANSFERS},
};

/// The contents of all shards together.
#[derive(Debug, Default)]
pub struct Books {
    /// Transfers by id. Two transfers with one id are a finding.
    pub transfers: HashMap<Uuid, Vec<StoredTransfer>>,
    pub registers: HashMap<Uuid, Vec<StoredRegister>>,
    /// Whether slots have moved, so that a transfer and its register may be on one shard.
    pub has_moved: bool,
    /// The posted balance of every client account.
    pub balances: Vec<(String, i64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferStatus {
    Pending,
    Posted,
    Rejected,
    Other(i16),
}

#[derive(Debug, Clone)]
pub struct StoredTransfer {
    pub shard: String,
    pub debit: String,
    pub credit: String,
    pub amount: i64,
    pub cross_shard: bool,
    pub status: TransferStatus,
}

#[derive(Debug, Clone)]
pub struct StoredRegister {
    pub shard: String,
    pub credited: bool,
}

const IDLE_IN_TRANSACTION: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE usename = current_user AND state LIKE 'idle in transaction%'";
const MOVED: &str = "SELECT count(*) FROM slot_ownership WHERE epoch > 1";
/// Counts open holds that have an expiry. Ended holds have no row.
const EXPIRING_HOLDS: &str = "SELECT count(*) FROM hold WHERE expires_at_us IS NOT NULL \
     AND payer_slot IN (SELECT slot FROM slot_ownership WHERE state = 1)";

/// Counts the sagas under way on all shards.
pub async fn pending(status: &Status) -> anyhow::Result<i64> {
    total(status, &format!("SELECT count(*) FROM {TRANSFERS} WHERE status = 1")).await
}

/// Counts the holds on all shards.
pub async fn holds(status: &Status) -> anyhow::Result<i64> {
    total(status, &format!("SELECT count(*) FROM {HOLDS}")).await
}

/// Counts the holds on all shards that will expire.
pub async fn expiring_holds(status: &Status) -> anyhow::Result<i64> {
    total(status, EXPIRING_HOLDS).await
}

/// Counts the sessions on all shards that are idle inside a transaction.
pub async fn idle_in_transaction(status: &Status) -> anyhow::Result<i64> {
    total(status, IDLE_IN_TRANSACTION).await
}

async fn total(status: &Status, count: &str) -> anyhow::Result<i64> {
    let counts = status.shards.iter().map(async |shard| database::number(&shard.dsn, count).await);
    Ok(try_join_all(counts).await?.into_iter().sum())
}

impl Books {
    pub async fn read(status: &Status) -> anyhow::Result<Self> {
        let mut books = Self { has_moved: total(status, MOVED).await? > 0, ..Self::default() };
        for shard in &status.shards {
            let mut connection = database::connect(&shard.dsn).await?;
            books
                .read_shard(&shard.id, &mut connection)
                .await
                .with_context(|| format!("reading shard {}", shard.id))?;
        }
        Ok(books)
    }

    async fn read_shard(&mut self, shard: &str, connection: &mut PgConnection) -> anyhow::Result<()> {
        // `AssertSqlSafe` is right here, because all statements are constants.
        let select = |what: &str| AssertSqlSafe(format!("SELECT * FROM {what}"));
        for row in sqlx::query(select(TRANSFERS)).fetch_all(&mut *connection).await? {
            let status = match row.try_get("status")? {
                1 => TransferStatus::Pending,
                2 => TransferStatus::Posted,
                3 => TransferStatus::Rejected,
                other => TransferStatus::Other(other),
            };
            self.transfers.entry(row.try_get("id")?).or_default().push(StoredTransfer {
                shard: shard.to_owned(),
                debit: row.try_get("debit")?,
                credit: row.try_get("credit")?,
                amount: row.try_get("amount")?,
                cross_shard: row.try_get("cross_shard")?,
                status,
            });
        }
        for row in sqlx::query(select(REGISTERS)).fetch_all(&mut *connection).await? {
            let register = StoredRegister { shard: shard.to_owned(), credited: row.try_get("credited")? };
            self.registers.entry(row.try_get("id")?).or_default().push(register);
        }
        let balances = sqlx::query_as::<_, (String, i64)>(select(BALANCES)).fetch_all(&mut *connection).await?;
        self.balances.extend(balances);
        Ok(())
    }
}
