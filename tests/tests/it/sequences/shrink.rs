//! Where sequences come from, and how one that differs is made short.

use std::time::{Duration, Instant};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use testkit::seed::Seed;

use super::{
    command::{Sequence, sequences},
    play::{Outcome, Stage, play},
};

/// How long to look for something shorter.
const PATIENCE: Duration = Duration::from_secs(60);

/// All sequences of a run, by number.
#[derive(Debug)]
pub struct Source {
    seed: [u8; 24],
}

impl Source {
    pub fn new(seed: &Seed) -> Self {
        let mut random = seed.random();
        let mut bytes = [0; 24];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.bits().to_le_bytes()));
        Self { seed: bytes }
    }

    pub fn sequence(&self, number: usize) -> Sequence {
        self.tree(number).current()
    }

    fn tree(&self, number: usize) -> impl ValueTree<Value = Sequence> + use<> {
        let mut bytes = [0; 32];
        bytes[..24].copy_from_slice(&self.seed);
        bytes[24..].copy_from_slice(&(number as u64).to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), random);
        sequences().new_tree(&mut runner).expect("the strategies filter nothing, so nothing is refused")
    }
}

/// Takes away from a sequence whatever can be taken away with a difference left; gives what differs then.
pub async fn shortest(stage: &Stage, source: &Source, number: usize) -> anyhow::Result<Option<String>> {
    let mut tree = source.tree(number);
    let mut shortest = None;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let more = match play(stage, &tree.current()).await? {
            Outcome::Differs(how) => {
                shortest = Some(how);
                tree.simplify()
            }
            Outcome::Agreed | Outcome::Undecided(_) => tree.complicate(),
        };
        if !more {
            break;
        }
    }
    Ok(shortest)
}
