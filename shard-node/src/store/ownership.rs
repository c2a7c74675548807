//! `slot_ownership`: the truth about which slots this shard owns.

use ledger::outcome::NotOwner;
use shard_map::{SLOTS, Slot};
use sqlx::PgConnection;

use super::{
    StoreError,
    session::{Session, column},
};

/// What the shard says about one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotOwnership {
    pub state: SlotState,
    pub epoch: i64,
    /// The shard at the other end of a move; empty when there is none.
    pub peer: String,
}

/// The numbers are stored: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// Never heard of: another shard's.
    Absent = 0,
    Owned = 1,
    /// Given away to the peer.
    Released = 2,
    /// Being taken over; the peer still owns it.
    Incoming = 3,
}

impl SlotState {
    pub fn from_code(code: i16) -> Option<Self> {
        [Self::Absent, Self::Owned, Self::Released, Self::Incoming].into_iter().find(|s| *s as i16 == code)
    }
}

/// All slots, as of one `ownership_version`.
#[derive(Debug, Clone)]
pub struct Ownership {
    slots: Vec<SlotOwnership>,
}

impl Ownership {
    pub fn of(&self, slot: Slot) -> &SlotOwnership {
        &self.slots[usize::from(slot.index())]
    }

    /// The fence: INV-2, a shard writes only slots it owns.
    pub fn check(&self, slot: Slot) -> Result<(), NotOwner> {
        let ownership = self.of(slot);
        if ownership.state == SlotState::Owned {
            return Ok(());
        }
        Err(NotOwner {
            slot: slot.index(),
            state: ownership.state as u8,
            epoch: ownership.epoch,
            owner: ownership.peer.clone(),
        })
    }

    pub fn owned(&self) -> usize {
        self.slots.iter().filter(|s| s.state == SlotState::Owned).count()
    }

    pub fn highest_epoch(&self) -> i64 {
        self.slots.iter().map(|s| s.epoch).max().unwrap_or(0)
    }

    /// Runs of slots with the same ownership, absent ones left out: (first, last, ownership).
    pub fn ranges(&self) -> Vec<(u16, u16, SlotOwnership)> {
        let mut ranges: Vec<(u16, u16, SlotOwnership)> = Vec::new();
        for (slot, ownership) in (0..SLOTS).zip(&self.slots) {
            if ownership.state == SlotState::Absent {
                continue;
            }
            match ranges.last_mut() {
                Some((_, last, same)) if same == ownership && *last + 1 == slot => *last = slot,
                _ => ranges.push((slot, slot, ownership.clone())),
            }
        }
        ranges
    }
}

const CLAIM: &str =
    "INSERT INTO slot_ownership (slot, state, epoch) SELECT slot, 1, 1 FROM unnest($1::int[]) AS s(slot)";

/// Claims slots that nobody ever owned, at epoch 1.
pub async fn claim(connection: &mut PgConnection, slots: Vec<i32>) -> Result<(), sqlx::Error> {
    sqlx::query(CLAIM).bind(slots).execute(connection).await?;
    Ok(())
}

pub const SELECT: &str = "SELECT slot, state, epoch, peer FROM slot_ownership";

pub async fn load(session: &mut Session) -> Result<Ownership, StoreError> {
    let rows = session.run(async |c| sqlx::query(SELECT).fetch_all(c).await).await?;
    from_rows(&rows)
}

pub fn from_rows(rows: &[sqlx::postgres::PgRow]) -> Result<Ownership, StoreError> {
    let absent = SlotOwnership { state: SlotState::Absent, epoch: 0, peer: String::new() };
    let mut slots = vec![absent; usize::from(SLOTS)];
    for row in rows {
        let slot: i32 = column(row, "slot")?;
        let state: i16 = column(row, "state")?;
        let place = usize::try_from(slot).ok().and_then(|slot| slots.get_mut(slot));
        let (Some(place), Some(state)) = (place, SlotState::from_code(state)) else {
            return Err(StoreError::Corrupt(format!("slot_ownership has slot {slot} in state {state}")));
        };
        *place = SlotOwnership { state, epoch: column(row, "epoch")?, peer: column(row, "peer")? };
    }
    Ok(Ownership { slots })
}
