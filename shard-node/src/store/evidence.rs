//! What the lane writes in addition to bookings: marks of other shards (`peer_mark`) and the scale of each asset
//! (`asset_scale`).
//!
//! Both are written in the commit of the operations that bring them, as statements before COMMIT. Most batches bring
//! neither and pay for neither.

use std::fmt::Write;

use identity::{Mark, Marks};
use sqlx::PgPool;

use super::StoreError;

/// Statements that insert marks of other shards. A mark that is already stored is skipped.
pub fn insert_marks(marks: &Marks) -> String {
    let mut statement = String::new();
    let parts = marks.iter().flat_map(|(number, mark)| mark.parts().map(move |part| (number, part)));
    for (number, Mark { incarnation, timeline, position, .. }) in parts {
        let begin = if statement.is_empty() { INSERT_MARK } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(statement, "{begin}({number}, {incarnation}, {timeline}, {position})");
    }
    if !statement.is_empty() {
        statement.push_str(" ON CONFLICT DO NOTHING; ");
    }
    statement
}

const INSERT_MARK: &str = "INSERT INTO shardledger.peer_mark (shard_number, incarnation, timeline, position) VALUES ";

/// A statement that stores the scale of an asset that is new on this shard. An asset code consists of letters and
/// digits.
pub fn insert_scale(asset: ledger::AssetCode, scale: u32) -> String {
    format!("INSERT INTO shardledger.asset_scale (asset, scale) VALUES ('{asset}', {scale}); ")
}

const STORE_MARKS: &str = "INSERT INTO shardledger.peer_mark (shard_number, incarnation, timeline, position) \
     SELECT shard_number, incarnation, timeline, position \
     FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::int8[]) AS new(shard_number, incarnation, timeline, position) \
     ON CONFLICT DO NOTHING";
/// Deletes marks that are lower than the highest mark of their timeline. The highest mark of an earlier timeline stays: it is the
/// evidence if the next timeline began without it.
const PRUNE_MARKS: &str = "DELETE FROM shardledger.peer_mark AS old USING ( \
       SELECT DISTINCT ON (shard_number, incarnation, timeline) shard_number, incarnation, timeline, position \
       FROM shardledger.peer_mark ORDER BY shard_number, incarnation, timeline, position DESC) AS highest \
     WHERE highest.shard_number = old.shard_number AND highest.incarnation = old.incarnation \
       AND highest.timeline = old.timeline AND highest.position > old.position";

/// Stores marks outside the lane. They are evidence about other shards, and no decision of this shard depends on
/// them.
pub async fn store_marks(pool: &PgPool, marks: &Marks) -> Result<(), StoreError> {
    let (mut numbers, mut incarnations, mut timelines, mut positions) = (vec![], vec![], vec![], vec![]);
    for (number, mark) in marks.iter().flat_map(|(number, mark)| mark.parts().map(move |part| (number, part))) {
        numbers.push(i32::from(number));
        incarnations.push(mark.incarnation);
        timelines.push(mark.timeline);
        positions.push(mark.position);
    }
    sqlx::query(STORE_MARKS).bind(numbers).bind(incarnations).bind(timelines).bind(positions).execute(pool).await?;
    Ok(())
}

pub async fn prune_marks(pool: &PgPool) -> Result<(), StoreError> {
    sqlx::query(PRUNE_MARKS).execute(pool).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_one_statement_or_none() {
        assert_eq!(insert_marks(&Marks::default()), "");
        let mark = |position| Mark { incarnation: 1, timeline: 2, position, ..Mark::default() };
        let promoted = Mark { earlier: 4, ..mark(7) };
        let marks: Marks = [(1, mark(5)), (2, promoted)].into_iter().collect();
        let rows = "(1, 1, 2, 5), (2, 1, 2, 7), (2, 1, 1, 4)";
        assert_eq!(insert_marks(&marks), format!("{INSERT_MARK}{rows} ON CONFLICT DO NOTHING; "));
    }
}
