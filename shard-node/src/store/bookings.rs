//! `journal`: bookings by their ids, by their positions, and along an account's chain. Open holds also have rows in
//! `hold`.

use std::collections::HashMap;

use ledger::{
    Account, Booking, Hold, HoldKey, Position, TransferId, TransferKey,
    batch::Stored,
    booking::Role,
    fold,
    history::{self, Original, StoredRegister, StoredTransfer},
    hold::CaptureInFlight,
    operation::CreateAccount,
};
use shard_database::{journal::booking_from_row, journal_columns};
use sqlx::{Executor, Postgres, postgres::PgRow};
use uuid::Uuid;

use super::{
    StoreError,
    read::Readable,
    session::{Session, column},
};

const AFTER: &str = concat!(
    "SELECT ",
    journal_columns!(j),
    " FROM shardledger.journal j WHERE j.position > $1 AND j.position <= $2 ORDER BY j.position LIMIT $3"
);

/// The bookings after a position in its range, in order.
pub async fn after(session: &mut Session, position: Position, limit: i64) -> Result<Vec<Booking>, StoreError> {
    let last = position.last_of_range();
    let rows = session
        .run(async |c| sqlx::query(AFTER).bind(position.0).bind(last.0).bind(limit).fetch_all(c).await)
        .await?;
    decode(&rows)
}

const AT: &str = concat!(
    "SELECT ",
    journal_columns!(j),
    " FROM unnest($1::int8[]) AS wanted(position) JOIN shardledger.journal j ON j.position = wanted.position"
);

/// The bookings at these positions.
pub async fn at<'e>(
    executor: impl Executor<'e, Database = Postgres>,
    positions: &[Position],
) -> Result<Vec<Booking>, StoreError> {
    let positions: Vec<i64> = positions.iter().map(|position| position.0).collect();
    decode(&sqlx::query(AT).bind(positions).fetch_all(executor).await?)
}

const SAGAS_OF: &str = concat!(
    "SELECT ",
    journal_columns!(j),
    " FROM shardledger.saga s JOIN shardledger.journal j ON j.position = s.position \
     WHERE j.payer_slot::int4 <@ (SELECT $1::text::int4multirange)"
);

/// The first bookings of the sagas whose payers are in these slots, an `int4multirange`.
pub async fn sagas_of(session: &mut Session, slots: &str) -> Result<Vec<Booking>, StoreError> {
    decode(&session.run(async |c| sqlx::query(SAGAS_OF).bind(slots).fetch_all(c).await).await?)
}

async fn at_in(session: &mut Session, positions: &[Position]) -> Result<Vec<Booking>, StoreError> {
    if positions.is_empty() {
        return Ok(Vec::new());
    }
    let positions: Vec<i64> = positions.iter().map(|position| position.0).collect();
    decode(&session.run(async |c| sqlx::query(AT).bind(positions).fetch_all(c).await).await?)
}

fn decode(rows: &[PgRow]) -> Result<Vec<Booking>, StoreError> {
    rows.iter().map(|row| booking_from_row(row).map_err(StoreError::from)).collect()
}

// `role = ANY` with the leading columns of the key: one descent of the unique index for each role.
const BY_KEYS: &str = concat!(
    "SELECT ",
    journal_columns!(j),
    " FROM unnest($1::uuid[], $2::text[]) AS wanted(id, payer) \
     JOIN shardledger.journal j ON j.id = wanted.id AND j.payer = wanted.payer AND j.id IS NOT NULL \
     WHERE j.role = ANY($3::int2[])"
);

async fn by_keys(session: &mut Session, keys: &[TransferKey], roles: &[Role]) -> Result<Vec<Booking>, StoreError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id.0).collect();
    let payers: Vec<&str> = keys.iter().map(|key| key.debit.as_str()).collect();
    let roles: Vec<i16> = roles.iter().map(|role| role.code().into()).collect();
    decode(&session.run(async |c| sqlx::query(BY_KEYS).bind(ids).bind(payers).bind(roles).fetch_all(c).await).await?)
}

const BY_ID: &str = concat!(
    "SELECT ",
    journal_columns!(j),
    ", coalesce(o.state = 1, false) AS is_owned FROM shardledger.journal j \
     LEFT JOIN shardledger.slot_ownership o ON o.slot = (CASE WHEN j.role = 3 THEN j.payee_slot ELSE j.payer_slot END) \
     WHERE j.id = $1 AND ($2 = '' OR j.payer = $2) AND j.role = ANY($3::int2[])"
);

