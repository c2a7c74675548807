//! `slot_ownership`: which slots this shard owns. This table is authoritative; the shard map is a hint.

use identity::Disagreement;
use ledger::{AccountId, outcome::NotOwner};
use shard_map::{SLOTS, ShardMap, Slot, SlotRange, merge_slots};
use sqlx::PgConnection;

use super::{
    StoreError,
    session::{Session, column},
};

/// What the shard records about one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotOwnership {
    pub state: SlotState,
    pub epoch: i64,
    /// The shard at the other end of a move; empty without a move.
    pub peer: String,
}

impl SlotOwnership {
    /// Equal; quick where there is no move, which is nearly everywhere.
    fn is_like(&self, other: &Self) -> bool {
        let have_no_peer = self.peer.is_empty() && other.peer.is_empty();
        (self.state, self.epoch) == (other.state, other.epoch) && (have_no_peer || self.peer == other.peer)
    }
}

/// The numbers are stored: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// Not recorded: the slot belongs to another shard.
    Absent = 0,
    Owned = 1,
    /// Given to the peer.
    Released = 2,
    /// Being taken over; the peer still owns the slot.
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
    /// How many slots are owned, and the highest epoch.
    owned: usize,
    highest_epoch: i64,
}

impl Ownership {
    /// What is recorded of each slot, in their order.
    fn new(slots: Vec<SlotOwnership>) -> Self {
        let owned = slots.iter().filter(|slot| slot.state == SlotState::Owned).count();
        let highest_epoch = slots.iter().map(|slot| slot.epoch).max().unwrap_or(0);
        Self { slots, owned, highest_epoch }
    }

    /// Every slot is owned.
    #[cfg(any(test, feature = "simulation"))]
    pub fn of_everything() -> Self {
        let owned = SlotOwnership { state: SlotState::Owned, epoch: 1, peer: String::new() };
        Self::new(vec![owned; usize::from(SLOTS)])
    }

    /// The slots of these ranges are owned, and the others never were.
    #[cfg(feature = "simulation")]
    pub fn of_ranges(ranges: &[SlotRange]) -> Self {
        let slot = |slot: Slot| {
            let is_owned = ranges.iter().any(|range| range.contains(slot));
            let (state, epoch) = if is_owned { (SlotState::Owned, 1) } else { (SlotState::Absent, 0) };
            SlotOwnership { state, epoch, peer: String::new() }
        };
        Self::new(Slot::all().map(slot).collect())
    }

    /// Some slots are replaced, as `change` says of each. Returns how many.
    #[cfg(feature = "simulation")]
    pub fn changed(
        &self,
        slots: &[SlotRange],
        change: impl Fn(&SlotOwnership) -> Option<SlotOwnership>,
    ) -> (Self, usize) {
        let (mut changed, mut count) = (self.slots.clone(), 0);
        for slot in slots.iter().copied().flat_map(SlotRange::slots) {
            if let Some(new) = change(self.of(slot)) {
                changed[usize::from(slot.index())] = new;
                count += 1;
            }
        }
        (Self::new(changed), count)
    }

    pub fn of(&self, slot: Slot) -> &SlotOwnership {
        &self.slots[usize::from(slot.index())]
    }

    /// The fence of INV-2: a shard writes only slots that it owns.
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

    /// Whether a client's account is in an owned slot. The shard's in-transit accounts are in none.
    pub fn owns(&self, account: &AccountId) -> bool {
        !account.is_system() && self.of(shard_map::slot_of(account.as_str())).state == SlotState::Owned
    }

    /// Whether the slot is owned now and was not `before`. A slot that left and came back has a higher epoch.
    fn has_gained(&self, slot: Slot, before: &Self) -> bool {
        let (now, then) = (self.of(slot), before.of(slot));
        now.state == SlotState::Owned && (then.state != SlotState::Owned || then.epoch != now.epoch)
    }

    /// The slots that have come since `before`.
    pub fn gained_since(&self, before: &Self) -> Vec<SlotRange> {
        merge_slots(Slot::all().filter(|slot| self.has_gained(*slot, before)))
    }

