//! Learning slot ownership from the shards: from refusals and from answers to `GetOwnership`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ledger::outcome::NotOwner;
use shard_map::{ShardIndex, Slot, SlotRange, merge_slots};
use wire::GetOwnershipResponse;

use super::{Routing, Writer, facts::SlotStatement, reload::Reload};
use crate::core::metrics;

/// What the shards' answers changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merged {
    /// Slots whose requests now go to another shard, including changes by a newly adopted map.
    pub rerouted_slots: usize,
    /// The version of a newer map that a node had and that is now in use.
    pub adopted: Option<u64>,
}

impl Routing {
    /// Records a shard's refusals: it does not own slots that operations were sent to it for. Afterwards a slot goes
    /// to another shard, or still to the shard that refused. The latter means that a move is in progress, or that no
    /// shard asked so far owns the slot.
    pub fn learn_not_owners<'a>(&self, shard_id: &str, refusals: impl IntoIterator<Item = &'a NotOwner>) {
        let mut writer = self.writer();
        // The batch was routed by an older table, and the present map no longer has the shard.
        let Some(shard) = writer.map.index_of(shard_id) else { return };
        let mut hearing = Hearing::default();
        let mut statements: Vec<(Slot, SlotStatement)> = Vec::new();
        for refusal in refusals {
            let Some(slot) = Slot::new(refusal.slot) else {
                tracing::error!(shard = shard_id, slot = refusal.slot, "a shard refused a slot that does not exist");
                continue;
            };
            let peer = writer.peer(shard_id, &refusal.owner, &mut hearing);
            match SlotStatement::new(refusal.state.into(), refusal.epoch, peer) {
                // A shard that owns the slot it refused received the slot while its answer was in transit.
                SlotStatement::Owned { .. } => {}
                statement => statements.push((slot, statement)),
            }
        }
        // A large batch is refused with a statement for each of its operations. Merge equal statements about adjacent slots.
        statements.sort_by_key(|(slot, _)| *slot);
        let mut said: Vec<(SlotRange, SlotStatement)> = Vec::new();
        for (slot, statement) in statements {
            match said.last_mut() {
                Some((range, same)) if *same == statement && range.reaches(slot.into()) => {
                    *range = range.up_to(slot.into())
                }
                _ => said.push((slot.into(), statement)),
            }
        }
        for (slots, statement) in said {
            writer.hear(shard, slots, statement, &mut hearing);
        }
        hearing.report();
        self.publish(&writer);
    }

    /// Records the answers to `GetOwnership`, by the id under which each shard was asked. If a shard has a newer map,
    /// that map is adopted first. Then the highest epoch counts for each slot.
    pub fn merge_ownership<S: AsRef<str>>(
        &self,
        answers: impl IntoIterator<Item = (S, GetOwnershipResponse)>,
    ) -> Merged {
        let answers: Vec<(S, GetOwnershipResponse)> =
            answers.into_iter().filter(|(asked, answer)| is_itself(asked.as_ref(), answer)).collect();
        let before = self.load();
        // First record what the shards own, because a newer map is judged by it. Record it again after the adoption,
        // for shards that only the newer map has.
        self.hear_owners(&answers);
        let adopted = self.adopt_newest(&answers);
        if adopted.is_some() {
            self.hear_owners(&answers);
        }
        let after = self.load();
        let rerouted = |slot: &Slot| {
            let (then, now) = (before.shard_id(before.owner(*slot)), after.shard_id(after.owner(*slot)));
            !Arc::ptr_eq(then, now) && then != now
        };
        Merged { rerouted_slots: Slot::all().filter(rerouted).count(), adopted }
    }

    /// Records the answer of one shard. Which shards dispute a slot is decided when all of them have answered.
    pub fn hear_one<S: AsRef<str>>(&self, asked: S, answer: GetOwnershipResponse) {
        if !is_itself(asked.as_ref(), &answer) {
            return;
        }
        let answers = [(asked, answer)];
        self.record_owners(&answers);
        if self.adopt_newest(&answers).is_some() {
            self.record_owners(&answers);
        }
    }

    fn hear_owners<S: AsRef<str>>(&self, answers: &[(S, GetOwnershipResponse)]) {
        let conflicts = self.record_owners(answers);
        let mut writer = self.writer();
        writer.disputed = writer.claimants(&conflicts, answers);
    }

    /// Records what shards own. Returns the slots that two shards claim at one epoch.
    fn record_owners<S: AsRef<str>>(&self, answers: &[(S, GetOwnershipResponse)]) -> Vec<SlotRange> {
        let mut writer = self.writer();
        let mut hearing = Hearing::default();
        let said = writer.understand(answers, &mut hearing);
        let mut listed: HashMap<ShardIndex, Vec<SlotRange>> =
            said.answered.iter().map(|shard| (*shard, Vec::new())).collect();
        for (shard, slots, _) in &said.statements {
            listed.entry(*shard).or_default().push(*slots);
        }
        // Drop unconfirmed beliefs before recording new statements: a shard that hands over a slot may answer before
        // its successor has learned of it.
        writer.facts.deny_unlisted(&listed);
        for (shard, slots, statement) in said.statements {
            writer.hear(shard, slots, statement, &mut hearing);
        }
        hearing.report();
        self.publish(&writer);
        hearing.conflicts
    }

    /// Adopts the newest map that nodes offer, if it is newer than the map in use.
    fn adopt_newest<S: AsRef<str>>(&self, answers: &[(S, GetOwnershipResponse)]) -> Option<u64> {
        let ours = self.load().map().version;
        let (id, answer) = answers
            .iter()
            .filter(|(_, answer)| u64::try_from(answer.shard_map_version).is_ok_and(|version| version > ours))
            .max_by_key(|(_, answer)| answer.shard_map_version)?;
        match self.adopt_toml(&answer.shard_map, &format!("shard {}", id.as_ref())) {
            Ok(Reload::Replaced { to, .. }) => Some(to),
            // `adopt_toml` has reported a refusal.
            Ok(Reload::Unchanged { .. }) | Err(_) => None,
        }
    }
}

