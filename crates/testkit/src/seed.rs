//! The seed of a run, and the random numbers that come from it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The environment variable that repeats a run.
pub const SEED_VARIABLE: &str = "SEED";

/// The seed from which every random choice of a run follows. It does not determine what the machine's scheduler does.
#[derive(Debug)]
pub struct Seed {
    value: u64,
    streams: AtomicU64,
}

impl Seed {
    /// Takes the seed from the environment, or draws a new one, and prints it, so that a failed run can be repeated.
    pub fn announce(test: &str) -> Self {
        let given = std::env::var(SEED_VARIABLE).ok().and_then(|text| text.parse().ok());
        let value = given.unwrap_or_else(|| {
            let [.., a, b, c, d] = uuid::Uuid::now_v7().into_bytes();
            u64::from(u32::from_be_bytes([a, b, c, d]))
        });
        eprintln!("{test}: {SEED_VARIABLE}={value}");
        Self::of(value)
    }

    /// A fixed seed.
    pub fn of(value: u64) -> Self {
        Self { value, streams: AtomicU64::new(0) }
    }

    /// The number that repeats the run.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// A new stream of random numbers. Each task has its own, so that its numbers do not depend on the order of the tasks.
    pub fn random(&self) -> Random {
        self.stream(self.streams.fetch_add(1, Relaxed) + 1)
    }

    /// The stream with this number. Each stream begins at a random place of the generator's one long sequence. Beginnings that differ by a
    /// multiple of the generator's step would give the same numbers, and so the same ids, a few draws apart.
    fn stream(&self, number: u64) -> Random {
        let beginning = Random { state: self.value }.bits() ^ number;
        Random { state: Random { state: beginning }.bits() }
    }
}

/// The generator SplitMix64. It is good enough to choose what happens, and gives the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws a number in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        // The small bias of the remainder does not matter here.
        usize::try_from(self.bits() % bound.max(1) as u64).unwrap_or(0)
    }

    /// True with this chance in a hundred.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Draws a transfer id, which the same seed repeats.
    pub fn uuid(&mut self) -> uuid::Uuid {
        let bits = (u128::from(self.bits()) << 64) | u128::from(self.bits());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_stream_repeats_the_ids_of_another() {
        // Streams that begin a multiple of the generator's step apart repeat ids with seeds around 3,643,310,420.
        for value in (3_643_310_420..3_643_310_430).chain(0..10) {
            let seed = Seed { value, streams: AtomicU64::new(0) };
            let mut ids = HashSet::new();
            for _ in 0..20 {
                let mut random = seed.random();
                for _ in 0..200 {
                    // A client draws any number of other values between two ids.
                    if random.percent(50) {
                        random.bits();
                    }
                    assert!(ids.insert(random.uuid()), "seed {value}");
                }
            }
        }
    }

    #[test]
    fn a_seed_repeats_its_streams() {
        let streams = |value| {
            let seed = Seed { value, streams: AtomicU64::new(0) };
            [seed.random().bits(), seed.random().bits()]
        };
        assert_eq!(streams(7), streams(7));
        assert_ne!(streams(7), streams(8));
    }
}
