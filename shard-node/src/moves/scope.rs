//! What a move is about: parts of the source's journal, and slots. No I/O.

use ledger::Position;
use shard_map::SlotRange;

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
        Self { after: Position::first_of(shard).0 - 1, last: Position::first_of(shard).last_of_range().0 }
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
