//! The two transactions in which slots change hands: the release at the source, and the take at the target.
//!
//! Each holds the lane's lock from before it looks until it commits, so that it sees everything and nothing comes in between. What has
//! to be read is read before the lock as far as possible, because the lane waits for the lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ledger::{
    AccountId, AssetCode, Booking, BookingKind, Limit, Metadata, Position,
    batch::Effects,
    booking::{Attributes, Extra, Leg},
};
use shard_database::ShardState;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    MoveError, Moves,
    incoming::Incoming,
    phase::Phase,
    progress::{self, AssetSum, Progress, SourceProgress},
    scope::{Part, contains},
    source::driven_by,
    sums::Verified,
};
use crate::{
    durable::DurableStep,
    store::{
        StoreError,
        moves::{Advance, HandOver, MoveRow, MoveStore, SlotsChange},
        ownership::SlotState,
    },
};

/// The release takes the lane's lock once fewer positions than this are left to read.
const FEW: i64 = 200;
/// Positions that one statement reads.
const AT_ONCE: i64 = 20_000;
/// Most positions that the answer of a release reaches back.
const LARGEST_REST: i64 = 5_000;
/// Most reads before the lock. After them, the release is refused.
const LOOKS: usize = 20;

impl<S: MoveStore> Moves<S> {
    /// Opens the sessions of a hand-over. Connecting takes longer than the hand-over itself.
    ///
    /// # Errors
    /// When the database is out of reach, or refused by the gate.
    pub(super) async fn sessions(&self) -> Result<S::HandOver, MoveError> {
        self.0.store.hand_over().await
    }

    /// Gives the slots away. The answer of a release that was carried out is stored, and returned again.
    ///
    /// # Errors
    /// [`MoveError::Refused`] if this node has not summed the slots up at `verified_position`: the driver has to verify again. Also if
    /// the lane would be locked out for longer than the driver allows.
    pub async fn release(
        &self,
        request: &wire::ReleaseMoveRequest,
        id: Uuid,
    ) -> Result<wire::ReleaseMoveResponse, MoveError> {
        let wire::ReleaseMoveRequest { driver_epoch, verified_position, max_locked_ms, after, .. } = *request;
        let mut sessions = self.sessions().await?;
        let row = driven_by(sessions.get(id).await?, id, driver_epoch)?;
        let kept: SourceProgress = progress::read(&row.progress)?;
        if row.phase == Phase::Released {
            // The release is visible. It need not be replicated yet, if the wait for a stand-by was cancelled.
            sessions.confirm(&row).await?;
            let scales = sessions.scales().await?;
            let rows = match rest(after, kept.last_position) {
                Some((after, last)) => Some(sessions.rows(&row.slots, after, last).await?),
                None => None,
            };
            return Ok(wire::ReleaseMoveResponse { rows, ..answer(&kept, scales) });
        }
        if row.phase != Phase::Joined {
            return Err(MoveError::Refused(format!("move {id} is {}", row.phase.as_str())));
        }
        let verified = self.verified().get(&id).filter(|it| it.position == verified_position).cloned();
        let Some(mut verified) = verified else {
            return Err(MoveError::Refused("the slots have to be summed up again".to_owned()));
        };
        let number = self.number()?;
        let own = Part::own(number);
        let take_in = |verified: &mut Verified, bookings: Vec<Booking>, to: i64| {
            for booking in &bookings {
                verified.add(booking, |account| contains(&row.slots, account));
            }
            verified.position = to;
        };
        for look in 0.. {
            if look == LOOKS {
                return Err(MoveError::Refused("too much was booked since the slots were summed up".to_owned()));
            }
            let part = Part { after: verified.position, ..own };
            let (bookings, to) = sessions.appended(&row.slots, part, AT_ONCE).await?;
            let count = to - verified.position;
            take_in(&mut verified, bookings, to);
            if count < FEW {
                break;
            }
        }

        let locked = Instant::now();
        // Nothing is appended any more, so that the state says where the journal ends.
        let state = sessions.lock().await?;
        let to = state.next_position - 1;
        if to > verified.position {
            let bookings = sessions.bookings(&row.slots, verified.position, to).await?;
            take_in(&mut verified, bookings, to);
        }
        let effects = effects(&mut sessions, &state, &verified, self.now_us(), Direction::Out).await?;
        if max_locked_ms > 0 && locked.elapsed() > Duration::from_millis(max_locked_ms) {
            let ms = locked.elapsed().as_millis();
            // The session ends, and with it the transaction.
            return Err(MoveError::TooLong(format!(
                "the release had locked the source's lane for {ms} ms before its commit, and the limit is {max_locked_ms} ms, half of --max-pause. \
                 The driver tries again. If this repeats, lower the load, or abort the move, and make and apply a new plan with a larger --max-pause"
            )));
        }
        let kept = SourceProgress {
            last_position: verified.position,
            locked_us: i64::try_from(locked.elapsed().as_micros()).unwrap_or(i64::MAX),
            assets: verified.assets().iter().map(AssetSum::from).collect(),
            ..kept
        };
        let text = progress::write(&kept);
        let reversed = match kept.reverses {
            Some(reverses) => Some(reversed(&mut sessions, reverses, Phase::Reversed).await?),
            None => None,
        };
        let change = SlotsChange {
            step: DurableStep::Release,
            slots: &row.slots,
            from: SlotState::Owned,
            to: SlotState::Released,
            epoch: kept.slot_epoch,
            peer: &row.peer,
            state,
            effects: &effects,
            advances: advances(
                Advance { row: &row, to: Phase::Released, progress: &text },
                reversed.as_ref(),
                Phase::Reversed,
            ),
        };
        // The driver asks again for what does not come with the answer.
        let released = sessions.commit_and_read(&change, rest(after, kept.last_position)).await;
        self.0.lane.look_again();
        let (rows, scales) = released?;
        self.verified().remove(&id);
        let paused_us = i64::try_from(locked.elapsed().as_micros()).unwrap_or(i64::MAX);
        tracing::info!(
            move_id = %id, to = row.peer, last_position = kept.last_position,
            locked_ms = locked.elapsed().as_millis(), "slots released"
        );
        Ok(wire::ReleaseMoveResponse { paused_us, rows, ..answer(&kept, scales) })
    }