/// The bookings with these identities and roles, outside the lane.
pub async fn of_keys(pool: &sqlx::PgPool, keys: &[TransferKey], roles: &[Role]) -> Result<Vec<Booking>, StoreError> {
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id.0).collect();
    let payers: Vec<&str> = keys.iter().map(|key| key.debit.as_str()).collect();
    let roles: Vec<i16> = roles.iter().map(|role| role.code().into()).collect();
    decode(&sqlx::query(BY_KEYS).bind(ids).bind(payers).bind(roles).fetch_all(pool).await?)
}

/// What a shard has of one id, as of one moment.
#[derive(Debug)]
pub struct OfId<T> {
    /// In slots that the shard owns.
    pub here: Vec<T>,
    /// The bookings in other slots, which come in or have left. A move also leaves copies behind where another account of the booking stays.
    pub elsewhere: Vec<Booking>,
}

/// The bookings of one id with these roles, of one payer or, with an empty `payer`, of all.
pub async fn by_id(from: &Readable, id: Uuid, payer: &str, roles: &[Role]) -> Result<OfId<Booking>, StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_bookings(id, payer, roles).await;
    }
    let roles: Vec<i16> = roles.iter().map(|role| role.code().into()).collect();
    let rows = sqlx::query(BY_ID).bind(id).bind(payer).bind(roles).fetch_all(from.pool()?).await?;
    let mut found = OfId { here: Vec::new(), elsewhere: Vec::new() };
    for row in &rows {
        let booking = booking_from_row(row)?;
        if column(row, "is_owned")? {
            found.here.push(booking);
        } else {
            found.elsewhere.push(booking);
        }
    }
    Ok(found)
}

/// The bookings at these positions that hold the answers of transfers.
pub async fn answers_at(from: &Readable, positions: &[Position]) -> Result<Vec<Booking>, StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_at(positions).await;
    }
    at(from.pool()?, positions).await
}

// === transfers ===

/// Transfers as their bookings record them.
#[derive(Debug, Default)]
pub struct Transfers(HashMap<TransferKey, (Option<Booking>, Option<Booking>)>);

impl Transfers {
    /// Sorts bookings of the roles [`Role::Transfer`] and [`Role::Settlement`] by transfer.
    pub fn of(bookings: Vec<Booking>) -> Self {
        let mut transfers = Self::default();
        for booking in bookings {
            let Some(key) = booking.key() else { continue };
            let (first, settlement) = transfers.0.entry(key).or_default();
            match booking.kind.role() {
                Role::Transfer => *first = Some(booking),
                Role::Settlement => *settlement = Some(booking),
                Role::None | Role::Register | Role::Hold | Role::HoldEnd => {}
            }
        }
        transfers
    }

    /// Further bookings that have to be read, because they hold the answers.
    pub fn answers(&self) -> Vec<Position> {
        let bookings = self.0.values();
        bookings.filter_map(|(first, settlement)| history::answer_of(first.as_ref()?, settlement.as_ref())).collect()
    }

    /// The transfers with their first bookings. `answers` are the bookings that [`Transfers::answers`] names.
    ///
    /// # Errors
    /// When the bookings of a transfer do not fit together.
    pub fn with(self, answers: &[Booking]) -> Result<Vec<(Booking, StoredTransfer)>, StoreError> {
        let mut transfers = Vec::with_capacity(self.0.len());
        for (key, (first, settlement)) in self.0 {
            let Some(first) = first else {
                let what = format!("transfer {} of {} is settled and was never booked", key.id.0, key.debit);
                return Err(StoreError::Corrupt(what));
            };
            let answer = history::answer_of(&first, settlement.as_ref());
            let leg = answer.and_then(|answer| answers.iter().find(|booking| booking.position == answer));
            let leg = leg.and_then(|booking| booking.payer_leg.as_ref());
            let stored = StoredTransfer::of(&first, settlement.as_ref(), leg)?;
            transfers.push((first, stored));
        }
        Ok(transfers)
    }
}

async fn transfers(
    session: &mut Session,
    keys: &[TransferKey],
) -> Result<Vec<(Booking, StoredTransfer)>, StoreError> {
    let bookings = by_keys(session, keys, &[Role::Transfer, Role::Settlement]).await?;
    let transfers = Transfers::of(bookings);
    let answers = at_in(session, &transfers.answers()).await?;
    transfers.with(&answers)
}

/// What the journal holds under these ids.
pub async fn stored(
    session: &mut Session,
    wanted: &[TransferKey],
    registers: &[TransferKey],
) -> Result<Stored, StoreError> {
    let mut stored = Stored::default();
    for (first, transfer) in transfers(session, wanted).await? {
        stored.transfers.extend(first.key().map(|key| (key, transfer)));
    }
    for booking in by_keys(session, registers, &[Role::Register]).await? {
        let register = StoredRegister::of(&booking)?;
        stored.registers.extend(booking.key().map(|key| (key, register)));
    }
    Ok(stored)
}

