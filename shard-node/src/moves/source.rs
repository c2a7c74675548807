//! The source's side of a move, up to the hand-over: which slots it is about, and what the target reads.

use uuid::Uuid;

use shard_map::SlotRange;

use super::{
    MoveError, Moves,
    phase::{Phase, Role},
    progress::{self, Progress, SourceProgress},
    scope::{OWN_PART, Part, overlap},
    sums::Summed,
};
use crate::store::moves::{
    AccountsPage, Begin, BookingsPage, Estimates, MoveConnection, MoveRow, MoveStore, Standing,
};

/// Most bookings that one page looks at, and most rows of accounts in one page.
const LARGEST_PAGE: u32 = 20_000;

/// A request to take part in a move.
pub struct Join {
    pub id: Uuid,
    pub target: String,
    pub slots: Vec<SlotRange>,
    pub driver_epoch: i64,
    pub reverses: Option<Uuid>,
}

impl<S: MoveStore> Moves<S> {
    /// Records a move away from this shard, or a new driver of it.
    ///
    /// # Errors
    /// [`MoveError::Refused`] says why this shard cannot give the slots away.
    pub async fn join(&self, join: Join) -> Result<wire::JoinMoveResponse, MoveError> {
        let mut connection = self.connection().await?;
        // Only a move that is new here needs the map.
        let map = match connection.get(join.id).await? {
            Some(_) => None,
            None => Some(self.map().await?),
        };
        let mut joined = None;
        let judge = |standing: &Standing| {
            let (row, begin) = match standing.row(join.id) {
                Some(row) => {
                    if row.peer != join.target || row.slots != join.slots || row.phase.role() != Role::Source {
                        let what = format!("move {} is known here with another content", join.id);
                        return Err(MoveError::Refused(what));
                    }
                    if row.driver_epoch > join.driver_epoch {
                        return Err(MoveError::Superseded);
                    }
                    (row.clone(), Begin::Drive(join.id, join.driver_epoch))
                }
                None => {
                    let row = self.new_row(standing, map.as_ref(), &join)?;
                    (row.clone(), Begin::Insert(row))
                }
            };
            let kept: SourceProgress = progress::read(&row.progress)?;
            let from_position = match kept.reverses {
                Some(reverses) => reversed_from(standing, reverses)?,
                None => 0,
            };
            joined = Some((row, kept, from_position));
            Ok(begin)
        };
        let Estimates { folded_position, owned, accounts, bookings } = connection.join(&join.slots, judge).await?;
        let (row, kept, from_position) = joined.ok_or(MoveError::Superseded)?;
        // Estimates: the share of the slots in what the statistics say.
        let moving: i64 = row.slots.iter().map(|range| i64::from(range.len())).sum();
        let estimate = |rows: i64| rows / owned.max(moving).max(1) * moving;
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
    fn new_row(
        &self,
        standing: &Standing,
        map: Option<&shard_map::ShardMap>,
        join: &Join,
    ) -> Result<MoveRow, MoveError> {
        let refused = |why: String| Err(MoveError::Refused(why));
        let wanted: i64 = join.slots.iter().map(|range| i64::from(range.len())).sum();
        let shard = &self.0.gate.expected().shard;
        if map.is_none_or(|map| map.index_of(&join.target).is_none()) {
            return refused(format!("shard {} is not in the map of shard {shard}", join.target));
        }
        if standing.owned != wanted {
            return refused(format!("shard {shard} owns {} of the {wanted} slots", standing.owned));
        }
        for other in standing.rows.iter().filter(|other| other.phase.is_open()) {
            if other.phase == Phase::Joined {
                return refused(format!("move {} away from shard {shard} is under way", other.id));
            }
            if overlap(&other.slots, &join.slots) && Some(other.id) != join.reverses {
                return refused(format!(
                    "move {} of some of the slots can still be reversed: finish or reverse it first",
                    other.id
                ));
            }
        }
        let slot_epoch = standing.epoch + 1;
        let kept = SourceProgress { slot_epoch, reverses: join.reverses, ..SourceProgress::default() };
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
        let row = driven_by(connection.get(id).await?, id, request.driver_epoch)?;
        let cursor = request.cursor.unwrap_or_default();
        let part = Part::of(cursor.part, self.number()?);
        let part = part.ok_or_else(|| MoveError::Refused(format!("the journal has no part {}", cursor.part)))?;
        let last = request.until.map_or(part.last, |until| until.min(part.last));
        let page = Part { after: cursor.after.max(part.after), last };
        let limit = i64::from(request.limit.clamp(1, LARGEST_PAGE));
        let BookingsPage { rows, to, at_end } = connection.read_bookings(&row.slots, page, limit).await?;
        let entries_left = match cursor.part {
            OWN_PART => connection.highest(Part { after: to, ..part }).await?.map_or(0, |newest| newest - to),
            _ => 0,
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
        let row = driven_by(connection.get(id).await?, id, request.driver_epoch)?;
        let limit = request.limit.clamp(1, LARGEST_PAGE);
        let AccountsPage { rows, count, last } = connection.read_accounts(&row.slots, &request.after, limit).await?;
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
        let row = driven_by(connection.get(id).await?, id, driver_epoch)?;
        connection.read_small_tables(&row.slots, Part::own(self.number()?)).await
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
        let row = driven_by(connection.get(id).await?, id, request.driver_epoch)?;
        let before = self.verified().get(&id).cloned();
        let Summed { verified, slots, accounts, holds } =
            connection.sum_up(&row.slots, self.number()?, before, request.slot).await?;
        let answer = wire::SumUpMoveResponse {
            position: verified.position,
            slots,
            assets: verified.assets(),
            bookings: Some((&verified.bookings).into()),
            accounts,
            holds: Some(holds),
            scales: connection.scales().await?,
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

/// The row of a move away from this shard, if the caller is its driver.
///
/// # Errors
/// [`MoveError::Refused`] if there is no such move, and [`MoveError::Superseded`] if it has another driver.
pub fn driven_by(row: Option<MoveRow>, id: Uuid, driver_epoch: i64) -> Result<MoveRow, MoveError> {
    let row = row.ok_or_else(|| MoveError::Refused(format!("move {id} is not known here")))?;
    if row.driver_epoch == driver_epoch { Ok(row) } else { Err(MoveError::Superseded) }
}

/// The position from which a reversal has to be copied: where this shard took the slots.
fn reversed_from(standing: &Standing, reverses: Uuid) -> Result<i64, MoveError> {
    let row = standing.row(reverses).filter(|row| matches!(row.phase, Phase::Taken | Phase::Reversed));
    let row = row.ok_or_else(|| MoveError::Refused(format!("move {reverses} cannot be reversed")))?;
    let progress: Progress = progress::read(&row.progress)?;
    Ok(progress.taken_position)
}
