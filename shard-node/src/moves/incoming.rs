//! What a target makes of the bookings that come: the rows of accounts, holds and sagas of the slots. The lane does not touch them,
//! because the shard does not own the slots yet.
//!
//! Bookings become rows through the fold of `ledger`, as everywhere. A row that is ahead of the bookings, because it was copied later
//! than they were written, skips those that it includes.

use std::collections::{HashMap, HashSet};

use ledger::{
    Account, AccountId, Booking, BookingKind, Hold, HoldKey, Position, TransferId,
    booking::Role,
    fold::{self, SagaChange},
    hold::CaptureInFlight,
};
use shard_database::journal::slot_column;
use shard_map::SlotRange;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{
    MoveError,
    progress::{AssetSum, Progress},
    source::{Verified, contains, sum_up},
};
use crate::store::{StoreError, account, ownership::as_multirange, session::column};

/// The sums over what has come, kept up to date with each page.
#[derive(Debug, Clone)]
pub struct Incoming {
    slots: Vec<SlotRange>,
    pub sums: Verified,
    /// The newest time of an account, in microseconds since the epoch.
    pub newest_us: i64,
}

impl Incoming {
    /// The sums as the progress has them, or of what is in the tables.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(
        connection: &mut PgConnection,
        slots: &[SlotRange],
        number: u16,
        progress: &Progress,
    ) -> Result<Self, MoveError> {
        if progress.is_summed {
            return Ok(Self::of(slots, progress));
        }
        const NEWEST: &str = "SELECT coalesce(max(updated_at_us), 0) FROM shardledger.account WHERE slot <@ (SELECT $1::text::int4multirange)";
        let sums = sum_up(connection, slots, number, None, None).await?.verified;
        let newest_us = sqlx::query_scalar(NEWEST).bind(as_multirange(slots)).fetch_one(connection).await?;
        Ok(Self { slots: slots.to_vec(), sums: Verified { position: progress.after, ..sums }, newest_us })
    }

    fn of(slots: &[SlotRange], progress: &Progress) -> Self {
        let sums = |of: fn(&AssetSum) -> &str| {
            let parsed = |sum: &AssetSum| (sum.asset.clone(), of(sum).parse().unwrap_or_default());
            progress.sums.iter().map(parsed).collect()
        };
        let (posted, shares) = (sums(|sum| &sum.posted), sums(|sum| &sum.shares));
        let sums = Verified { position: progress.after, bookings: Default::default(), posted, shares };
        Self { slots: slots.to_vec(), sums, newest_us: progress.newest_us }
    }

    /// Writes the sums into the progress, which is stored with the page that has changed them.
    pub fn write_to(&mut self, progress: &mut Progress) {
        progress.sums = self.sums.all_assets().iter().map(AssetSum::from).collect();
        progress.newest_us = self.newest_us;
        progress.is_summed = true;
    }

    /// Applies the bookings of a page, which are in the journal already, in the caller's transaction.
    ///
    /// # Errors
    /// When a booking does not continue a row, or the database does not answer.
    pub async fn apply(
        &mut self,
        connection: &mut PgConnection,
        progress: &Progress,
        bookings: &[Booking],
    ) -> Result<(), MoveError> {
        let mut accounts = self.load_accounts(connection, bookings).await?;
        let mut changed: HashSet<AccountId> = HashSet::new();
        let mut opened: Vec<AccountId> = Vec::new();
        let mut sagas = Sagas::default();
        for booking in bookings {
            self.newest_us = self.newest_us.max(booking.at_us);
            let is_owner = booking.owner().is_some_and(|owner| contains(&self.slots, owner));
            if is_owner {
                self.add_share(booking);
                if booking.position.0 > progress.sagas_at {
                    sagas.apply(booking);
                }
            }
            if booking.kind == BookingKind::Opened {
                if is_owner && !accounts.contains_key(&booking.payer) {
                    let account = fold::open_account(booking).map_err(StoreError::from)?;
                    opened.push(account.id.clone());
                    accounts.insert(account.id.clone(), account);
                }
                continue;
            }
            for (party, id, _) in booking.legs().filter(|(_, id, _)| contains(&self.slots, id)) {
                let account = accounts.get_mut(id).ok_or_else(|| {
                    let what =
                        format!("booking {} has a leg of account {id}, which did not come", booking.position.0);
                    StoreError::Corrupt(what)
                })?;
                let before = account.posted;
                if fold::apply_leg(account, booking, party).map_err(StoreError::from)? {
                    changed.insert(id.clone());
                    let change = i128::from(account.posted) - i128::from(before);
                    *self.sums.posted.entry(booking.asset.to_string()).or_default() += change;
                }
            }
        }
        let opened: HashSet<AccountId> = opened.into_iter().collect();
        insert_accounts(connection, accounts.values().filter(|account| opened.contains(&account.id))).await?;
        changed.retain(|id| !opened.contains(id));
        update_accounts(connection, accounts.values().filter(|account| changed.contains(&account.id))).await?;
        sagas.write(connection).await?;
        self.apply_to_holds(connection, progress, bookings).await
    }

    fn add_share(&mut self, booking: &Booking) {
        let share = i128::from(booking.in_transit_change());
        if share != 0 {
            *self.sums.shares.entry(booking.asset.to_string()).or_default() += share;
        }
    }

    async fn load_accounts(
        &self,
        connection: &mut PgConnection,
        bookings: &[Booking],
    ) -> Result<HashMap<AccountId, Account>, MoveError> {
        let mut ids: Vec<&str> = Vec::new();
        for booking in bookings {
            let legs = booking.legs().filter(|(_, id, _)| contains(&self.slots, id));
            ids.extend(legs.map(|(_, id, _)| id.as_str()));
        }
        ids.sort_unstable();
        ids.dedup();
        let found = account::load_from(connection, &ids).await?;
        Ok(found.into_iter().map(|account| (account.id.clone(), account)).collect())
    }

    async fn apply_to_holds(
        &self,
        connection: &mut PgConnection,
        progress: &Progress,
        bookings: &[Booking],
    ) -> Result<(), MoveError> {
        let is_new = |booking: &&Booking| booking.position.0 > progress.holds_at;
        let of_holds = bookings.iter().filter(is_new).filter_map(|booking| Some((fold::hold_key(booking)?, booking)));
        let of_holds: Vec<(HoldKey, &Booking)> =
            of_holds.filter(|(key, _)| contains(&self.slots, &key.debit)).collect();
        if of_holds.is_empty() {
            return Ok(());
        }
        let mut open = load_holds(connection, of_holds.iter().map(|(key, _)| key)).await?;
        let mut changes = Holds::default();
        for (key, booking) in of_holds {
            if booking.kind.role() == Role::Hold {
                if booking.kind == BookingKind::HoldPlaced {
                    let hold = fold::place_hold(booking).map_err(StoreError::from)?;
                    changes.placed.insert(key.clone(), booking.position);
                    open.insert(key, hold);
                }
                continue;
            }
            let hold = open.get_mut(&key).ok_or_else(|| {
                let what = format!("booking {} is about hold {}, which did not come", booking.position.0, key.id.0);
                StoreError::Corrupt(what)
            })?;
            fold::apply_to_hold(hold, booking).map_err(StoreError::from)?;
            if booking.kind.ends_hold() {
                open.remove(&key);
                changes.changed.remove(&key);
                if changes.placed.remove(&key).is_none() {
                    changes.ended.push(key);
                }
            } else if !changes.placed.contains_key(&key) {
                changes.changed.insert(key);
            }
        }
        changes.write(connection, &open).await
    }
}