// Kinds 11 and 31 move the money of a reversal: of a local one, and of one from another shard.
const REVERSED: &str = "SELECT wanted.n, coalesce(sum(j.amount), 0)::int8 AS reversed \
     FROM unnest($1::int4[], $2::uuid[], $3::text[]) AS wanted(n, id, payer) \
     JOIN shardledger.journal j ON j.reverses = wanted.id AND j.payee = wanted.payer AND j.reverses IS NOT NULL \
     WHERE j.kind IN (11, 31) GROUP BY wanted.n";

/// The transfers among `keys` with what is reversed of them.
pub async fn originals(
    session: &mut Session,
    keys: &[TransferKey],
) -> Result<Vec<(TransferKey, Original)>, StoreError> {
    let numbers: Vec<i32> = (0..).take(keys.len()).collect();
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id.0).collect();
    let payers: Vec<&str> = keys.iter().map(|key| key.debit.as_str()).collect();
    let rows =
        session.run(async |c| sqlx::query(REVERSED).bind(numbers).bind(ids).bind(payers).fetch_all(c).await).await?;
    let mut reversed: HashMap<&TransferKey, i64> = HashMap::new();
    for row in &rows {
        let number: i32 = column(row, "n")?;
        if let Some(key) = usize::try_from(number).ok().and_then(|number| keys.get(number)) {
            reversed.insert(key, column(row, "reversed")?);
        }
    }
    let mut originals = Vec::with_capacity(keys.len());
    for (first, stored) in transfers(session, keys).await? {
        let Some(key) = first.key() else { continue };
        let StoredTransfer { credit, asset, amount, state, .. } = stored;
        let reversed = reversed.get(&key).copied().unwrap_or(0);
        originals.push((key, Original { credit, asset, amount, state, reversed }));
    }
    Ok(originals)
}

const REVERSALS: &str = "SELECT id FROM shardledger.journal WHERE reverses = $1 AND payee = $2 AND kind IN (11, 31) \
     ORDER BY position LIMIT 100";
const REVERSED_OF: &str = "SELECT coalesce(sum(amount), 0)::int8 FROM shardledger.journal \
     WHERE reverses = $1 AND payee = $2 AND kind IN (11, 31)";

/// How much of a transfer is reversed, in minor units, and by which transfers: the first hundred, enough for a display.
pub async fn reversals(from: &Readable, id: Uuid, payer: &str) -> Result<(i64, Vec<TransferId>), StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_reversals(id, payer).await;
    }
    let pool = from.pool()?;
    let reversed: i64 = sqlx::query_scalar(REVERSED_OF).bind(id).bind(payer).fetch_one(pool).await?;
    if reversed == 0 {
        return Ok((0, Vec::new()));
    }
    let ids: Vec<Uuid> = sqlx::query_scalar(REVERSALS).bind(id).bind(payer).fetch_all(pool).await?;
    Ok((reversed, ids.into_iter().map(TransferId).collect()))
}

const REVERSALS_OF: &str = "SELECT wanted.n, sum(j.amount)::int8 AS reversed, (array_agg(j.id ORDER BY j.position))[1:100] AS reversals \
     FROM unnest($1::int4[], $2::uuid[], $3::text[]) AS wanted(n, id, payer) \
     JOIN shardledger.journal j ON j.reverses = wanted.id AND j.payee = wanted.payer AND j.reverses IS NOT NULL \
     WHERE j.kind IN (11, 31) GROUP BY wanted.n";

/// The same of many transfers; those of which nothing is reversed are left out.
pub async fn reversals_of(
    pool: &sqlx::PgPool,
    keys: &[TransferKey],
) -> Result<HashMap<TransferKey, (i64, Vec<TransferId>)>, StoreError> {
    let numbers: Vec<i32> = (0..).take(keys.len()).collect();
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id.0).collect();
    let payers: Vec<&str> = keys.iter().map(|key| key.debit.as_str()).collect();
    let mut found = HashMap::new();
    for row in sqlx::query(REVERSALS_OF).bind(numbers).bind(ids).bind(payers).fetch_all(pool).await? {
        let number: i32 = column(&row, "n")?;
        let Some(key) = usize::try_from(number).ok().and_then(|number| keys.get(number)) else { continue };
        let reversals: Vec<Uuid> = column(&row, "reversals")?;
        found.insert(key.clone(), (column(&row, "reversed")?, reversals.into_iter().map(TransferId).collect()));
    }
    Ok(found)
}

// === holds ===

