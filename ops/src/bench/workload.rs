//! Picks the two accounts of each transfer, from a seed that is printed.

use serde::Serialize;

/// How the accounts of transfers are picked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Both accounts uniformly
    #[default]
    Uniform,
    /// Few accounts often and most accounts seldom: Zipf's law with exponent 0.99, as in YCSB
    Zipf,
    /// Every transfer touches one account, on either side
    Hot,
    /// Both accounts uniformly, always on different shards
    Cross,
    /// Half of the transfers uniform, three in ten by Zipf, two in ten on the hot account
    Mix,
}

/// The shards of the two accounts of a transfer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Locality {
    /// On one shard or two, as the accounts are drawn.
    #[default]
    Any,
    /// On one shard.
    Local,
    /// On two shards.
    Cross,
    /// On two shards for this share of the transfers, and on one shard for the others.
    Share(f64),
}

/// The shards that one request is for, in turn. Without any, a request is for all shards.
#[derive(Debug, Clone, Default)]
pub struct Focus {
    shards: Vec<u16>,
    next: usize,
}

impl Focus {
    fn clear(&mut self) {
        self.shards.clear();
        self.next = 0;
    }

    /// Each shard gets the same number of transfers.
    fn turn(&mut self) -> u16 {
        let shard = self.shards[self.next % self.shards.len()];
        self.next += 1;
        shard
    }
}

const ZIPF_EXPONENT: f64 = 0.99;
/// The most partners that are drawn until one fits. After that, the last pair is taken.
const DRAWS: usize = 64;
const HOT: usize = 0;

/// Picks pairs of accounts, by number.
#[derive(Debug)]
pub struct Picker {
    workload: Workload,
    locality: Locality,
    /// The shard of each account, by its place in the map.
    homes: Vec<u16>,
    /// The accounts of each shard. Empty if no draw needs them.
    by_shard: Vec<Vec<u32>>,
    /// Shards that have accounts.
    shards: Vec<u16>,
    /// How many shards one request is for.
    shards_per_request: Option<usize>,
    /// Cumulative weights by rank, for Zipf; the ranks are spread over the accounts.
    zipf: Vec<f64>,
}

impl Picker {
    /// `homes` has one item an account: the shard it lives on.
    pub fn new(workload: Workload, locality: Locality, homes: Vec<u16>) -> anyhow::Result<Self> {
        let shards: Vec<u16> = homes.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        anyhow::ensure!(homes.len() >= 2, "a transfer needs two accounts");
        anyhow::ensure!(
            !matches!(locality, Locality::Cross | Locality::Share(_)) || shards.len() >= 2,
            "all accounts live on one shard: nothing crosses"
        );
        let zipf = match workload {
            Workload::Zipf | Workload::Mix => zipf_weights(homes.len()),
            Workload::Uniform | Workload::Hot | Workload::Cross => Vec::new(),
        };
        let mut picker =
            Self { workload, locality, homes, by_shard: Vec::new(), shards, shards_per_request: None, zipf };
        if matches!(locality, Locality::Local | Locality::Share(_)) {
            picker.sort_by_shard();
        }
        Ok(picker)
    }

    /// Restricts the picker to accounts of the first `shards` shards.
    pub fn of_first_shards(mut self, shards: usize) -> Self {
        self.shards.truncate(shards);
        self.sort_by_shard();
        self
    }

    /// Makes each request use this number of shards, which are drawn for each request.
    pub fn with_shards_per_request(mut self, shards: usize) -> Self {
        self.shards_per_request = Some(shards);
        self.sort_by_shard();
        self
    }

    pub fn workload(&self) -> Workload {
        self.workload
    }

    pub fn locality(&self) -> Locality {
        self.locality
    }

    pub fn accounts(&self) -> usize {
        self.homes.len()
    }

    fn sort_by_shard(&mut self) {
        let highest = self.homes.iter().max().map_or(0, |&home| usize::from(home));
        self.by_shard = vec![Vec::new(); highest + 1];
        for (account, &home) in (0_u32..).zip(&self.homes) {
            self.by_shard[usize::from(home)].push(account);
        }
    }

    /// Chooses the shards of the next request.
    pub fn focus(&self, random: &mut Random, focus: &mut Focus) {
        focus.clear();
        let every = self.shards.len();
        match self.shards_per_request {
            Some(wanted) if wanted < every => {
                for _ in 0..wanted {
                    focus.shards.push(self.shards[random.below(every)]);
                }
            }
            Some(_) => focus.shards.extend_from_slice(&self.shards),
            // The shards were restricted.
            None if !self.by_shard.is_empty() && every < self.by_shard.len() => {
                focus.shards.extend_from_slice(&self.shards);
            }
            None => {}
        }
    }

