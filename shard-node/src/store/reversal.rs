//! `reversal`: links from a transfer to its reversals. Their sum is in the transfer's row.

use ledger::batch::{NewReversal, Reversed};

use super::{
    StoreError,
    session::{Session, check_rows},
    slot_column,
};

const INSERT: &str = "INSERT INTO shardledger.reversal (original, debit, reversal, slot, amount, created_at_us) \
     SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::int4[], $5::int8[], $6::int8[])";

pub async fn insert(session: &mut Session, reversals: &[NewReversal]) -> Result<(), StoreError> {
    let originals: Vec<uuid::Uuid> = reversals.iter().map(|r| r.original.id.0).collect();
    let debits: Vec<&str> = reversals.iter().map(|r| r.original.debit.as_str()).collect();
    let ids: Vec<uuid::Uuid> = reversals.iter().map(|r| r.reversal.0).collect();
    let slots: Vec<i32> = reversals.iter().map(|r| slot_column(&r.original.debit)).collect();
    let amounts: Vec<i64> = reversals.iter().map(|r| r.amount).collect();
    let times: Vec<i64> = reversals.iter().map(|r| r.at_us).collect();
    session
        .run(async |c| {
            sqlx::query(INSERT)
                .bind(originals)
                .bind(debits)
                .bind(ids)
                .bind(slots)
                .bind(amounts)
                .bind(times)
                .execute(c)
                .await
        })
        .await
        .map(|_| ())
}

// `status + 0` as in `transfer::settle`.
const UPDATE: &str = "UPDATE shardledger.transfer AS t SET reversed = u.after \
     FROM unnest($1::uuid[], $2::text[], $3::int8[], $4::int8[]) AS u(id, debit, before, after) \
     WHERE t.id = u.id AND t.debit = u.debit AND t.reversed = u.before AND t.status + 0 = 2";

/// Writes how much of a transfer is reversed, over the amount that the batch was decided on.
pub async fn update_originals(session: &mut Session, reversed: &[Reversed]) -> Result<(), StoreError> {
    let ids: Vec<uuid::Uuid> = reversed.iter().map(|r| r.original.id.0).collect();
    let debits: Vec<&str> = reversed.iter().map(|r| r.original.debit.as_str()).collect();
    let before: Vec<i64> = reversed.iter().map(|r| r.before).collect();
    let after: Vec<i64> = reversed.iter().map(|r| r.after).collect();
    let touched = session
        .run(async |c| {
            let done = sqlx::query(UPDATE).bind(ids).bind(debits).bind(before).bind(after).execute(c).await?;
            Ok(done.rows_affected())
        })
        .await?;
    check_rows("the update of reversed transfers", reversed.len() as u64, touched)
}