// === sagas ===

#[derive(Default)]
struct Sagas {
    begun: HashMap<(Uuid, String), i64>,
    ended: Vec<(Uuid, String)>,
}

impl Sagas {
    fn apply(&mut self, booking: &Booking) {
        match fold::saga_change(booking) {
            Some(SagaChange::Begun(key)) => {
                self.begun.insert((key.id.0, key.debit.to_string()), booking.position.0);
            }
            Some(SagaChange::Ended(key)) => {
                let key = (key.id.0, key.debit.to_string());
                if self.begun.remove(&key).is_none() {
                    self.ended.push(key);
                }
            }
            None => {}
        }
    }

    async fn write(self, connection: &mut PgConnection) -> Result<(), MoveError> {
        const INSERT: &str = "INSERT INTO shardledger.saga (position) SELECT position FROM unnest($1::int8[]) AS new(position) \
             ON CONFLICT DO NOTHING";
        const DELETE: &str = "DELETE FROM shardledger.saga s USING shardledger.journal j, \
               unnest($1::uuid[], $2::text[]) AS ended(id, payer) \
             WHERE j.id = ended.id AND j.payer = ended.payer AND j.role = 1 AND s.position = j.position";
        if !self.begun.is_empty() {
            let positions: Vec<i64> = self.begun.into_values().collect();
            sqlx::query(INSERT).bind(positions).execute(&mut *connection).await?;
        }
        if !self.ended.is_empty() {
            let (ids, payers): (Vec<Uuid>, Vec<String>) = self.ended.into_iter().unzip();
            sqlx::query(DELETE).bind(ids).bind(payers).execute(connection).await?;
        }
        Ok(())
    }
}

/// Writes the rows of sagas that are under way, by the positions of their first bookings.
pub async fn insert_sagas(connection: &mut PgConnection, positions: &[i64]) -> Result<(), MoveError> {
    const INSERT: &str = "INSERT INTO shardledger.saga (position) SELECT position FROM unnest($1::int8[]) AS new(position) \
         ON CONFLICT DO NOTHING";
    sqlx::query(INSERT).bind(positions).execute(connection).await?;
    Ok(())
}