    /// Draws the debit and the credit account of the next transfer.
    pub fn pick(&self, random: &mut Random, focus: &mut Focus) -> (usize, usize) {
        let workload = match self.workload {
            Workload::Mix => match random.below(10) {
                0..5 => Workload::Uniform,
                5..8 => Workload::Zipf,
                _ => Workload::Hot,
            },
            workload => workload,
        };
        let locality = match self.locality {
            Locality::Share(cross) if random.fraction() < cross => Locality::Cross,
            Locality::Share(_) => Locality::Local,
            locality => locality,
        };
        let first = if workload == Workload::Hot { HOT } else { self.one(workload, random, focus) };
        let mut draw = |random: &mut Random| match (workload, locality) {
            (Workload::Uniform, Locality::Local) => self.one_of(self.homes[first], random),
            _ => self.one(workload, random, focus),
        };
        let mut second = draw(random);
        for _ in 0..DRAWS {
            if second != first && self.fits(locality, first, second) {
                break;
            }
            second = draw(random);
        }
        if second == first {
            second = (first + 1) % self.homes.len();
        }
        if random.next() & 1 == 0 { (first, second) } else { (second, first) }
    }

    fn one(&self, workload: Workload, random: &mut Random, focus: &mut Focus) -> usize {
        match workload {
            Workload::Zipf => {
                let drawn = random.fraction();
                self.spread(self.zipf.partition_point(|&weight| weight < drawn))
            }
            Workload::Uniform | Workload::Hot | Workload::Cross | Workload::Mix if focus.shards.is_empty() => {
                random.below(self.homes.len())
            }
            Workload::Uniform | Workload::Hot | Workload::Cross | Workload::Mix => self.one_of(focus.turn(), random),
        }
    }

    fn one_of(&self, shard: u16, random: &mut Random) -> usize {
        let accounts = &self.by_shard[usize::from(shard)];
        accounts[random.below(accounts.len())] as usize
    }

    fn fits(&self, locality: Locality, first: usize, second: usize) -> bool {
        match locality {
            Locality::Any | Locality::Share(_) => true,
            Locality::Local => self.homes[first] == self.homes[second],
            Locality::Cross => self.homes[first] != self.homes[second],
        }
    }

    /// The account of a rank. Accounts with neighbouring ranks are far apart in the database.
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

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The generator with the number `stream` of a seed. Each connection has one.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0. The bias is below 2⁻³² for the bounds used here.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// A number in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: usize = 1_000;

    fn pairs(workload: Workload, locality: Locality) -> Vec<(usize, usize)> {
        let homes = (0..ACCOUNTS).map(|account| (account % 3) as u16).collect();
        let picker = Picker::new(workload, locality, homes).unwrap();
        draw(&picker)
    }

    fn draw(picker: &Picker) -> Vec<(usize, usize)> {
        let (mut random, mut focus) = (Random::new(1, 0), Focus::default());
        let mut one = || {
            picker.focus(&mut random, &mut focus);
            picker.pick(&mut random, &mut focus)
        };
        (0..10_000).map(|_| one()).collect()
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
    fn a_share_of_the_transfers_crosses() {
        let pairs = pairs(Workload::Uniform, Locality::Share(0.25));
        let crossing = pairs.iter().filter(|(debit, credit)| debit % 3 != credit % 3).count();
        assert!((2_200..2_800).contains(&crossing), "{crossing}");
    }

    #[test]
    fn only_accounts_of_the_chosen_shards_are_drawn() {
        let homes: Vec<u16> = (0..ACCOUNTS).map(|account| (account % 10) as u16).collect();
        let picker = |locality| Picker::new(Workload::Uniform, locality, homes.clone()).unwrap();
        for (debit, credit) in draw(&picker(Locality::Share(0.5)).of_first_shards(2)) {
            assert!(debit % 10 < 2 && credit % 10 < 2);
        }
        let picker = picker(Locality::Local).with_shards_per_request(2);
        let (mut random, mut focus) = (Random::new(1, 0), Focus::default());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            picker.focus(&mut random, &mut focus);
            let of_request: std::collections::BTreeSet<usize> =
                (0..100).map(|_| picker.pick(&mut random, &mut focus)).flat_map(|(a, b)| [a % 10, b % 10]).collect();
            assert!(of_request.len() <= 2);
            seen.extend(of_request);
        }
        assert_eq!(seen.len(), 10);
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

    #[test]
    fn a_seed_repeats_and_streams_differ() {
        let draw = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [random.next(), random.next()]
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }

    #[test]
    fn draws_stay_in_range_and_cover_it() {
        let mut random = Random::new(7, 0);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[random.below(10)] += 1;
            assert!((0.0..1.0).contains(&random.fraction()));
        }
        assert!(seen.iter().all(|&n| (800..1_200).contains(&n)), "{seen:?}");
    }
}
