//! A small map from shards to something, filled in one pass over a batch.

use shard_map::ShardIndex;

/// Values by shard, in order of first use.
#[derive(Debug)]
pub struct ByShard<T> {
    /// Shard index to place in `groups`, plus one; 0: none. Grown on demand.
    places: Vec<u16>,
    groups: Vec<(ShardIndex, T)>,
}

impl<T> Default for ByShard<T> {
    fn default() -> Self {
        Self { places: Vec::new(), groups: Vec::new() }
    }
}

impl<T: Default> ByShard<T> {
    pub fn entry(&mut self, shard: ShardIndex) -> &mut T {
        let index = usize::from(shard.0);
        if index >= self.places.len() {
            self.places.resize(index + 1, 0);
        }
        let place = match self.places[index] {
            0 => {
                self.groups.push((shard, T::default()));
                // No more groups than shards, and their indices fit.
                self.places[index] = u16::try_from(self.groups.len()).unwrap_or(u16::MAX);
                self.groups.len() - 1
            }
            place => usize::from(place) - 1,
        };
        &mut self.groups[place].1
    }
}

impl<T> IntoIterator for ByShard<T> {
    type Item = (ShardIndex, T);
    type IntoIter = std::vec::IntoIter<(ShardIndex, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.groups.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_in_order_of_first_use() {
        let mut groups: ByShard<Vec<u32>> = ByShard::default();
        for (shard, item) in [(7, 0), (2, 1), (7, 2), (900, 3), (2, 4)] {
            groups.entry(ShardIndex(shard)).push(item);
        }
        let groups: Vec<_> = groups.into_iter().map(|(shard, items)| (shard.0, items)).collect();
        assert_eq!(groups, [(7, vec![0, 2]), (2, vec![1, 4]), (900, vec![3])]);
    }
}
