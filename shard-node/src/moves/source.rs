//! The source's side of a move, up to the hand-over: which slots it is about, and what the target reads.

use std::collections::BTreeMap;

use bytes::Bytes;
use ledger::Position;
use serde::{Deserialize, Serialize};
use shard_map::SlotRange;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{
    MoveError, Moves,
    phase::{Phase, Role},
    progress::{self, AssetSum, Progress},
};
use crate::{
    durable::{DurableStep, durable},
    store::{
        moves::{self as tables, BookingsDigest, MoveRow},
        ownership::{SlotState, as_multirange},
        session::column,
    },
};

/// Most bookings that one page looks at, and most rows of accounts in one page.
const LARGEST_PAGE: u32 = 20_000;

/// What the source keeps of a move.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceProgress {
    /// The epoch that the slots get at the target.
    pub slot_epoch: i64,
    /// The move that this one reverses.
    pub reverses: Option<Uuid>,
    /// The answer to the release.
    pub last_position: i64,
    pub locked_us: i64,
    pub assets: Vec<AssetSum>,
    /// The clean-up is done up to this position.
    pub cleaned_to: i64,
    pub bookings_deleted: u64,
    /// A reversal that was given up has brought the rows here up to this position of the other shard.
    pub reversed_to: i64,
}

/// What slots come to at one position. The source keeps the sums of the last verification, and releases only what it has summed up.
#[derive(Debug, Clone)]
pub struct Verified {
    /// `posted` and `shares` are as of this position.
    pub position: i64,
    /// As of the last verification.
    pub bookings: BookingsDigest,
    /// By asset, in minor units: what the accounts hold, and the in-transit shares.
    pub posted: BTreeMap<String, i128>,
    pub shares: BTreeMap<String, i128>,
}

/// A request to take part in a move.
pub struct Join {
    pub id: Uuid,
    pub target: String,
    pub slots: Vec<SlotRange>,
    pub driver_epoch: i64,
    pub reverses: Option<Uuid>,
}

/// The parts of the journal in the order in which they are copied: what lower-numbered shards wrote, what higher-numbered ones wrote,
/// and what the shard itself wrote. Only the last part grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Exclusive.
    pub after: i64,
    /// Inclusive.
    pub last: i64,
}

pub const PARTS: u32 = 3;
/// The part that the source itself wrote.
pub const OWN_PART: u32 = 2;

impl Part {
    pub fn of(number: u32, shard: u16) -> Option<Self> {
        let own = Self::own(shard);
        match number {
            0 => Some(Self { after: 0, last: own.after }),
            1 => Some(Self { after: own.last, last: i64::MAX }),
            OWN_PART => Some(own),
            _ => None,
        }
    }

    /// What the shard itself wrote.
    pub fn own(shard: u16) -> Self {
        Self { after: Position::first_of(shard).0 - 1, last: tables::last_of(shard) }
    }
}

