//! One shard's database at one moment.

use std::time::Duration;

use shard_database::DatabaseUrl;
use sqlx::{Connection, PgConnection, Row};

use super::{Target, report::ShardSize};
use crate::exit::Unreachable;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Whole tables are aggregated and joined: memory instead of disk, and none of the time-outs meant for serving (one
/// shard's snapshot waits while another's is read). Compiling the plans costs more than it saves.
const SETTINGS: [(&str, &str); 4] =
    [("work_mem", "128MB"), ("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0"), ("jit", "off")];

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// The first statement that reads is what fixes the snapshot.
const IDENTITY: &str = "SELECT shard_id FROM shardledger.shard_identity";
const SIZE: &str = "SELECT (SELECT count(*) FROM shardledger.account) AS accounts, (SELECT count(*) FROM shardledger.journal) AS entries,
                           (SELECT count(*) FROM shardledger.transfer) AS transfers, (SELECT count(*) FROM shardledger.register) AS registers";

/// A read-only transaction that sees the shard as it was when it began.
pub struct Snapshot {
    pub shard: String,
    pub connection: PgConnection,
}

impl Snapshot {
    pub async fn take(target: &Target) -> anyhow::Result<Self> {
        let unreachable = |reason: String| Unreachable { what: format!("the database of {}", target.shard), reason };
        let url =
            DatabaseUrl::new(&target.dsn).map_err(|error| anyhow::anyhow!("the DSN of {} {error}", target.shard))?;
        let options = url.connect_options().options(SETTINGS).application_name("shardctl-verify");
        let mut connection = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options))
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|error| unreachable(error.to_string()))?;
        let found = Self::begin(&mut connection).await.map_err(|error| unreachable(error.to_string()))?;
        anyhow::ensure!(
            found.as_deref() == Some(target.shard.as_str()),
            "the database given for {} is {}",
            target.shard,
            found.as_deref().unwrap_or("of no shard: nothing has initialised it")
        );
        Ok(Self { shard: target.shard.clone(), connection })
    }

    async fn begin(connection: &mut PgConnection) -> sqlx::Result<Option<String>> {
        sqlx::query(BEGIN).execute(&mut *connection).await?;
        sqlx::query_scalar(IDENTITY).fetch_optional(connection).await
    }

    pub async fn size(&mut self) -> sqlx::Result<ShardSize> {
        let row = sqlx::query(SIZE).fetch_one(&mut self.connection).await?;
        Ok(ShardSize {
            id: self.shard.clone(),
            accounts: row.try_get("accounts")?,
            entries: row.try_get("entries")?,
            transfers: row.try_get("transfers")?,
            registers: row.try_get("registers")?,
        })
    }
}