/// Writes the scales of assets that are new here. A scale that differs stops the move.
pub async fn insert_scales(connection: &mut PgConnection, scales: &[wire::AssetScale]) -> Result<(), MoveError> {
    const INSERT: &str =
        "INSERT INTO shardledger.asset_scale (asset, scale) VALUES ($1, $2) ON CONFLICT (asset) DO NOTHING";
    const SCALE: &str = "SELECT scale::int4 FROM shardledger.asset_scale WHERE asset = $1";
    for wire::AssetScale { asset, scale } in scales {
        let wanted = i16::try_from(*scale).unwrap_or(i16::MAX);
        sqlx::query(INSERT).bind(asset).bind(wanted).execute(&mut *connection).await?;
        let there: i32 = sqlx::query_scalar(SCALE).bind(asset).fetch_one(&mut *connection).await?;
        if there != i32::from(wanted) {
            let what = format!("asset {asset} has {there} decimals here and {wanted} at the source");
            return Err(MoveError::Differs(what));
        }
    }
    Ok(())
}

// === accounts ===

const INSERT_ACCOUNTS: &str = "INSERT INTO shardledger.account (id, slot, asset, status, posted, held, overdraft, max_balance, version, head, opened, \
       metadata, created_at_us, updated_at_us) \
     SELECT * FROM unnest($1::text[], $2::int4[], $3::text[], $4::int2[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::int8[], \
       $10::int8[], $11::int8[], $12::text[], $13::int8[], $14::int8[])";
const UPDATE_ACCOUNTS: &str = "UPDATE shardledger.account AS a \
     SET status = u.status, posted = u.posted, held = u.held, overdraft = u.overdraft, max_balance = u.max_balance, version = u.version, \
       head = u.head, metadata = u.metadata, updated_at_us = u.updated_at_us \
     FROM unnest($1::text[], $2::int2[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::text[], $10::int8[]) \
       AS u(id, status, posted, held, overdraft, max_balance, version, head, metadata, updated_at_us) \
     WHERE a.id = u.id AND a.version < u.version";

async fn insert_accounts<'a>(
    connection: &mut PgConnection,
    accounts: impl Iterator<Item = &'a Account>,
) -> Result<(), MoveError> {
    let accounts: Vec<&Account> = accounts.collect();
    if accounts.is_empty() {
        return Ok(());
    }
    let slot = |account: &&Account| i32::from(slot_column(&account.id));
    sqlx::query(INSERT_ACCOUNTS)
        .bind(accounts.iter().map(|a| a.id.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(slot).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.asset.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| i16::from(a.status.code())).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.posted).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.held).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.overdraft.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.max_balance.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.version).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.head.0).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.opened.0).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.metadata.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.created_at_us).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.updated_at_us).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

async fn update_accounts<'a>(
    connection: &mut PgConnection,
    accounts: impl Iterator<Item = &'a Account>,
) -> Result<(), MoveError> {
    let accounts: Vec<&Account> = accounts.collect();
    if accounts.is_empty() {
        return Ok(());
    }
    let updated = sqlx::query(UPDATE_ACCOUNTS)
        .bind(accounts.iter().map(|a| a.id.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| i16::from(a.status.code())).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.posted).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.held).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.overdraft.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.max_balance.to_nullable()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.version).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.head.0).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.metadata.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.updated_at_us).collect::<Vec<_>>())
        .execute(connection)
        .await?
        .rows_affected();
    if updated != accounts.len() as u64 {
        let what = format!("{} of {} rows of accounts were updated", updated, accounts.len());
        return Err(StoreError::Corrupt(what).into());
    }
    Ok(())
}

// === holds ===

async fn load_holds(
    connection: &mut PgConnection,
    keys: impl Iterator<Item = &HoldKey>,
) -> Result<HashMap<HoldKey, Hold>, MoveError> {
    const HOLDS: &str = concat!(
        "SELECT ",
        shard_database::journal_columns!(j),
        ", h.captured AS open_captured, h.capture_id, h.capture_amount \
         FROM unnest($1::uuid[], $2::text[]) AS wanted(id, payer) \
         JOIN shardledger.hold h ON h.id = wanted.id AND h.payer = wanted.payer \
         JOIN shardledger.journal j ON j.position = h.position"
    );
    let (ids, payers): (Vec<Uuid>, Vec<&str>) = keys.map(|key| (key.id.0, key.debit.as_str())).unzip();
    let rows = sqlx::query(HOLDS).bind(ids).bind(payers).fetch_all(connection).await?;
    let mut holds = HashMap::with_capacity(rows.len());
    for row in &rows {
        let first = shard_database::journal::booking_from_row(row).map_err(StoreError::from)?;
        let Some(key) = first.key() else { continue };
        let in_flight = match column::<Option<Uuid>>(row, "capture_id")? {
            Some(id) => Some(CaptureInFlight { capture: TransferId(id), amount: row.try_get("capture_amount")? }),
            None => None,
        };
        let placed = fold::place_hold(&first).map_err(StoreError::from)?;
        holds.insert(key, Hold { captured: column(row, "open_captured")?, in_flight, ..placed });
    }
    Ok(holds)
}

