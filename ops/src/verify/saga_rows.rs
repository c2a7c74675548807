//! Reads cross-shard transfers and verdicts from the snapshots into the comparison, row by row.

use futures_util::TryStreamExt;
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::sagas::{Comparison, Reserve, ReserveState, SagaKey, ShardIndex, Verdict};

/// Verdicts looked up at a time.
const LOOK_UPS: usize = 10_000;

// Accounts, asset and amount are read as hashes: a million rows take 60 bytes each instead of the full names.
const VERDICTS: &str = "
    SELECT transfer_id, hashtextextended(debit, 0) AS debit,
           hashtextextended(concat_ws(' ', credit, asset, amount), 0) AS content, credited
    FROM shardledger.register";
const VERDICTS_BY_ID: &str = "
    SELECT transfer_id, hashtextextended(debit, 0) AS debit,
           hashtextextended(concat_ws(' ', credit, asset, amount), 0) AS content, credited
    FROM shardledger.register WHERE transfer_id = ANY($1)";
/// Selects transfers that reserved; a transfer refused at the reserve never left its shard.
const RESERVES: &str = "
    SELECT id, hashtextextended(debit, 0) AS debit,
           hashtextextended(concat_ws(' ', credit, asset, amount), 0) AS content, status
    FROM shardledger.transfer WHERE cross_shard AND debit_position IS NOT NULL";

pub async fn load_early_verdicts(
    comparison: &mut Comparison,
    shard: ShardIndex,
    snapshot: &mut PgConnection,
) -> sqlx::Result<()> {
    let mut rows = sqlx::query(VERDICTS).fetch(snapshot);
    while let Some(row) = rows.try_next().await? {
        comparison.early_verdict(shard, verdict(&row)?);
    }
    Ok(())
}

pub async fn load_reserves(
    comparison: &mut Comparison,
    shard: ShardIndex,
    snapshot: &mut PgConnection,
) -> sqlx::Result<()> {
    let mut rows = sqlx::query(RESERVES).fetch(snapshot);
    while let Some(row) = rows.try_next().await? {
        let key = SagaKey { id: row.try_get("id")?, debit: row.try_get("debit")? };
        let state = match row.try_get::<i16, _>("status")? {
            1 => ReserveState::Pending,
            3 => ReserveState::Rejected,
            _ => ReserveState::Posted,
        };
        comparison.reserve(shard, Reserve { key, content: row.try_get("content")?, state });
    }
    Ok(())
}

pub async fn load_late_verdicts(
    comparison: &mut Comparison,
    wanted: &[SagaKey],
    shard: ShardIndex,
    snapshot: &mut PgConnection,
) -> sqlx::Result<()> {
    for keys in wanted.chunks(LOOK_UPS) {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.id).collect();
        let mut rows = sqlx::query(VERDICTS_BY_ID).bind(ids).fetch(&mut *snapshot);
        while let Some(row) = rows.try_next().await? {
            comparison.late_verdict(shard, verdict(&row)?);
        }
    }
    Ok(())
}

fn verdict(row: &PgRow) -> sqlx::Result<Verdict> {
    let key = SagaKey { id: row.try_get("transfer_id")?, debit: row.try_get("debit")? };
    Ok(Verdict { key, content: row.try_get("content")?, credited: row.try_get("credited")? })
}
