//! Slots and runs of slots.

use std::{fmt, str::FromStr};

/// How many slots there are.
pub const SLOTS: u16 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 14;

/// One of the [`SLOTS`] slots. An account always belongs to the same slot; slots move between shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

/// A number that is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no slot {0}: slots are 0 to {last}", last = SLOTS - 1)]
pub struct NoSuchSlot(pub i64);

impl Slot {
    pub const FIRST: Self = Self(0);
    pub const LAST: Self = Self(SLOTS - 1);

    pub fn new(index: u16) -> Option<Self> {
        (index < SLOTS).then_some(Self(index))
    }

    /// The upper bits of a hash.
    pub(crate) fn from_hash(hash: u64) -> Self {
        Self((hash >> (u64::BITS - SLOT_BITS)) as u16)
    }

    pub fn index(self) -> u16 {
        self.0
    }

    /// The slot after this one; `None` for the last.
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// All slots in order.
    pub fn all() -> impl ExactSizeIterator<Item = Self> + DoubleEndedIterator {
        (0..SLOTS).map(Self)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<i64> for Slot {
    type Error = NoSuchSlot;

    fn try_from(number: i64) -> Result<Self, NoSuchSlot> {
        u16::try_from(number).ok().and_then(Self::new).ok_or(NoSuchSlot(number))
    }
}

/// As the database has it.
impl TryFrom<i32> for Slot {
    type Error = NoSuchSlot;

    fn try_from(number: i32) -> Result<Self, NoSuchSlot> {
        i64::from(number).try_into()
    }
}

/// As the wire has it.
impl TryFrom<u32> for Slot {
    type Error = NoSuchSlot;

    fn try_from(number: u32) -> Result<Self, NoSuchSlot> {
        i64::from(number).try_into()
    }
}

/// Slots `first` to `last`, both included; never empty. Written `0-4095`, or `5` for a single one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotRange {
    first: Slot,
    last: Slot,
}

/// Why a text is no range of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSlotRange {
    #[error("is neither a slot such as \"5\" nor a range such as \"0-4095\"")]
    Form,
    #[error("ends before it begins")]
    Backwards,
    #[error(transparent)]
    NoSuchSlot(NoSuchSlot),
}

impl SlotRange {
    pub const ALL: Self = Self { first: Slot::FIRST, last: Slot::LAST };

    pub fn new(first: Slot, last: Slot) -> Result<Self, InvalidSlotRange> {
        if last < first {
            return Err(InvalidSlotRange::Backwards);
        }
        Ok(Self { first, last })
    }

    pub fn first(self) -> Slot {
        self.first
    }

    pub fn last(self) -> Slot {
        self.last
    }

    /// How many slots; at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> u16 {
        self.last.0 - self.first.0 + 1
    }

    pub fn contains(self, slot: Slot) -> bool {
        (self.first..=self.last).contains(&slot)
    }

    /// The slots from `first` to the one before `next`; `None` if there are none.
    pub fn until(first: Slot, next: Slot) -> Option<Self> {
        (first < next).then(|| Self { first, last: Slot(next.0 - 1) })
    }

    /// The slots that are in both ranges.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last)).ok()
    }

    /// The slots of this range that come before all slots of `other`.
    pub fn part_before(self, other: Self) -> Option<Self> {
        let next = self.last.next().map_or(other.first, |next| next.min(other.first));
        Self::until(self.first, next)
    }

    /// The slots of this range that come after all slots of `other`.
    pub fn part_after(self, other: Self) -> Option<Self> {
        let first = other.last.next()?.max(self.first);
        Self::new(first, self.last).ok()
    }

    /// The places of the slots in a table of all slots.
    pub fn indices(self) -> std::ops::RangeInclusive<usize> {
        usize::from(self.first.0)..=usize::from(self.last.0)
    }

    /// Whether no slot lies between this range and `other`, which does not begin earlier.
    pub fn reaches(self, other: Self) -> bool {
        self.last.0 + 1 >= other.first.0
    }

    /// The slots of this range and of `other`, which begins later, and those in between.
    #[must_use]
    pub fn up_to(self, other: Self) -> Self {
        Self { last: self.last.max(other.last), ..self }
    }

    pub fn slots(self) -> impl DoubleEndedIterator<Item = Slot> {
        (self.first.0..=self.last.0).map(Slot)
    }

    /// All slots in `parts` ranges whose sizes differ by one at most.
    ///
    /// # Panics
    /// When `parts` is 0 or more than [`SLOTS`].
    pub fn split_evenly(parts: u16) -> impl Iterator<Item = Self> {
        assert!((1..=SLOTS).contains(&parts), "{SLOTS} slots do not make {parts} ranges");
        let start = move |part: u16| (u32::from(part) * u32::from(SLOTS) / u32::from(parts)) as u16;
        (0..parts).map(move |part| Self { first: Slot(start(part)), last: Slot(start(part + 1) - 1) })
    }
}