/// Whether a node answers for the shard that the map assigns to it. The answer of any other node is reported and
/// ignored.
fn is_itself(asked: &str, answer: &GetOwnershipResponse) -> bool {
    if answer.shard == asked {
        return true;
    }
    tracing::error!(
        asked,
        answered = answer.shard,
        "the node of one shard answered for another: check the shard map's nodes"
    );
    metrics::unknown_shard();
    false
}

/// The combined result of recording statements.
#[derive(Default)]
struct Hearing {
    conflicts: Vec<SlotRange>,
    unknown: Vec<String>,
}

impl Hearing {
    fn unknown_shard(&mut self, id: &str) {
        if !self.unknown.iter().any(|known| known == id) {
            self.unknown.push(id.to_owned());
        }
    }

    fn report(&self) {
        for id in &self.unknown {
            metrics::unknown_shard();
            tracing::warn!(shard = id, "a shard that is not in the shard map was named; ignored until a map has it");
        }
        if !self.conflicts.is_empty() {
            metrics::slot_conflicts(self.conflicts.iter().map(|range| usize::from(range.len())).sum());
            let mut slots = self.conflicts.clone();
            slots.sort_unstable();
            let slots = merge_slots(slots).iter().map(SlotRange::to_string).collect::<Vec<_>>().join(", ");
            tracing::error!(slots, "INV-2: two shards claim the same slots at the same epoch");
        }
    }
}

/// The answers of shards, in terms of the map in use.
#[derive(Default)]
struct Claims {
    answered: HashSet<ShardIndex>,
    statements: Vec<(ShardIndex, SlotRange, SlotStatement)>,
}

impl Writer {
    fn hear(&mut self, shard: ShardIndex, slots: SlotRange, statement: SlotStatement, hearing: &mut Hearing) {
        hearing.conflicts.extend(self.facts.hear(&self.map, shard, slots, statement));
    }

    /// The shards that say they own one of these slots.
    fn claimants<S: AsRef<str>>(&self, slots: &[SlotRange], answers: &[(S, GetOwnershipResponse)]) -> Vec<Arc<str>> {
        const OWNED: u32 = 1;
        let claims = |answer: &GetOwnershipResponse| {
            let owned = answer.ranges.iter().filter(|range| range.state == OWNED);
            owned.into_iter().any(|range| {
                slots.iter().any(|slots| {
                    range.first <= slots.last().index().into() && range.last >= slots.first().index().into()
                })
            })
        };
        answers.iter().filter(|(_, answer)| claims(answer)).map(|(id, _)| Arc::from(id.as_ref())).collect()
    }

    fn understand<S: AsRef<str>>(&self, answers: &[(S, GetOwnershipResponse)], hearing: &mut Hearing) -> Claims {
        let mut said = Claims::default();
        for (id, answer) in answers {
            let id = id.as_ref();
            let Some(shard) = self.map.index_of(id) else {
                hearing.unknown_shard(id);
                continue;
            };
            said.answered.insert(shard);
            for range in &answer.ranges {
                let slots = (Slot::try_from(range.first), Slot::try_from(range.last));
                let (Ok(first), Ok(last)) = slots else {
                    let (first, last) = (range.first, range.last);
                    tracing::error!(shard = id, first, last, "a shard listed slots that do not exist");
                    continue;
                };
                let peer = self.peer(id, &range.peer, hearing);
                let statement = SlotStatement::new(range.state, range.epoch, peer);
                said.statements.extend(SlotRange::new(first, last).map(|slots| (shard, slots, statement)));
            }
        }
        said
    }

    /// The shard that a statement names as its peer; `None` if the name is empty or the shard's own.
    fn peer(&self, id: &str, peer: &str, hearing: &mut Hearing) -> Option<ShardIndex> {
        if peer.is_empty() || peer == id {
            return None;
        }
        let index = self.map.index_of(peer);
        if index.is_none() && self.map.removed.iter().all(|gone| gone.id != peer) {
            hearing.unknown_shard(peer);
        }
        index
    }
}
