//! Which map may follow which.

use crate::{
    error::{MapError, MapProblem, Reason},
    map::ShardMap,
    validate::{Lines, Places},
};

impl ShardMap {
    /// Whether `new` may replace this map: its version is greater, shards keep their numbers, and no number goes to
    /// another shard. (Numbers of shards that were gone before this map are not known here; positions in the journals
    /// of such shards are the reason not to use them again all the same.)
    pub fn check_successor(&self, new: &Self) -> Result<(), MapError> {
        let nowhere = Places { version: None, numbers: vec![None; new.shards.len()] };
        let problems = self.succession_problems(new, &nowhere, &Lines::of(""));
        if problems.is_empty() { Ok(()) } else { Err(MapError::new(problems)) }
    }

    pub(crate) fn succession_problems(&self, new: &Self, places: &Places, lines: &Lines<'_>) -> Vec<MapProblem> {
        let mut problems = Vec::new();
        let mut add = |offset, reason| problems.push(MapProblem { line: lines.at(offset), reason });
        if new.version <= self.version {
            add(places.version, Reason::VersionNotGreater { current: self.version, new: new.version });
        }
        let before_by_number: std::collections::HashMap<u16, &str> =
            self.shards.iter().map(|shard| (shard.number, shard.id.as_str())).collect();
        for (shard, offset) in new.shards.iter().zip(&places.numbers) {
            let (id, number) = (shard.id.clone(), shard.number);
            match self.index_of(&shard.id).map(|index| self.shard(index).number) {
                Some(kept) if kept != number => add(*offset, Reason::NumberChanged { shard: id, number, kept }),
                Some(_) => {}
                None => {
                    if let Some(before) = before_by_number.get(&number) {
                        add(*offset, Reason::NumberReused { shard: id, number, before: (*before).to_owned() });
                    }
                }
            }
        }
        problems
    }
}
