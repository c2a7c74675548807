//! Ranges of slots.

use shard_map::{Slot, SlotRange};

use super::{BadMessage, bad};
use crate::generated as wire;

impl From<SlotRange> for wire::SlotRange {
    fn from(range: SlotRange) -> Self {
        Self { first: range.first().index().into(), last: range.last().index().into() }
    }
}

impl TryFrom<wire::SlotRange> for SlotRange {
    type Error = BadMessage;

    fn try_from(range: wire::SlotRange) -> Result<Self, BadMessage> {
        let slot = |index: u32| Slot::try_from(index).map_err(|reason| bad("slots", reason));
        Self::new(slot(range.first)?, slot(range.last)?).map_err(|reason| bad("slots", reason))
    }
}

pub fn slots_to_wire(slots: &[SlotRange]) -> Vec<wire::SlotRange> {
    slots.iter().copied().map(wire::SlotRange::from).collect()
}

/// # Errors
/// Names the first slot that does not exist, or the first range that ends before it begins.
pub fn slots_from_wire(slots: &[wire::SlotRange]) -> Result<Vec<SlotRange>, BadMessage> {
    slots.iter().copied().map(SlotRange::try_from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back_as_they_were_sent_and_bad_ones_are_refused() {
        let sent = [wire::SlotRange { first: 0, last: 4_095 }, wire::SlotRange { first: 5_000, last: 5_000 }];
        assert_eq!(slots_to_wire(&slots_from_wire(&sent).unwrap()), sent);
        for (first, last) in [(5, 4), (0, 16_384), (u32::MAX, u32::MAX)] {
            assert!(slots_from_wire(&[wire::SlotRange { first, last }]).is_err(), "{first}-{last}");
        }
    }
}