    /// Takes the slots. Everything that is relevant to them is in the tables and summed up in `incoming`. Returns the progress as
    /// stored.
    ///
    /// # Errors
    /// When the database does not answer, or another driver has taken over.
    pub(super) async fn take(
        &self,
        mut sessions: S::HandOver,
        row: &MoveRow,
        progress: &Progress,
        incoming: &Incoming,
    ) -> Result<Progress, MoveError> {
        let state = sessions.lock().await?;
        // Later than every time that came, so that the order of times is the order of bookings.
        let at_us = self.now_us().max(incoming.newest_us + 1);
        let effects = effects(&mut sessions, &state, &incoming.sums, at_us, Direction::In).await?;
        let taken = Progress {
            taken_position: effects.bookings.last().map_or(0, |booking| booking.position.0),
            taken_at_us: self.now_us(),
            blocked_by: None,
            ..progress.clone()
        };
        let text = progress::write(&taken);
        let reversed = match progress.reverses {
            Some(reverses) => Some(reversed(&mut sessions, reverses, Phase::GotBack).await?),
            None => None,
        };
        let change = SlotsChange {
            step: DurableStep::Take,
            slots: &row.slots,
            from: SlotState::Incoming,
            to: SlotState::Owned,
            epoch: progress.slot_epoch,
            peer: "",
            state,
            effects: &effects,
            advances: advances(Advance { row, to: Phase::Taken, progress: &text }, reversed.as_ref(), Phase::GotBack),
        };
        sessions.commit(&change).await?;
        self.0.lane.look_again();
        Ok(taken)
    }
}

/// The row of a move that ends because another one has brought the slots back.
async fn reversed(sessions: &mut impl HandOver, id: Uuid, to: Phase) -> Result<MoveRow, MoveError> {
    let row = sessions.get(id).await?;
    let row = row.ok_or_else(|| MoveError::Refused(format!("move {id} is not known here")))?;
    if !row.phase.may_become(to) {
        return Err(MoveError::Refused(format!("move {id} is {} and cannot be reversed", row.phase.as_str())));
    }
    Ok(row)
}

/// What a hand-over changes in rows of moves: its own row, and that of the move that it reverses.
fn advances<'a>(own: Advance<'a>, reversed: Option<&'a MoveRow>, to: Phase) -> Vec<Advance<'a>> {
    let reversed = reversed.map(|row| Advance { row, to, progress: &row.progress });
    [own].into_iter().chain(reversed).collect()
}

