//! Which slots a shard owns.

use ledger::{AccountId, Booking};
use shard_map::SLOTS;
use sqlx::{PgConnection, Row};

use crate::journal::slot_column;

/// The slots that a shard owned at one ownership version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedSlots {
    pub version: i64,
    owned: Vec<bool>,
}

const OWNED: &str = "SELECT s.ownership_version, o.slot FROM shardledger.shard_state s \
     LEFT JOIN shardledger.slot_ownership o ON o.state = 1";

impl OwnedSlots {
    pub fn new(version: i64, slots: impl IntoIterator<Item = u16>) -> Self {
        let mut owned = vec![false; usize::from(SLOTS)];
        for slot in slots {
            if let Some(place) = owned.get_mut(usize::from(slot)) {
                *place = true;
            }
        }
        Self { version, owned }
    }

    /// Reads the owned slots and their version in one snapshot.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(OWNED).fetch_all(connection).await?;
        let version = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("ownership_version")?;
        let slots: Vec<Option<i32>> = rows.iter().map(|row| row.try_get("slot")).collect::<Result<_, _>>()?;
        Ok(Self::new(version, slots.into_iter().flatten().filter_map(|slot| u16::try_from(slot).ok())))
    }

    /// Whether a client's account is in an owned slot.
    pub fn has(&self, account: &AccountId) -> bool {
        usize::try_from(slot_column(account)).is_ok_and(|slot| self.owned[slot])
    }

    /// Whether the shard answers for the booking: it is of an owned slot, or of this shard itself.
    pub fn answers_for(&self, booking: &Booking, shard_number: u16) -> bool {
        match booking.owner() {
            Some(owner) => self.has(owner),
            None => booking.position.shard_number() == shard_number,
        }
    }
}
