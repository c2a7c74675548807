//! The ids that the shard used last, so that a repeated request is looked up before it is decided.
//!
//! A replay that nothing suspects costs a failed transaction, and another decision with all ids looked up. Requests are
//! repeated within seconds or minutes as a rule, so a small memory finds nearly all of them. The memory may forget an id and
//! may take a new id for a used one; either costs time and changes no answer.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use ledger::{Booking, TransferId, booking::Role, operation::Operation};

/// Groups of places, a power of two. An id belongs to one group.
const GROUPS: usize = 1 << 20;
/// Ids remembered for each group: the last ones. All groups together remember about eight million ids in 32 MiB.
const PLACES: usize = 8;

#[derive(Debug)]
pub struct RecentIds {
    groups: Box<[Group]>,
    hasher: FixedState,
}

/// Parts of the hashes of ids, the newest first; 0 where there is none. A group does not cross a cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(32))]
struct Group([u32; PLACES]);

impl RecentIds {
    pub fn new() -> Self {
        let groups = GROUPS;
        // A simulation starts thousands of lanes a minute, each of which sees few ids.
        #[cfg(feature = "simulation")]
        let groups = if telemetry::simulation::is_running() { 64 } else { groups };
        Self { groups: vec![Group::default(); groups].into(), hasher: FixedState::default() }
    }

    /// Remembers what a booking answers.
    pub fn remember(&mut self, booking: &Booking) {
        // Holds are always looked up.
        let role = booking.kind.role();
        if let (Some(id), Role::Transfer | Role::Settlement | Role::Register) = (booking.id, role) {
            let (group, part) = self.place_of(id, role);
            let Group(parts) = &mut self.groups[group];
            parts.copy_within(..PLACES - 1, 1);
            parts[0] = part;
        }
    }

    fn contains(&self, id: TransferId, role: Role) -> bool {
        let (group, part) = self.place_of(id, role);
        self.groups[group].0.contains(&part)
    }

    /// Whether an id of the operation may have been used.
    pub fn suspect(&self, operation: &Operation) -> bool {
        let mut suspect = false;
        operation.for_each_key(&mut |role, id, _| suspect |= self.contains(id, role));
        suspect
    }

    fn place_of(&self, id: TransferId, role: Role) -> (usize, u32) {
        let hash = self.hasher.hash_one((id, role));
        let group = usize::try_from(hash % self.groups.len() as u64).unwrap_or(0);
        // An empty place holds 0, which no id has.
        (group, u32::try_from(hash >> 32).unwrap_or(0) | 1)
    }
}

#[cfg(test)]
mod tests {
    use ledger::{AccountId, Position};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_id_is_suspected_in_the_role_in_which_it_was_used() {
        let id = TransferId(Uuid::from_u128(7));
        let mut booking = Booking::marker(Position(1), 0);
        booking.id = Some(id);
        booking.payer = AccountId::client("payer").unwrap();
        booking.kind = ledger::BookingKind::Reserved;
        let mut recent = RecentIds::new();
        assert!(!recent.contains(id, Role::Transfer));
        recent.remember(&booking);
        assert!(recent.contains(id, Role::Transfer));
        assert!(!recent.contains(id, Role::Settlement), "a saga is settled under the id that it was reserved under");
        assert!(!recent.contains(TransferId(Uuid::from_u128(8)), Role::Transfer));
    }
}
