//! `transfer`: every transfer whose debit account lives here, under (id, debit).

use ledger::{
    AccountId, Metadata, TransferId, TransferKey,
    batch::{NewTransfer, Original, Settlement, StoredTransfer},
    operation::Purpose,
    outcome::TransferState,
};
use sqlx::postgres::PgRow;

use super::{
    StoreError,
    columns::columns,
    record::{Record, refused_columns},
    row_array::{RowArray, RowType},
    session::{Session, check_rows, column},
    slot_column,
};

/// A saga younger than this, in microseconds, is left to the router that began it. The time is longer than the
/// default request deadline, so that recovery seldom repeats the work of a live coordinator; repeating it is
/// harmless.
pub const FIRST_ATTEMPT_AFTER_US: i64 = 6_000_000;
/// Items of a batch take effect in their order, so each is left to its router for the whole request, and for this
/// long afterwards.
const FIRST_ATTEMPT_AFTER_DEADLINE_US: i64 = 1_000_000;
/// Upper bound on the deadline of a request. Clients may ask for at most 30 s.
const FIRST_ATTEMPT_AT_LAST_US: i64 = 40_000_000;

fn first_attempt_us(created_at_us: i64, coordinated_until_us: i64) -> i64 {
    let (earliest, latest) = (created_at_us + FIRST_ATTEMPT_AFTER_US, created_at_us + FIRST_ATTEMPT_AT_LAST_US);
    coordinated_until_us.saturating_add(FIRST_ATTEMPT_AFTER_DEADLINE_US).clamp(earliest, latest)
}

/// Builds the new rows, for the statement that inserts them.
pub fn rows(row_type: RowType, transfers: &[NewTransfer]) -> RowArray {
    let mut rows = RowArray::new(row_type, 21, transfers.len(), 260);
    for NewTransfer { key, stored, debit_position, coordinated_until_us } in transfers {
        let (refusal, side) = refused_columns(match stored.state {
            TransferState::Pending => stored.presumed,
            state => state.refused(),
        });
        let purpose = stored.purpose;
        let next_attempt = (stored.state == TransferState::Pending)
            .then(|| first_attempt_us(stored.created_at_us, *coordinated_until_us));
        rows.row()
            .uuid(key.id.0)
            .text(key.debit.as_str())
            .int4(slot_column(&key.debit))
            .text(stored.credit.as_str())
            .text(stored.asset.as_str())
            .int8(stored.amount)
            .text(stored.metadata.as_str())
            .bool(stored.cross_shard)
            .int2(stored.state.code().into())
            .optional_int2(refusal)
            .optional_int2(side)
            .optional_int8(debit_position.map(|p| p.0))
            .int8(stored.created_at_us)
            .optional_int8(stored.state.finished_at_us())
            .int4(0)
            .optional_int8(next_attempt)
            .optional_uuid(purpose.captured_hold().map(|id| id.0))
            .optional_bool(purpose.captured_hold().map(|_| purpose.finalizes()))
            .optional_uuid(purpose.reversed_transfer().map(|id| id.0))
            .optional_bool((purpose != Purpose::Payment).then(|| purpose.is_whole()))
            .int8(0);
    }
    rows
}

// `status + 0` keeps the planner off the index of pending transfers: while few were pending when statistics were taken it
// looks cheaper than the primary key, and then every settlement of a batch walks over all that are pending now.
const SETTLE: &str = "UPDATE shardledger.transfer AS t \
     SET status = u.status, refusal = u.refusal, side = u.side, finished_at_us = u.finished_at_us, next_attempt_us = NULL, \
       debit_position = COALESCE(u.debit_position, t.debit_position) \
     FROM unnest($1::uuid[], $2::text[], $3::int2[], $4::int2[], $5::int2[], $6::int8[], $7::text[], $8::int8[], \
         $9::bool[], $10::int8[]) \
       AS u(id, debit, status, refusal, side, finished_at_us, credit, amount, reserved, debit_position) \
     WHERE t.id = u.id AND t.debit = u.debit AND t.status + 0 = 1 AND t.credit = u.credit AND t.amount = u.amount \
       AND (t.refusal IS NULL) = u.reserved";

/// Makes pending transfers terminal. A transfer that is no longer pending, or was reserved with other content, fails
/// the batch, which is then decided again after a look-up.
pub async fn settle(session: &mut Session, settlements: &[Settlement]) -> Result<(), StoreError> {
    let ids: Vec<uuid::Uuid> = settlements.iter().map(|s| s.key.id.0).collect();
    let debits: Vec<&str> = settlements.iter().map(|s| s.key.debit.as_str()).collect();
    let status: Vec<i16> = settlements.iter().map(|s| s.state.code().into()).collect();
    let (refusal, side): (Vec<_>, Vec<_>) = settlements.iter().map(|s| refused_columns(s.state.refused())).unzip();
    let credits: Vec<&str> = settlements.iter().map(|s| s.credit.as_str()).collect();
    let amounts: Vec<i64> = settlements.iter().map(|s| s.amount).collect();
    let finished: Vec<Option<i64>> = settlements.iter().map(|s| s.state.finished_at_us()).collect();
    let reserved: Vec<bool> = settlements.iter().map(|s| s.reserved).collect();
    let positions: Vec<Option<i64>> = settlements.iter().map(|s| s.debit_position.map(|p| p.0)).collect();
    let touched = session
        .run(async |c| {
            let done = sqlx::query(SETTLE)
                .bind(ids)
                .bind(debits)
                .bind(status)
                .bind(refusal)
                .bind(side)
                .bind(finished)
                .bind(credits)
                .bind(amounts)
                .bind(reserved)
                .bind(positions)
                .execute(c)
                .await?;
            Ok(done.rows_affected())
        })
        .await?;
    check_rows("the settlement of transfers", settlements.len() as u64, touched)
}