    /// Whether the slot of a client's account has come since `before`.
    pub fn has_gained_account(&self, account: &AccountId, before: &Self) -> bool {
        !account.is_system() && self.has_gained(shard_map::slot_of(account.as_str()), before)
    }

    /// The owned slots with their epochs, in the fewest ranges.
    pub fn owned_ranges(&self) -> Vec<(SlotRange, i64)> {
        let owned = self.ranges().into_iter().filter(|(_, _, ownership)| ownership.state == SlotState::Owned);
        owned
            .filter_map(|(first, last, ownership)| {
                let slots = SlotRange::new(Slot::new(first)?, Slot::new(last)?).ok()?;
                Some((slots, ownership.epoch))
            })
            .collect()
    }

    /// Why `map` must not replace `before`: it gives away a slot that this shard owns, or gives this shard a slot
    /// that it was never handed. A map may lag behind moves, so slots that `map` leaves where `before` had them are
    /// not checked.
    pub fn refuse_map(&self, shard: &str, before: Option<&ShardMap>, map: &ShardMap) -> Option<Disagreement> {
        if let Some(missing) = before.and_then(|before| before.missing_in(map).into_iter().next()) {
            let found = format!("version {}, in which {missing}", map.version);
            let remedy = "list every shard, and every removed shard under [[removed]]";
            return Some(Disagreement::new("shards of the map", "every known shard", found, remedy));
        }
        let is_used = |slot: &Slot| matches!(self.of(*slot).state, SlotState::Owned | SlotState::Incoming);
        if map.index_of(shard).is_none() && Slot::all().any(|slot| is_used(&slot)) {
            let found = format!("version {}, without shard {shard}", map.version);
            let remedy = "this shard owns slots, or receives some: `shardctl shard remove` takes only an empty shard out of the map";
            return Some(Disagreement::new("shards of the map", format!("shard {shard}"), found, remedy));
        }
        let moved = |slot: Slot| before.is_none_or(|before| before.owner_id(slot) != map.owner_id(slot));
        let wrong = |slot: &Slot| {
            let (state, to) = (self.of(*slot).state, map.owner_id(*slot));
            moved(*slot)
                && ((state == SlotState::Owned && to != shard) || (state == SlotState::Absent && to == shard))
        };
        let slot = Slot::all().find(|slot| wrong(slot))?;
        let count = Slot::all().filter(|slot| wrong(slot)).count();
        let (owns, to) = (self.of(slot).state == SlotState::Owned, map.owner_id(slot));
        let owner = if owns { shard } else { before.map_or("another shard", |before| before.owner_id(slot)) };
        let remedy = "only a move changes the shard of a slot: leave the slots where they are";
        let found = format!("shard {to} in version {} of the map ({count} such slots)", map.version);
        Some(Disagreement::new(format!("owner of slot {slot}"), format!("shard {owner}"), found, remedy))
    }

    pub fn owned(&self) -> usize {
        self.owned
    }

    pub fn highest_epoch(&self) -> i64 {
        self.highest_epoch
    }

    /// Runs of slots with the same ownership, without absent ones: (first, last, ownership).
    pub fn ranges(&self) -> Vec<(u16, u16, SlotOwnership)> {
        let mut ranges: Vec<(u16, u16, SlotOwnership)> = Vec::new();
        for (slot, ownership) in (0..SLOTS).zip(&self.slots) {
            if ownership.state == SlotState::Absent {
                continue;
            }
            match ranges.last_mut() {
                Some((_, last, same)) if same.is_like(ownership) && *last + 1 == slot => *last = slot,
                _ => ranges.push((slot, slot, ownership.clone())),
            }
        }
        ranges
    }
}

/// Slots in PostgreSQL's text form of an `int4multirange`.
pub fn as_multirange(slots: &[SlotRange]) -> String {
    let ranges: Vec<String> = slots.iter().map(|range| format!("[{},{}]", range.first(), range.last())).collect();
    format!("{{{}}}", ranges.join(","))
}

