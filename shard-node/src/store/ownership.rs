//! `slot_ownership`: which slots this shard owns. This table is authoritative; the shard map is a hint.

use std::collections::BTreeSet;

use identity::Disagreement;
use ledger::{AccountId, outcome::NotOwner};
use shard_map::{ShardMap, Slot, SlotRange, merge_slots};
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

/// What is recorded of a slot that belongs to another shard.
static ABSENT: SlotOwnership = SlotOwnership { state: SlotState::Absent, epoch: 0, peer: String::new() };

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
    /// Slots with the same ownership, in ascending order and in the fewest ranges. Slots that are in none are absent.
    ranges: Vec<(SlotRange, SlotOwnership)>,
    /// How many slots are owned, and the highest epoch.
    owned: usize,
    highest_epoch: i64,
}

impl Ownership {
    /// `ranges` are in ascending order and do not overlap.
    fn new(ranges: impl IntoIterator<Item = (SlotRange, SlotOwnership)>) -> Self {
        let mut merged: Vec<(SlotRange, SlotOwnership)> = Vec::new();
        for (range, ownership) in ranges {
            if ownership.state == SlotState::Absent {
                continue;
            }
            match merged.last_mut() {
                Some((before, same)) if *same == ownership && before.reaches(range) => {
                    *before = before.up_to(range);
                }
                _ => merged.push((range, ownership)),
            }
        }
        let owned = merged.iter().filter(|(_, ownership)| ownership.state == SlotState::Owned);
        let owned = owned.map(|(range, _)| usize::from(range.len())).sum();
        let highest_epoch = merged.iter().map(|(_, ownership)| ownership.epoch).max().unwrap_or(0);
        Self { ranges: merged, owned, highest_epoch }
    }

    /// Every slot is owned.
    #[cfg(any(test, feature = "simulation"))]
    pub fn of_everything() -> Self {
        Self::of_ranges(&[SlotRange::ALL])
    }

    /// The slots of these ranges are owned, and the others never were.
    #[cfg(any(test, feature = "simulation"))]
    pub fn of_ranges(ranges: &[SlotRange]) -> Self {
        let owned = SlotOwnership { state: SlotState::Owned, epoch: 1, peer: String::new() };
        let mut ranges = ranges.to_vec();
        ranges.sort_unstable();
        Self::new(ranges.into_iter().map(|range| (range, owned.clone())))
    }

    /// Some slots are replaced, as `change` says of each. Returns how many.
    #[cfg(feature = "simulation")]
    pub fn changed(
        &self,
        slots: &[SlotRange],
        change: impl Fn(&SlotOwnership) -> Option<SlotOwnership>,
    ) -> (Self, usize) {
        let mut count = 0;
        let pieces = self.pieces(slots.iter().copied()).map(|piece| {
            let before = self.of(piece.first());
            let is_meant = slots.iter().any(|range| range.contains(piece.first()));
            let new = is_meant.then(|| change(before)).flatten();
            count += new.as_ref().map_or(0, |_| usize::from(piece.len()));
            (piece, new.unwrap_or_else(|| before.clone()))
        });
        let changed = Self::new(pieces);
        (changed, count)
    }

    /// All slots in ranges, in ascending order. The slots of a range have the same ownership here, and are either all or none of them in each of
    /// `others`.
    fn pieces(&self, others: impl IntoIterator<Item = SlotRange>) -> impl Iterator<Item = SlotRange> {
        let ranges = self.ranges.iter().map(|(range, _)| *range).chain(others);
        let edges = ranges.flat_map(|range| [Some(range.first()), range.last().next()]);
        let firsts: BTreeSet<Slot> = edges.flatten().chain([Slot::FIRST]).collect();
        let mut firsts = firsts.into_iter().peekable();
        std::iter::from_fn(move || {
            let first = firsts.next()?;
            let last = SlotRange::new(first, Slot::LAST).ok();
            firsts.peek().map_or(last, |next| SlotRange::until(first, *next))
        })
    }

    pub fn of(&self, slot: Slot) -> &SlotOwnership {
        let place = self.ranges.partition_point(|(range, _)| range.last() < slot);
        match self.ranges.get(place) {
            Some((range, ownership)) if range.contains(slot) => ownership,
            _ => &ABSENT,
        }
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
        let pieces = self.pieces(before.ranges.iter().map(|(range, _)| *range));
        merge_slots(pieces.filter(|piece| self.has_gained(piece.first(), before)))
    }