impl Moves {
    /// Records a move away from this shard, or a new driver of it.
    ///
    /// # Errors
    /// [`MoveError::Refused`] says why this shard cannot give the slots away.
    pub async fn join(&self, join: Join) -> Result<wire::JoinMoveResponse, MoveError> {
        let mut connection = self.connection().await?;
        let mut transaction = connection.begin().await?;
        tables::lock(&mut transaction).await?;
        let row = match tables::get(&mut transaction, join.id).await? {
            Some(row) => {
                if row.peer != join.target || row.slots != join.slots || row.phase.role() != Role::Source {
                    return Err(MoveError::Refused(format!("move {} is known here with another content", join.id)));
                }
                if row.driver_epoch > join.driver_epoch {
                    return Err(MoveError::Superseded);
                }
                tables::set_epoch(&mut transaction, join.id, join.driver_epoch).await?;
                row
            }
            None => {
                let row = self.new_row(&mut transaction, &join).await?;
                tables::insert(&mut transaction, &row).await?;
                row
            }
        };
        let kept: SourceProgress = progress::read(&row.progress)?;
        let from_position = match kept.reverses {
            Some(reverses) => reversed_from(&mut transaction, reverses).await?,
            None => 0,
        };
        let folded_position = tables::folded_position(&mut transaction).await?;
        // Estimates: the share of the slots in what the statistics say.
        const ROWS: &str =
            "SELECT greatest(reltuples, 0)::int8 AS estimate FROM pg_catalog.pg_class WHERE oid = $1::text::regclass";
        let owned: i64 = sqlx::query_scalar("SELECT count(*) FROM shardledger.slot_ownership WHERE state = 1")
            .fetch_one(&mut *transaction)
            .await?;
        let moving: i64 = row.slots.iter().map(|range| i64::from(range.len())).sum();
        let estimate = |rows: i64| rows / owned.max(moving).max(1) * moving;
        let accounts: i64 = sqlx::query_scalar(ROWS).bind("shardledger.account").fetch_one(&mut *transaction).await?;
        let bookings: i64 = sqlx::query_scalar(ROWS).bind("shardledger.journal").fetch_one(&mut *transaction).await?;
        durable(DurableStep::Join, transaction.commit()).await?;
        Ok(wire::JoinMoveResponse {
            slot_epoch: kept.slot_epoch,
            folded_position,
            from_position,
            accounts: estimate(accounts),
            bookings: estimate(bookings),
            released: row.phase == Phase::Released,
        })
    }

    /// The row of a move away from this shard, if nothing speaks against it.
    async fn new_row(&self, connection: &mut PgConnection, join: &Join) -> Result<MoveRow, MoveError> {
        let slots = as_multirange(&join.slots);
        const OWNED: &str = "SELECT count(*) AS owned, coalesce(max(epoch), 0) AS epoch FROM shardledger.slot_ownership \
             WHERE slot <@ (SELECT $1::text::int4multirange) AND state = 1";
        let owned = sqlx::query(OWNED).bind(&slots).fetch_one(&mut *connection).await?;
        let wanted: i64 = join.slots.iter().map(|range| i64::from(range.len())).sum();
        let (count, epoch): (i64, i64) = (column(&owned, "owned")?, column(&owned, "epoch")?);
        let shard = &self.0.gate.expected().shard;
        if self.map().await?.index_of(&join.target).is_none() {
            return Err(MoveError::Refused(format!("shard {} is not in the map of shard {shard}", join.target)));
        }
        if count != wanted {
            return Err(MoveError::Refused(format!("shard {shard} owns {count} of the {wanted} slots")));
        }
        for other in tables::list(connection).await?.into_iter().filter(|other| other.phase.is_open()) {
            if other.phase == Phase::Joined {
                return Err(MoveError::Refused(format!("move {} away from shard {shard} is under way", other.id)));
            }
            if overlap(&other.slots, &join.slots) && Some(other.id) != join.reverses {
                return Err(MoveError::Refused(format!(
                    "move {} of some of the slots can still be reversed: finish or reverse it first",
                    other.id
                )));
            }
        }
        let kept = SourceProgress { slot_epoch: epoch + 1, reverses: join.reverses, ..SourceProgress::default() };
        let now_us = self.now_us();
        Ok(MoveRow {
            id: join.id,
            peer: join.target.clone(),
            slots: join.slots.clone(),
            phase: Phase::Joined,
            driver_epoch: join.driver_epoch,
            progress: progress::write(&kept),
            wishes: "{}".to_owned(),
            started_at_us: now_us,
            updated_at_us: now_us,
        })
    }

    /// The row of a move away from this shard, if the caller is its driver.
    pub(super) async fn row_at_source(
        &self,
        connection: &mut PgConnection,
        id: Uuid,
        driver_epoch: i64,
    ) -> Result<MoveRow, MoveError> {
        let row = tables::get(connection, id).await?;
        let row = row.ok_or_else(|| MoveError::Refused(format!("move {id} is not known here")))?;
        if row.driver_epoch == driver_epoch { Ok(row) } else { Err(MoveError::Superseded) }
    }