const CLAIM: &str =
    "INSERT INTO shardledger.slot_ownership (slot, state, epoch) SELECT slot, 1, 1 FROM unnest($1::int[]) AS s(slot)";

/// Claims slots that no shard ever owned, at epoch 1.
pub async fn claim(connection: &mut PgConnection, slots: Vec<i32>) -> Result<(), sqlx::Error> {
    sqlx::query(CLAIM).bind(slots).execute(connection).await?;
    Ok(())
}

const REMEMBER_MAP: &str = "INSERT INTO shardledger.known_map (version, text) VALUES ($1, $2)";

/// Stores the map that the shard is initialised with.
pub async fn remember_map(connection: &mut PgConnection, map: &ShardMap) -> Result<(), sqlx::Error> {
    let version = i64::try_from(map.version).unwrap_or(i64::MAX);
    sqlx::query(REMEMBER_MAP).bind(version).bind(map.to_toml()).execute(connection).await?;
    Ok(())
}

pub const SELECT: &str = "SELECT slot, state, epoch, peer FROM shardledger.slot_ownership";

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
    Ok(Ownership::new(slots))
}

#[cfg(test)]
mod tests {
    use shard_map::{ClusterId, Shard};

    use super::*;

    fn map(version: u64, slots: [&str; 3]) -> ShardMap {
        let shard = |(number, slots): (u16, &str)| Shard {
            id: format!("s{number}"),
            number,
            nodes: vec![format!("http://127.0.0.1:{}", 7500 + number)],
            slots: slots.split_whitespace().map(|range| range.parse().unwrap()).collect(),
        };
        ShardMap::new(ClusterId::generate(), version, (0..).zip(slots).map(shard).collect()).unwrap()
    }

    fn owning(ranges: &[(std::ops::Range<u16>, SlotState, &str)]) -> Ownership {
        let absent = SlotOwnership { state: SlotState::Absent, epoch: 0, peer: String::new() };
        let mut slots = vec![absent; usize::from(SLOTS)];
        for (range, state, peer) in ranges {
            for slot in range.clone() {
                slots[usize::from(slot)] = SlotOwnership { state: *state, epoch: 1, peer: (*peer).to_owned() };
            }
        }
        Ownership::new(slots)
    }

    #[test]
    fn a_map_that_reassigns_an_unmoved_slot_is_refused() {
        let before = map(1, ["0-8191", "8192-16383", ""]);
        let taken = map(2, ["0-5000", "8192-16383", "5001-8191"]);
        let s0 = owning(&[(0..8192, SlotState::Owned, "")]);
        let refused = s0.refuse_map("s0", Some(&before), &taken).unwrap();
        assert_eq!((refused.fact.as_str(), refused.expected.as_str()), ("owner of slot 5001", "shard s0"));
        assert!(refused.found.contains("shard s2") && refused.remedy.contains("only a move"), "{refused}");
        // The shard that receives the slots was never handed them.
        assert!(owning(&[]).refuse_map("s2", Some(&before), &taken).is_some());
        assert!(s0.refuse_map("s0", None, &taken).is_some(), "with no former map, ownership alone decides");

        // After the move.
        let moved = owning(&[(0..5001, SlotState::Owned, ""), (5001..8192, SlotState::Released, "s2")]);
        assert_eq!(moved.refuse_map("s0", Some(&before), &taken), None);
        assert_eq!(owning(&[(5001..8192, SlotState::Owned, "")]).refuse_map("s2", Some(&before), &taken), None);
        assert_eq!(owning(&[(5001..8192, SlotState::Incoming, "s0")]).refuse_map("s2", Some(&before), &taken), None);
        // A map with a new address and unmoved slots is outdated, but not wrong.
        let readdressed = map(2, ["0-8191", "8192-16383", ""]);
        assert_eq!(moved.refuse_map("s0", Some(&before), &readdressed), None);
    }
}