    /// Whether the slot of a client's account has come since `before`.
    pub fn has_gained_account(&self, account: &AccountId, before: &Self) -> bool {
        !account.is_system() && self.has_gained(shard_map::slot_of(account.as_str()), before)
    }

    /// The owned slots with their epochs, in the fewest ranges.
    pub fn owned_ranges(&self) -> Vec<(SlotRange, i64)> {
        let owned = self.ranges.iter().filter(|(_, ownership)| ownership.state == SlotState::Owned);
        owned.map(|(slots, ownership)| (*slots, ownership.epoch)).collect()
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
        let is_used = |state| matches!(state, SlotState::Owned | SlotState::Incoming);
        if map.index_of(shard).is_none() && self.ranges.iter().any(|(_, ownership)| is_used(ownership.state)) {
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

    /// Ranges of slots with the same ownership, in ascending order. Slots that are in none are absent.
    pub fn ranges(&self) -> &[(SlotRange, SlotOwnership)] {
        &self.ranges
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
    let mut slots = Vec::with_capacity(rows.len());
    for row in rows {
        let slot: i32 = column(row, "slot")?;
        let state: i16 = column(row, "state")?;
        let (Ok(slot), Some(state)) = (Slot::try_from(slot), SlotState::from_code(state)) else {
            return Err(StoreError::Corrupt(format!("slot_ownership has slot {slot} in state {state}")));
        };
        let ownership = SlotOwnership { state, epoch: column(row, "epoch")?, peer: column(row, "peer")? };
        slots.push((SlotRange::from(slot), ownership));
    }
    slots.sort_unstable_by_key(|(slot, _)| *slot);
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
        let range = |slots: &std::ops::Range<u16>| format!("{}-{}", slots.start, slots.end - 1).parse().unwrap();
        let of = |state: SlotState, peer: &str| SlotOwnership { state, epoch: 1, peer: peer.to_owned() };
        Ownership::new(ranges.iter().map(|(slots, state, peer)| (range(slots), of(*state, peer))))
    }

    fn range(text: &str) -> SlotRange {
        text.parse().unwrap()
    }

    #[test]
    fn slots_beside_and_between_the_ranges_are_absent() {
        let ownership =
            owning(&[(1..5, SlotState::Owned, ""), (5..7, SlotState::Owned, ""), (9..10, SlotState::Incoming, "s1")]);
        let texts: Vec<String> = ownership.ranges().iter().map(|(range, _)| range.to_string()).collect();
        assert_eq!(texts, ["1-6", "9"]);
        let state = |slot: u16| ownership.of(Slot::new(slot).unwrap()).state;
        let states: Vec<SlotState> = (0..11).map(state).collect();
        let (absent, owned) = (SlotState::Absent, SlotState::Owned);
        let incoming = SlotState::Incoming;
        assert_eq!(states, [absent, owned, owned, owned, owned, owned, owned, absent, absent, incoming, absent]);
        assert_eq!(ownership.owned(), 6);
    }

    #[test]
    fn a_slot_that_left_and_came_back_counts_as_gained() {
        let before = owning(&[(0..10, SlotState::Owned, ""), (10..20, SlotState::Incoming, "s1")]);
        let epoch_2 = SlotOwnership { state: SlotState::Owned, epoch: 2, peer: String::new() };
        let epoch_1 = SlotOwnership { epoch: 1, ..epoch_2.clone() };
        let now = Ownership::new([
            (range("0-3"), epoch_1.clone()),
            (range("4-5"), epoch_2.clone()),
            (range("6-9"), epoch_1),
            (range("10-14"), epoch_2),
        ]);
        assert_eq!(now.gained_since(&before), [range("4-5"), range("10-14")]);
        assert_eq!(before.gained_since(&before), []);
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn a_change_touches_only_the_slots_that_it_names() {
        let before = owning(&[(0..10, SlotState::Owned, "")]);
        let released = SlotOwnership { state: SlotState::Released, epoch: 2, peer: "s1".to_owned() };
        let (after, count) = before.changed(&[range("4-5"), range("9-12")], |slot| {
            (slot.state == SlotState::Owned).then(|| released.clone())
        });
        assert_eq!(count, 3, "slots 10 to 12 are absent");
        let texts: Vec<String> = after.ranges().iter().map(|(range, it)| format!("{range} {}", it.epoch)).collect();
        assert_eq!(texts, ["0-3 1", "4-5 2", "6-8 1", "9 2"]);
        let (gone, count) = after.changed(&[SlotRange::ALL], |_| Some(ABSENT.clone()));
        assert_eq!((gone.ranges().len(), gone.owned(), count), (0, 0, usize::from(shard_map::SLOTS)));
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