const SELECT_MANY: &str = concat!(
    "SELECT ",
    columns!(t: transfer),
    ", ",
    columns!(j: debit_after),
    " FROM unnest($1::uuid[], $2::text[]) AS wanted(id, debit) \
     JOIN shardledger.transfer t ON t.id = wanted.id AND t.debit = wanted.debit \
     LEFT JOIN shardledger.journal j ON j.position = t.debit_position"
);

async fn select_many(session: &mut Session, keys: &[TransferKey]) -> Result<Vec<PgRow>, StoreError> {
    let ids: Vec<uuid::Uuid> = keys.iter().map(|k| k.id.0).collect();
    let debits: Vec<&str> = keys.iter().map(|k| k.debit.as_str()).collect();
    session.run(async |c| sqlx::query(SELECT_MANY).bind(ids).bind(debits).fetch_all(c).await).await
}

/// The transfers among `keys` that exist.
pub async fn load(
    session: &mut Session,
    keys: &[TransferKey],
) -> Result<Vec<(TransferKey, StoredTransfer)>, StoreError> {
    let rows = select_many(session, keys).await?;
    rows.iter().map(from_row).collect()
}

pub fn from_row(row: &PgRow) -> Result<(TransferKey, StoredTransfer), StoreError> {
    let row = Record::read(row, "transfer", "id")?;
    let at_us = row.column::<Option<i64>>("finished_at_us")?.unwrap_or(0);
    let status: i16 = row.column("status")?;
    let state = match u8::try_from(status) {
        Ok(TransferState::PENDING) => TransferState::Pending,
        Ok(TransferState::POSTED) => TransferState::Posted { at_us },
        Ok(TransferState::REJECTED) => TransferState::Rejected { refused: row.refused()?, at_us },
        _ => return Err(row.corrupt(format!("status {status}"))),
    };
    let presumed = match state {
        TransferState::Pending if row.code("refusal")? != 0 => Some(row.refused()?),
        _ => None,
    };
    let key = TransferKey { id: row.id(), debit: row.account("debit")? };
    let stored = StoredTransfer {
        credit: row.account("credit")?,
        asset: row.asset()?,
        amount: row.column("amount")?,
        metadata: Metadata::from_canonical(row.column("metadata")?),
        purpose: purpose(&row)?,
        cross_shard: row.column("cross_shard")?,
        state,
        presumed,
        debit_after: row.debit_after()?,
        created_at_us: row.column("created_at_us")?,
    };
    Ok((key, stored))
}

fn purpose(row: &Record<'_>) -> Result<Purpose, StoreError> {
    let hold: Option<uuid::Uuid> = row.column("hold")?;
    let reverses: Option<uuid::Uuid> = row.column("reverses")?;
    let whole = row.column::<Option<bool>>("whole")?.unwrap_or(false);
    Ok(match (hold, reverses) {
        (Some(hold), _) => {
            let finalize = row.column::<Option<bool>>("final")?.unwrap_or(true);
            Purpose::Capture { hold: TransferId(hold), whole, finalize }
        }
        (None, Some(of)) => Purpose::Reversal { of: TransferId(of), whole },
        (None, None) => Purpose::Payment,
    })
}

/// The transfers among `keys` with the columns that reversals need.
pub async fn load_originals(
    session: &mut Session,
    keys: &[TransferKey],
) -> Result<Vec<(TransferKey, Original)>, StoreError> {
    let rows = select_many(session, keys).await?;
    let original = |row| {
        let (key, stored) = from_row(row)?;
        let StoredTransfer { credit, asset, amount, state, .. } = stored;
        Ok((key, Original { credit, asset, amount, state, reversed: column(row, "reversed")? }))
    };
    rows.iter().map(original).collect()
}

// Uses the partial index of pending transfers: few transfers are pending, and accounts are seldom closed.
const WITH_PENDING: &str =
    "SELECT DISTINCT t.debit FROM shardledger.transfer t WHERE t.status = 1 AND t.debit = ANY($1::text[])";

/// Which of these accounts have a transfer in flight to another shard.
pub async fn accounts_with_pending(
    session: &mut Session,
    accounts: &[AccountId],
) -> Result<Vec<AccountId>, StoreError> {
    let accounts: Vec<&str> = accounts.iter().map(AccountId::as_str).collect();
    let found: Vec<String> =
        session.run(async |c| sqlx::query_scalar(WITH_PENDING).bind(accounts).fetch_all(c).await).await?;
    found.iter().map(|id| AccountId::any(id).map_err(|e| StoreError::Corrupt(e.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_waits_for_the_router_of_a_batch() {
        const S: i64 = 1_000_000;
        for (coordinated_until, first_attempt) in
            [(0, 106 * S), (101 * S, 106 * S), (105 * S, 106 * S), (130 * S, 131 * S), (i64::MAX, 140 * S)]
        {
            assert_eq!(first_attempt_us(100 * S, coordinated_until), first_attempt, "{coordinated_until}");
        }
    }
}