    /// A page of the bookings that are relevant to the slots.
    ///
    /// # Errors
    /// When the caller is not the driver of the move, or the database does not answer.
    pub async fn read_bookings(
        &self,
        request: &wire::ReadMoveBookingsRequest,
        id: Uuid,
    ) -> Result<wire::ReadMoveBookingsResponse, MoveError> {
        let mut connection = self.connection().await?;
        let row = self.row_at_source(&mut connection, id, request.driver_epoch).await?;
        let cursor = request.cursor.unwrap_or_default();
        let part = Part::of(cursor.part, self.number()?);
        let part = part.ok_or_else(|| MoveError::Refused(format!("the journal has no part {}", cursor.part)))?;
        let after = cursor.after.max(part.after);
        let last = request.until.map_or(part.last, |until| until.min(part.last));
        let limit = i64::from(request.limit.clamp(1, LARGEST_PAGE));
        let (to, at_end) = match tables::page_end(&mut connection, after, last, limit).await? {
            Some(end) => (end, false),
            // What is appended after this look belongs to the next page.
            None => (tables::highest(&mut connection, after, last).await?.unwrap_or(after), true),
        };
        let entries_left = match cursor.part {
            OWN_PART => tables::highest(&mut connection, to, part.last).await?.map_or(0, |newest| newest - to),
            _ => 0,
        };
        let rows = if to > after {
            tables::copy_bookings_out(&mut connection, &row.slots, after, to).await?
        } else {
            Bytes::new()
        };
        Ok(wire::ReadMoveBookingsResponse {
            rows,
            cursor: Some(wire::MoveCursor { part: cursor.part, after: to }),
            at_end,
            commits: Some(self.commits()),
            entries_left,
        })
    }

    /// A page of rows of accounts.
    ///
    /// # Errors
    /// When the caller is not the driver of the move, or the database does not answer.
    pub async fn read_accounts(
        &self,
        request: &wire::ReadMoveAccountsRequest,
        id: Uuid,
    ) -> Result<wire::ReadMoveAccountsResponse, MoveError> {
        let mut connection = self.connection().await?;
        let row = self.row_at_source(&mut connection, id, request.driver_epoch).await?;
        let limit = request.limit.clamp(1, LARGEST_PAGE);
        let rows = tables::copy_accounts_out(&mut connection, &row.slots, &request.after, limit).await?;
        let (count, last) = pg_session::last_row(&rows)
            .ok_or_else(|| MoveError::Refused("the database sent a page of accounts that ends early".to_owned()))?;
        let last = String::from_utf8_lossy(last).into_owned();
        let at_end = count < u64::from(limit);
        Ok(wire::ReadMoveAccountsResponse { last, at_end, commits: Some(self.commits()), rows })
    }

    /// The rows of holds and sagas, and the scales of assets, in one snapshot.
    ///
    /// # Errors
    /// When the caller is not the driver of the move, or the database does not answer.
    pub async fn read_small_tables(
        &self,
        driver_epoch: i64,
        id: Uuid,
    ) -> Result<wire::ReadMoveSmallTablesResponse, MoveError> {
        let mut connection = self.connection().await?;
        let row = self.row_at_source(&mut connection, id, driver_epoch).await?;
        let own = Part::own(self.number()?);
        // The transaction ends with the call, however the call ends.
        let mut connection = connection.begin_with(SNAPSHOT).await?;
        let read = async {
            const SAGAS: &str = "SELECT s.position FROM shardledger.saga s JOIN shardledger.journal j ON j.position = s.position \
                 WHERE j.payer_slot::int4 <@ (SELECT $1::text::int4multirange)";
            let folded_position = tables::folded_position(&mut connection).await?;
            let holds_at = tables::highest(&mut connection, own.after, own.last).await?.unwrap_or(own.after);
            let holds = tables::copy_holds_out(&mut connection, &row.slots).await?;
            let sagas: Vec<i64> =
                sqlx::query_scalar(SAGAS).bind(as_multirange(&row.slots)).fetch_all(&mut *connection).await?;
            let scales = tables::scales(&mut connection).await?;
            Ok::<_, MoveError>(wire::ReadMoveSmallTablesResponse { holds, holds_at, sagas, folded_position, scales })
        };
        let found = read.await?;
        connection.commit().await?;
        Ok(found)
    }