/// What a page does to the rows of holds. A hold that is placed and ends in one page leaves no row.
#[derive(Default)]
struct Holds {
    placed: HashMap<HoldKey, Position>,
    /// Holds that have a row, and still have one after the page.
    changed: HashSet<HoldKey>,
    ended: Vec<HoldKey>,
}

impl Holds {
    /// Writes one statement for each kind of change. `open` has the holds as they are after the page.
    async fn write(self, connection: &mut PgConnection, open: &HashMap<HoldKey, Hold>) -> Result<(), MoveError> {
        const INSERT: &str = "INSERT INTO shardledger.hold (id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, \
               expires_at_us) \
             SELECT id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, expires_at_us \
             FROM unnest($1::uuid[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::int8[], $7::uuid[], $8::int8[], $9::int8[]) \
               AS new(id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, expires_at_us)";
        const CHANGE: &str = "SELECT count(shardledger.change_hold(id, payer, captured, capture_id, capture_amount)) \
             FROM unnest($1::uuid[], $2::text[], $3::int8[], $4::uuid[], $5::int8[]) AS new(id, payer, captured, capture_id, capture_amount)";
        const END: &str =
            "SELECT count(shardledger.end_hold(id, payer)) FROM unnest($1::uuid[], $2::text[]) AS ended(id, payer)";
        let now = |key: &HoldKey| {
            open.get(key).ok_or_else(|| StoreError::Corrupt(format!("hold {} is lost in a page", key.id.0)))
        };
        if !self.placed.is_empty() {
            let placed = self.placed.iter().map(|(key, position)| Ok((key, *position, now(key)?)));
            let placed: Vec<(&HoldKey, Position, &Hold)> = placed.collect::<Result<_, StoreError>>()?;
            sqlx::query(INSERT)
                .bind(placed.iter().map(|(key, ..)| key.id.0).collect::<Vec<_>>())
                .bind(placed.iter().map(|(key, ..)| key.debit.as_str()).collect::<Vec<_>>())
                .bind(placed.iter().map(|(key, ..)| i32::from(slot_column(&key.debit))).collect::<Vec<_>>())
                .bind(placed.iter().map(|(_, position, _)| position.0).collect::<Vec<_>>())
                .bind(placed.iter().map(|(.., hold)| hold.amount).collect::<Vec<_>>())
                .bind(placed.iter().map(|(.., hold)| hold.captured).collect::<Vec<_>>())
                .bind(placed.iter().map(|(.., hold)| in_flight_id(hold)).collect::<Vec<_>>())
                .bind(placed.iter().map(|(.., hold)| in_flight_amount(hold)).collect::<Vec<_>>())
                .bind(placed.iter().map(|(.., hold)| hold.expires_at_us).collect::<Vec<_>>())
                .execute(&mut *connection)
                .await?;
        }
        if !self.changed.is_empty() {
            let changed = self.changed.iter().map(|key| Ok((key, now(key)?)));
            let changed: Vec<(&HoldKey, &Hold)> = changed.collect::<Result<_, StoreError>>()?;
            sqlx::query(CHANGE)
                .bind(changed.iter().map(|(key, _)| key.id.0).collect::<Vec<_>>())
                .bind(changed.iter().map(|(key, _)| key.debit.as_str()).collect::<Vec<_>>())
                .bind(changed.iter().map(|(_, hold)| hold.captured).collect::<Vec<_>>())
                .bind(changed.iter().map(|(_, hold)| in_flight_id(hold)).collect::<Vec<_>>())
                .bind(changed.iter().map(|(_, hold)| in_flight_amount(hold)).collect::<Vec<_>>())
                .execute(&mut *connection)
                .await?;
        }
        if !self.ended.is_empty() {
            sqlx::query(END)
                .bind(self.ended.iter().map(|key| key.id.0).collect::<Vec<_>>())
                .bind(self.ended.iter().map(|key| key.debit.as_str()).collect::<Vec<_>>())
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

fn in_flight_id(hold: &Hold) -> Option<Uuid> {
    hold.in_flight.map(|capture| capture.capture.0)
}

fn in_flight_amount(hold: &Hold) -> i64 {
    hold.in_flight.map_or(0, |capture| capture.amount)
}