fn answer(kept: &SourceProgress, scales: Vec<wire::AssetScale>) -> wire::ReleaseMoveResponse {
    wire::ReleaseMoveResponse {
        last_position: kept.last_position,
        assets: kept
            .assets
            .iter()
            .map(|sum| wire::MoveAssetSum {
                asset: sum.asset.clone(),
                posted: sum.posted.clone(),
                shares: sum.shares.clone(),
            })
            .collect(),
        locked_us: kept.locked_us,
        scales,
        paused_us: 0,
        rows: None,
    }
}

/// The range of the bookings after a position, up to the last one before the release. They go with the answer, because slots belong to no
/// shard until the target has them. `None` if there are too many.
fn rest(after: i64, last: i64) -> Option<(i64, i64)> {
    (after >= last - LARGEST_REST).then_some((after, last))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// The bookings with which slots leave or come: for each asset what the accounts hold, and the in-transit shares. At least one, because
/// a change of ownership takes a position.
async fn effects(
    sessions: &mut impl HandOver,
    state: &ShardState,
    sums: &Verified,
    at_us: i64,
    direction: Direction,
) -> Result<Effects, MoveError> {
    let mut effects = Effects { next_position: Position(state.next_position), ..Effects::default() };
    let (money, shares) = match direction {
        Direction::Out => (BookingKind::MovedOut, BookingKind::SharesOut),
        Direction::In => (BookingKind::MovedIn, BookingKind::SharesIn),
    };
    let assets: BTreeSet<&String> = sums.posted.keys().chain(sums.shares.keys()).collect();
    let code = |asset: &String| {
        AssetCode::new(asset).map_err(|error| StoreError::Corrupt(format!("asset {asset}: {error}")))
    };
    let assets: Vec<(&String, AssetCode)> =
        assets.into_iter().map(|asset| Ok((asset, code(asset)?))).collect::<Result<_, StoreError>>()?;
    let in_transit: Vec<AccountId> = assets.iter().map(|(_, code)| AccountId::in_transit(*code)).collect();
    let there = sessions.posted(&in_transit).await?;
    for (asset, code) in assets {
        let amount = |sums: &BTreeMap<String, i128>| {
            let sum = sums.get(asset).copied().unwrap_or(0);
            i64::try_from(sum).map_err(|_| {
                MoveError::Refused(format!("the slots hold {sum} minor units of {asset}, more than an account can"))
            })
        };
        let (held, share) = (amount(&sums.posted)?, amount(&sums.shares)?);
        let id = AccountId::in_transit(code);
        let there = there.get(id.as_str()).copied();
        // The row may be behind the journal, so half of the range stays free.
        let after = i128::from(there.unwrap_or(0)).abs() + i128::from(held).abs();
        if after > i128::from(i64::MAX / 2) {
            return Err(MoveError::Refused(format!(
                "the shard's in-transit account of {asset} would hold {after} minor units, too near to what an account can"
            )));
        }
        if there.is_none() {
            append(&mut effects, opening(&id, code, at_us));
        }
        // A booking of kind MovedIn raises the lane's clock. It is also written where the accounts hold nothing.
        append(&mut effects, Booking::of_move(Position(0), money, code, held, at_us));
        if share != 0 {
            append(&mut effects, Booking::of_move(Position(0), shares, code, share, at_us));
        }
    }
    if effects.is_empty() {
        effects.add_marker(at_us);
    }
    Ok(effects)
}

fn append(effects: &mut Effects, booking: Booking) {
    let position = effects.next_position;
    effects.bookings.push(Booking { position, ..booking });
    effects.next_position = position.next();
}

fn opening(id: &AccountId, asset: AssetCode, at_us: i64) -> Booking {
    let leg = Leg { version: 1, previous: Position::NONE, posted: 0, held: 0, overdraft: Limit::Unlimited };
    let attributes = Attributes { status: ledger::AccountStatus::Open, max_balance: Limit::Unlimited };
    let extra = Extra { metadata: Some(Metadata::empty()), attributes: Some(attributes), ..Extra::default() };
    Booking {
        kind: BookingKind::Opened,
        payer: id.clone(),
        asset,
        payer_leg: Some(leg),
        extra: Some(Box::new(extra)),
        ..Booking::marker(Position(0), at_us)
    }
}