    /// Sums up the slots as of one position, and remembers the sums for the release.
    ///
    /// # Errors
    /// When the caller is not the driver of the move, or the database does not answer.
    pub async fn sum_up(
        &self,
        request: &wire::SumUpMoveRequest,
        id: Uuid,
    ) -> Result<wire::SumUpMoveResponse, MoveError> {
        let mut connection = self.connection().await?;
        let row = self.row_at_source(&mut connection, id, request.driver_epoch).await?;
        let before = self.verified().get(&id).cloned();
        let Summed { verified, slots, accounts, holds } =
            sum_up(&mut connection, &row.slots, self.number()?, before, request.slot).await?;
        let answer = wire::SumUpMoveResponse {
            position: verified.position,
            slots,
            assets: verified.assets(),
            bookings: Some((&verified.bookings).into()),
            accounts,
            holds: Some(holds),
            scales: tables::scales(&mut connection).await?,
        };
        self.verified().insert(id, verified);
        Ok(answer)
    }

    fn commits(&self) -> wire::Commits {
        let lane = self.0.lane.status();
        let total_us = u64::try_from(lane.committing.as_micros()).unwrap_or(u64::MAX);
        wire::Commits { count: lane.batches, total_us }
    }
}

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// What the slots come to at one position.
pub struct Summed {
    pub verified: Verified,
    pub slots: Vec<wire::SlotSum>,
    /// Of one slot, if it was asked for.
    pub accounts: Vec<wire::AccountState>,
    pub holds: wire::HoldsSum,
}

/// Sums up slots at the end of the shard's own part, in one snapshot. The bookings that `before` includes are not read again. With
/// `slot`, each account of that slot as well.
///
/// # Errors
/// When the database does not answer.
pub async fn sum_up(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    number: u16,
    before: Option<Verified>,
    slot: Option<u32>,
) -> Result<Summed, MoveError> {
    let mut snapshot = connection.begin_with(SNAPSHOT).await?;
    let summed = sum_up_in_snapshot(&mut snapshot, slots, number, before, slot).await?;
    snapshot.commit().await?;
    Ok(summed)
}

async fn sum_up_in_snapshot(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    number: u16,
    before: Option<Verified>,
    slot: Option<u32>,
) -> Result<Summed, MoveError> {
    let own = Part::own(number);
    let position = tables::highest(connection, own.after, own.last).await?.unwrap_or(own.after);
    let (mut bookings, mut shares, from) = match before {
        Some(before) => (before.bookings, before.shares, vec![(before.position, position)]),
        None => {
            let parts = [0, 1].into_iter().filter_map(|part| Part::of(part, number));
            let foreign = parts.map(|part| (part.after, part.last));
            (BookingsDigest::default(), BTreeMap::new(), foreign.chain([(own.after, position)]).collect())
        }
    };
    for (after, to) in from {
        let (digest, of_part) = tables::bookings_digest(connection, slots, after, to).await?;
        bookings.add(&digest);
        for (asset, share) in of_part {
            *shares.entry(asset).or_default() += share;
        }
    }
    let slot_sums = tables::slot_sums(connection, slots, own.last).await?;
    let mut posted: BTreeMap<String, i128> = BTreeMap::new();
    for sum in &slot_sums {
        let of_slot: i128 = sum.posted.parse().unwrap_or_default();
        *posted.entry(sum.asset.clone()).or_default() += of_slot;
    }
    let accounts = match slot.and_then(|slot| shard_map::Slot::try_from(slot).ok()) {
        Some(slot) => match SlotRange::new(slot, slot) {
            Ok(slot) => tables::account_states(connection, slot, own.last).await?,
            Err(_) => Vec::new(),
        },
        None => Vec::new(),
    };
    let holds = tables::holds_sum(connection, slots).await?;
    Ok(Summed { verified: Verified { position, bookings, posted, shares }, slots: slot_sums, accounts, holds })
}