// The bookings of holds and the rows of those that are open, in one snapshot: a hold that another writer places or ends in
// between would look damaged.
macro_rules! hold_columns {
    () => {
        concat!(
            "SELECT ",
            journal_columns!(j),
            ", h.id IS NOT NULL AS is_open, h.captured AS open_captured, h.capture_id, h.capture_amount"
        )
    };
}
const HOLDS_BY_KEYS: &str = concat!(
    hold_columns!(),
    " FROM unnest($1::uuid[], $2::text[]) AS wanted(id, payer) \
     JOIN shardledger.journal j ON j.id = wanted.id AND j.payer = wanted.payer AND j.id IS NOT NULL \
     LEFT JOIN shardledger.hold h ON h.id = j.id AND h.payer = j.payer \
     WHERE j.role = ANY('{4,5}'::int2[])"
);
const HOLDS_BY_ID: &str = concat!(
    hold_columns!(),
    ", coalesce(s.state = 1, false) AS is_owned FROM shardledger.journal j \
     LEFT JOIN shardledger.slot_ownership s ON s.slot = j.payer_slot \
     LEFT JOIN shardledger.hold h ON h.id = j.id AND h.payer = j.payer WHERE j.id = $1 AND ($2 = '' OR j.payer = $2) AND j.role = ANY('{4,5}'::int2[])"
);

/// The holds among `keys` that exist.
pub async fn holds(session: &mut Session, keys: &[HoldKey]) -> Result<Vec<(HoldKey, Hold)>, StoreError> {
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id.0).collect();
    let payers: Vec<&str> = keys.iter().map(|key| key.debit.as_str()).collect();
    let rows = session.run(async |c| sqlx::query(HOLDS_BY_KEYS).bind(ids).bind(payers).fetch_all(c).await).await?;
    assemble_holds(&rows)
}

/// The holds among `keys` that exist, outside the lane.
pub async fn holds_of(pool: &sqlx::PgPool, keys: &[HoldKey]) -> Result<Vec<(HoldKey, Hold)>, StoreError> {
    let ids: Vec<Uuid> = keys.iter().map(|key| key.id.0).collect();
    let payers: Vec<&str> = keys.iter().map(|key| key.debit.as_str()).collect();
    assemble_holds(&sqlx::query(HOLDS_BY_KEYS).bind(ids).bind(payers).fetch_all(pool).await?)
}

/// The holds of one id, of one payer or, with an empty `payer`, of all.
pub async fn holds_of_id(from: &Readable, id: Uuid, payer: &str) -> Result<OfId<(HoldKey, Hold)>, StoreError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Readable::Memory(database) = from {
        return database.read_holds(id, payer).await;
    }
    let rows = sqlx::query(HOLDS_BY_ID).bind(id).bind(payer).fetch_all(from.pool()?).await?;
    let (mut owned, mut elsewhere) = (Vec::new(), Vec::new());
    for row in rows {
        if column(&row, "is_owned")? {
            owned.push(row);
        } else {
            elsewhere.push(booking_from_row(&row)?);
        }
    }
    Ok(OfId { here: assemble_holds(&owned)?, elsewhere })
}

fn assemble_holds(rows: &[PgRow]) -> Result<Vec<(HoldKey, Hold)>, StoreError> {
    let mut ends: HashMap<HoldKey, Booking> = HashMap::new();
    let mut firsts = Vec::new();
    for row in rows {
        let booking = booking_from_row(row)?;
        match (booking.kind.role(), booking.key()) {
            (Role::HoldEnd, Some(key)) => drop(ends.insert(key, booking)),
            (Role::Hold, Some(key)) => firsts.push((key, booking, row)),
            _ => {}
        }
    }
    let mut holds = Vec::with_capacity(firsts.len());
    for (key, first, row) in firsts {
        let end = ends.get(&key);
        let hold = if end.is_none() && column(row, "is_open")? {
            let in_flight = match column::<Option<Uuid>>(row, "capture_id")? {
                Some(id) => Some(CaptureInFlight { capture: TransferId(id), amount: column(row, "capture_amount")? }),
                None => None,
            };
            Hold { captured: column(row, "open_captured")?, in_flight, ..fold::place_hold(&first)? }
        } else {
            history::ended_hold(&first, end)?
        };
        holds.push((key, hold));
    }
    Ok(holds)
}

// === openings ===

/// What accounts were opened with, from the bookings that opened them.
pub async fn openings(session: &mut Session, accounts: &[&Account]) -> Result<Vec<CreateAccount>, StoreError> {
    let positions: Vec<Position> = accounts.iter().map(|account| account.opened).collect();
    let bookings = at_in(session, &positions).await?;
    bookings.iter().map(|booking| Ok(CreateAccount::like(&fold::open_account(booking)?))).collect()
}