/// The fewest ranges that cover slots or ranges of slots, which must be in ascending order.
pub fn merge_slots(slots: impl IntoIterator<Item = impl Into<SlotRange>>) -> Vec<SlotRange> {
    let mut merged: Vec<SlotRange> = Vec::new();
    for range in slots.into_iter().map(Into::into) {
        match merged.last_mut() {
            Some(before) if before.reaches(range) => *before = before.up_to(range),
            _ => merged.push(range),
        }
    }
    merged
}

impl From<Slot> for SlotRange {
    fn from(slot: Slot) -> Self {
        Self { first: slot, last: slot }
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for SlotRange {
    type Err = InvalidSlotRange;

    fn from_str(text: &str) -> Result<Self, InvalidSlotRange> {
        let slot = |text: &str| {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(InvalidSlotRange::Form);
            }
            // Too many digits for an i64 are no slot either.
            Slot::try_from(text.parse().unwrap_or(i64::MAX)).map_err(InvalidSlotRange::NoSuchSlot)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(slot(first)?, slot(last)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_they_print() {
        for text in ["0-4095", "5", "0-16383", "16383"] {
            assert_eq!(text.parse::<SlotRange>().unwrap().to_string(), text);
        }
        assert_eq!("7-7".parse::<SlotRange>().unwrap().to_string(), "7");
    }

    #[test]
    fn what_is_no_range_says_why() {
        for form in ["", "-", "1-", "-1", "1-2-3", "a", "1 - 2", "0x10", "+1", "1..2"] {
            assert_eq!(form.parse::<SlotRange>(), Err(InvalidSlotRange::Form), "{form:?}");
        }
        assert_eq!("9-8".parse::<SlotRange>(), Err(InvalidSlotRange::Backwards));
        assert_eq!("0-16384".parse::<SlotRange>(), Err(InvalidSlotRange::NoSuchSlot(NoSuchSlot(16_384))));
        assert!(matches!("99999999999999999999".parse::<SlotRange>(), Err(InvalidSlotRange::NoSuchSlot(_))));
    }

    #[test]
    fn numbers_become_slots_only_within_bounds() {
        assert_eq!(Slot::new(SLOTS), None);
        assert_eq!(Slot::try_from(-1_i32), Err(NoSuchSlot(-1)));
        assert_eq!(Slot::try_from(16_384_u32), Err(NoSuchSlot(16_384)));
        assert_eq!(Slot::try_from(16_383_u32), Ok(Slot::LAST));
        assert_eq!(Slot::all().len(), usize::from(SLOTS));
    }

    #[test]
    fn a_range_has_parts_before_within_and_after_another() {
        let parts = |range: &str, other: &str| {
            let (range, other): (SlotRange, SlotRange) = (range.parse().unwrap(), other.parse().unwrap());
            let parts = [range.part_before(other), range.intersection(other), range.part_after(other)];
            parts.map(|part| part.map(|part| part.to_string()).unwrap_or_default())
        };
        assert_eq!(parts("0-9", "3-5"), ["0-2", "3-5", "6-9"]);
        assert_eq!(parts("3-5", "0-9"), ["", "3-5", ""]);
        assert_eq!(parts("0-3", "3-5"), ["0-2", "3", ""]);
        assert_eq!(parts("5-9", "3-5"), ["", "5", "6-9"]);
        assert_eq!(parts("0-2", "3-5"), ["0-2", "", ""]);
        assert_eq!(parts("6-9", "3-5"), ["", "", "6-9"]);
        assert_eq!(parts("0-16383", "0-16383"), ["", "0-16383", ""]);
        assert_eq!(parts("16383", "0-16382"), ["", "", "16383"]);
        assert_eq!(SlotRange::until(Slot(3), Slot(3)), None);
        assert_eq!(SlotRange::until(Slot(3), Slot(5)), Some("3-4".parse().unwrap()));
        assert_eq!((Slot(3).next(), Slot::LAST.next()), (Some(Slot(4)), None));
    }

    #[test]
    fn an_even_split_covers_every_slot_once() {
        for parts in [1, 2, 3, 4, 7, 1000, SLOTS] {
            let ranges: Vec<_> = SlotRange::split_evenly(parts).collect();
            assert_eq!(ranges.len(), usize::from(parts));
            assert!(ranges.iter().flat_map(|r| r.slots()).eq(Slot::all()), "{parts} parts");
            let (least, most) = (ranges.iter().map(|r| r.len()).min(), ranges.iter().map(|r| r.len()).max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{parts} parts");
        }
    }

    #[test]
    fn ranges_merge_where_they_touch_or_overlap() {
        let ranges = ["0-2", "3", "5-9", "7-8", "8-12", "16383"].map(|text| text.parse::<SlotRange>().unwrap());
        let text: Vec<_> = merge_slots(ranges).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0-3", "5-12", "16383"]);
    }

    #[test]
    fn slots_merge_into_the_fewest_ranges() {
        let slots = [0, 1, 2, 7, 9, 10].map(Slot);
        let text: Vec<_> = merge_slots(slots).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0-2", "7", "9-10"]);
        assert_eq!(merge_slots(Slot::all()), [SlotRange::ALL]);
        assert!(merge_slots(Vec::<Slot>::new()).is_empty());
    }
}
