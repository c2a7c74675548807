//! Which map may replace which.

use std::collections::HashMap;

use crate::{
    error::{MapError, MapProblem, Reason},
    map::ShardMap,
    slot::{Slot, merge_slots},
    validate::{Lines, Places},
};

impl ShardMap {
    /// Checks whether `new` may replace this map. It must belong to the same cluster and have a greater version;
    /// shards must keep their numbers, no number may go to another shard, removed shards stay listed, and no slot may change its shard.
    ///
    /// A map that follows a finished move fails this check, because the map alone cannot distinguish a move from a
    /// mistake. [`ShardMap::parse_successor`] also considers what the shards say.
    pub fn check_successor(&self, new: &Self) -> Result<(), MapError> {
        let problems = self.succession_problems(new, &Places::default(), &Lines::of(""), |_| None);
        if problems.is_empty() { Ok(()) } else { Err(MapError::new(problems)) }
    }

    /// The shards and removed shards of this map that `new` does not list any more. A shard that is not listed could still have accounts,
    /// and its number could be given to another shard.
    pub fn missing_in(&self, new: &Self) -> Vec<Reason> {
        let is_removed =
            |id: &str, number: u16| new.removed.iter().any(|gone| gone.id == id && gone.number == number);
        let shards = self
            .shards
            .iter()
            .filter(|shard| new.index_of(&shard.id).is_none() && !is_removed(&shard.id, shard.number));
        let shards = shards.map(|it| Reason::ShardMissing { shard: it.id.clone(), number: it.number });
        let removed = self.removed.iter().filter(|gone| !is_removed(&gone.id, gone.number));
        let removed = removed.map(|it| Reason::RemovedForgotten { shard: it.id.clone(), number: it.number });
        shards.chain(removed).collect()
    }

    pub(crate) fn succession_problems<'a>(
        &self,
        new: &Self,
        places: &Places,
        lines: &Lines<'_>,
        owner_by_shards: impl Fn(Slot) -> Option<&'a str>,
    ) -> Vec<MapProblem> {
        let mut problems = Vec::new();
        let mut add = |offset, reason| problems.push(MapProblem { line: lines.at(offset), reason });
        if new.cluster != self.cluster {
            add(places.cluster, Reason::OtherCluster { current: self.cluster, new: new.cluster });
        }
        if new.version <= self.version {
            add(places.version, Reason::VersionNotGreater { current: self.version, new: new.version });
        }
        let before_by_number: HashMap<u16, &str> =
            self.shards.iter().map(|shard| (shard.number, shard.id.as_str())).collect();
        for (place, shard) in new.shards.iter().enumerate() {
            let offset = places.numbers.get(place).copied().flatten();
            let (id, number) = (shard.id.clone(), shard.number);
            match self.index_of(&shard.id).map(|index| self.shard(index).number) {
                Some(kept) if kept != number => add(offset, Reason::NumberChanged { shard: id, number, kept }),
                Some(_) => {}
                None => {
                    if let Some(before) = before_by_number.get(&number) {
                        add(offset, Reason::NumberReused { shard: id, number, before: (*before).to_owned() });
                    }
                }
            }
        }
        for reason in self.missing_in(new) {
            add(None, reason);
        }
        // A map may lag behind the shards and leave a slot where it was. It may not assign a slot to a shard that
        // does not own it.
        let reassigned = |slot: Slot| {
            let (before, to, known) = (self.owner_id(slot), new.owner_id(slot), owner_by_shards(slot));
            (before != to && known != Some(to)).then(|| (known.unwrap_or(before), to))
        };
        let slots: Vec<Slot> = Slot::all().collect();
        for run in slots.chunk_by(|a, b| reassigned(*a) == reassigned(*b)) {
            let Some((from, to)) = run.first().copied().and_then(reassigned) else { continue };
            for slots in merge_slots(run.iter().copied()) {
                let of_shard = places.slots.get(usize::from(new.owner(slots.first()).0));
                let stated =
                    of_shard.and_then(|ranges| ranges.iter().find(|(range, _)| range.contains(slots.first())));
                let offset = stated.and_then(|(_, offset)| *offset);
                add(offset, Reason::SlotsReassigned { slots, from: from.to_owned(), to: to.to_owned() });
            }
        }
        problems
    }
}