impl Verified {
    /// The sums by asset, for the wire. Assets whose sums are zero are left out: one side may never have seen the asset.
    pub fn assets(&self) -> Vec<wire::MoveAssetSum> {
        let is_not_zero = |sum: &wire::MoveAssetSum| sum.posted != "0" || sum.shares != "0";
        self.all_assets().into_iter().filter(is_not_zero).collect()
    }

    /// The sums of every asset that was seen.
    pub fn all_assets(&self) -> Vec<wire::MoveAssetSum> {
        let assets: std::collections::BTreeSet<&String> = self.posted.keys().chain(self.shares.keys()).collect();
        let sum = |sums: &BTreeMap<String, i128>, asset: &String| sums.get(asset).copied().unwrap_or(0).to_string();
        assets
            .into_iter()
            .map(|asset| wire::MoveAssetSum {
                asset: asset.clone(),
                posted: sum(&self.posted, asset),
                shares: sum(&self.shares, asset),
            })
            .collect()
    }

    /// Takes in a booking that was appended since.
    pub fn add(&mut self, booking: &ledger::Booking, is_of_slots: impl Fn(&ledger::AccountId) -> bool) {
        for (party, id, _) in booking.legs() {
            if is_of_slots(id)
                && let Some(change) = booking.change(party)
            {
                *self.posted.entry(booking.asset.to_string()).or_default() += i128::from(change.posted);
            }
        }
        if booking.owner().is_some_and(is_of_slots) {
            let share = i128::from(booking.in_transit_change());
            if share != 0 {
                *self.shares.entry(booking.asset.to_string()).or_default() += share;
            }
        }
        self.position = self.position.max(booking.position.0);
    }
}

impl From<&BookingsDigest> for wire::BookingsDigest {
    fn from(digest: &BookingsDigest) -> Self {
        Self {
            count: digest.count,
            positions: digest.positions.to_string(),
            amounts: digest.amounts.to_string(),
            times: digest.times.to_string(),
            balances: digest.balances.to_string(),
            names: digest.names.to_string(),
        }
    }
}

/// Whether two lists of slots have one in common.
pub fn overlap(one: &[SlotRange], other: &[SlotRange]) -> bool {
    one.iter().any(|a| other.iter().any(|b| a.first() <= b.last() && b.first() <= a.last()))
}

/// Whether a client's account is in one of the slots.
pub fn contains(slots: &[SlotRange], account: &ledger::AccountId) -> bool {
    if account.is_system() {
        return false;
    }
    let slot = shard_map::slot_of(account.as_str());
    slots.iter().any(|range| range.contains(slot))
}

/// The position from which a reversal has to be copied: where this shard took the slots.
async fn reversed_from(connection: &mut PgConnection, reverses: Uuid) -> Result<i64, MoveError> {
    let row = tables::get(connection, reverses).await?;
    let row = row.filter(|row| matches!(row.phase, Phase::Taken | Phase::Reversed));
    let row = row.ok_or_else(|| MoveError::Refused(format!("move {reverses} cannot be reversed")))?;
    let progress: Progress = progress::read(&row.progress)?;
    Ok(progress.taken_position)
}

// The states of slots, as they are stored.
pub const RELEASED: i16 = SlotState::Released as i16;
pub const OWNED: i16 = SlotState::Owned as i16;
pub const INCOMING: i16 = SlotState::Incoming as i16;
