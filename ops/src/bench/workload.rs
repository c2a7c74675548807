//! Which accounts a transfer is between.

use serde::Serialize;

use super::random::Random;

/// How the accounts of transfers are picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Both accounts uniformly
    Uniform,
    /// Few accounts often, most of them seldom: Zipf's law with exponent 0.99, as in YCSB
    Zipf,
    /// Every transfer touches one account, on either side
    Hot,
    /// Both accounts uniformly, always on different shards
    Cross,
    /// Half uniform, three in ten by Zipf, two in ten on the hot account
    Mix,
}

/// Where the two accounts of a transfer live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Locality {
    /// As it comes.
    Any,
    /// On one shard.
    Local,
    /// On two shards.
    Cross,
}

const ZIPF_EXPONENT: f64 = 0.99;
/// A partner that fits is looked for this often; then the pair that was found last is taken.
const DRAWS: usize = 64;
const HOT: usize = 0;

/// Picks pairs of accounts, by number.
#[derive(Debug)]
pub struct Picker {
    workload: Workload,
    locality: Locality,
    /// The shard of each account, by its place in the map.
    homes: Vec<u16>,
    /// Cumulative weights by rank, for Zipf; the ranks are spread over the accounts.
    zipf: Vec<f64>,
}

impl Picker {
    /// `homes` has one item an account: the shard it lives on.
    pub fn new(workload: Workload, locality: Locality, homes: Vec<u16>) -> anyhow::Result<Self> {
        let shards = homes.iter().collect::<std::collections::BTreeSet<_>>().len();
        anyhow::ensure!(homes.len() >= 2, "a transfer needs two accounts");
        anyhow::ensure!(
            locality != Locality::Cross || shards >= 2,
            "all accounts live on one shard: nothing crosses"
        );
        let zipf = match workload {
            Workload::Zipf | Workload::Mix => zipf_weights(homes.len()),
            Workload::Uniform | Workload::Hot | Workload::Cross => Vec::new(),
        };
        Ok(Self { workload, locality, homes, zipf })
    }

    /// Debit and credit account of the next transfer.
    pub fn pick(&self, random: &mut Random) -> (usize, usize) {
        let workload = match self.workload {
            Workload::Mix => match random.below(10) {
                0..5 => Workload::Uniform,
                5..8 => Workload::Zipf,
                _ => Workload::Hot,
            },
            workload => workload,
        };
        let first = if workload == Workload::Hot { HOT } else { self.one(workload, random) };
        let mut second = self.one(workload, random);
        for _ in 0..DRAWS {
            if second != first && self.fits(first, second) {
                break;
            }
            second = self.one(workload, random);
        }
        if second == first {
            second = (first + 1) % self.homes.len();
        }
        if random.next() & 1 == 0 { (first, second) } else { (second, first) }
    }

    fn one(&self, workload: Workload, random: &mut Random) -> usize {
        match workload {
            Workload::Zipf => {
                let drawn = random.fraction();
                self.spread(self.zipf.partition_point(|&weight| weight < drawn))
            }
            Workload::Uniform | Workload::Hot | Workload::Cross | Workload::Mix => random.below(self.homes.len()),
        }
    }

    fn fits(&self, first: usize, second: usize) -> bool {
        let same = self.homes[first] == self.homes[second];
        match self.locality {
            Locality::Any => true,
            Locality::Local => same,
            Locality::Cross => !same,
        }
    }

    /// Neighbours in rank are not neighbours in the database.
    fn spread(&self, rank: usize) -> usize {
        let accounts = self.homes.len();
        (rank.min(accounts - 1) as u64).wrapping_mul(0x9e37_79b1) as usize % accounts
    }
}

fn zipf_weights(accounts: usize) -> Vec<f64> {
    let mut total = 0.0;
    let mut weights: Vec<f64> = (1..=accounts)
        .map(|rank| {
            total += (rank as f64).powf(-ZIPF_EXPONENT);
            total
        })
        .collect();
    weights.iter_mut().for_each(|weight| *weight /= total);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: usize = 1_000;

    fn pairs(workload: Workload, locality: Locality) -> Vec<(usize, usize)> {
        let homes = (0..ACCOUNTS).map(|account| (account % 3) as u16).collect();
        let picker = Picker::new(workload, locality, homes).unwrap();
        let mut random = Random::new(1, 0);
        (0..10_000).map(|_| picker.pick(&mut random)).collect()
    }

    #[test]
    fn no_transfer_is_between_an_account_and_itself() {
        for workload in [Workload::Uniform, Workload::Zipf, Workload::Hot, Workload::Cross, Workload::Mix] {
            for (debit, credit) in pairs(workload, Locality::Any) {
                assert!(debit != credit && debit < ACCOUNTS && credit < ACCOUNTS);
            }
        }
    }

    #[test]
    fn locality_is_kept() {
        for (debit, credit) in pairs(Workload::Uniform, Locality::Local) {
            assert_eq!(debit % 3, credit % 3);
        }
        for (debit, credit) in pairs(Workload::Cross, Locality::Cross) {
            assert_ne!(debit % 3, credit % 3);
        }
    }

    #[test]
    fn the_hot_account_is_on_either_side_of_every_transfer() {
        let pairs = pairs(Workload::Hot, Locality::Any);
        let debits = pairs.iter().filter(|(debit, _)| *debit == HOT).count();
        assert!(pairs.iter().all(|(debit, credit)| *debit == HOT || *credit == HOT));
        assert!((4_500..5_500).contains(&debits), "{debits}");
    }

    #[test]
    fn zipf_prefers_few_accounts() {
        let mut times = vec![0_usize; ACCOUNTS];
        for (debit, credit) in pairs(Workload::Zipf, Locality::Any) {
            times[debit] += 1;
            times[credit] += 1;
        }
        times.sort_unstable_by(|a, b| b.cmp(a));
        let top: usize = times[..10].iter().sum();
        assert!((5_000..12_000).contains(&top), "{top} of 20,000 fell on the ten most used accounts");
    }

    #[test]
    fn one_shard_has_nothing_to_cross() {
        assert!(Picker::new(Workload::Cross, Locality::Cross, vec![0; 10]).is_err());
    }
}
