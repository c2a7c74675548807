//! Does a map of 1000 shards load and route as fast as one of 4? Both are measured in turn, round after round, so that
//! whatever else the machine does hits them alike. `cargo bench -p shard-map`

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::{hint::black_box, time::Instant};

use shard_map::{ClusterId, Shard, ShardMap, SlotRange, slot_of};

const ROUNDS: usize = 15;
const ACCOUNTS: usize = 1 << 16;
const LOOKUPS: usize = 1 << 20;
const RELOADS: usize = 20;

/// What is measured, each as the seconds that one operation takes.
const MEASURES: [Measure; 5] = [
    ("account id to shard", Unit::Rate, Subject::route),
    ("slot to shard", Unit::Rate, Subject::look_up),
    ("parse and validate", Unit::Time, Subject::parse),
    ("validate alone", Unit::Time, Subject::validate),
    ("diff to the next version", Unit::Time, Subject::diff),
];

type Measure = (&'static str, Unit, fn(&Subject) -> f64);

/// How a measure is printed.
#[derive(Clone, Copy)]
enum Unit {
    Rate,
    Time,
}

struct Subject {
    text: String,
    map: ShardMap,
    next: ShardMap,
    accounts: Vec<String>,
}

impl Subject {
    /// Slots are dealt out in runs of `SLOTS / shards / 4`, so that each shard has several ranges, as after some moves.
    fn new(shards: u16) -> Self {
        let runs: Vec<SlotRange> = SlotRange::split_evenly(shards * 4).collect();
        let dealt = |shift: u16| {
            let shard = |number: u16| Shard {
                id: format!("shard-{number}"),
                number,
                nodes: vec![
                    format!("http://node-{number}a.example.com:7500"),
                    format!("http://node-{number}b.example.com:7500"),
                ],
                slots: runs
                    .iter()
                    .skip(usize::from((number + shift) % shards))
                    .step_by(usize::from(shards))
                    .copied()
                    .collect(),
            };
            (0..shards).map(shard).collect()
        };
        let cluster = ClusterId::generate();
        let map = ShardMap::new(cluster, 1, dealt(0)).expect("a valid map");
        let next = ShardMap::new(cluster, 2, dealt(1)).expect("a valid map");
        let accounts = (0..ACCOUNTS).map(|n| format!("customer-{n:08}")).collect();
        Self { text: map.to_toml(), map, next, accounts }
    }

    fn route(&self) -> f64 {
        let accounts = self.accounts.iter().cycle().take(LOOKUPS);
        seconds_each(LOOKUPS, || {
            for account in accounts {
                black_box(self.map.owner(slot_of(black_box(account))));
            }
        })
    }

    fn look_up(&self) -> f64 {
        let slots: Vec<_> = self.accounts.iter().map(|account| slot_of(account)).collect();
        seconds_each(LOOKUPS, || {
            for slot in slots.iter().cycle().take(LOOKUPS) {
                black_box(self.map.owner(*black_box(slot)));
            }
        })
    }

    fn parse(&self) -> f64 {
        seconds_each(RELOADS, || {
            for _ in 0..RELOADS {
                black_box(ShardMap::parse(black_box(&self.text)).expect("a valid map"));
            }
        })
    }

    fn validate(&self) -> f64 {
        let parts = vec![self.map.shards.clone(); RELOADS];
        seconds_each(RELOADS, || {
            for shards in parts {
                black_box(ShardMap::new(self.map.cluster, 1, shards).expect("a valid map"));
            }
        })
    }

    fn diff(&self) -> f64 {
        seconds_each(RELOADS, || {
            for _ in 0..RELOADS {
                black_box(self.map.diff(black_box(&self.next)));
            }
        })
    }
}

fn seconds_each(operations: usize, work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64() / operations as f64
}

fn main() {
    let subjects = [Subject::new(4), Subject::new(1000)];
    let mut times = vec![[Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS)]; MEASURES.len()];
    for _ in 0..ROUNDS {
        for ((.., measure), times) in MEASURES.iter().zip(&mut times) {
            for (subject, times) in subjects.iter().zip(times) {
                times.push(measure(subject));
            }
        }
    }

    println!("shard map, median of {ROUNDS} rounds, A and B in turn\n");
    println!("{:<28} {:>16} {:>16} {:>8}", "", "A: 4 shards", "B: 1000 shards", "B / A");
    for ((name, unit, _), [a, b]) in MEASURES.iter().zip(&mut times) {
        let (a, b) = (median(a), median(b));
        println!("{name:<28} {:>16} {:>16} {:>8.2}", unit.print(a), unit.print(b), b / a);
    }
    println!(
        "\nB / A compares times: 1 is equally fast. Reading is off the request path; its cost is that of the text's length."
    );
}

impl Unit {
    fn print(self, seconds: f64) -> String {
        match self {
            Self::Rate => format!("{:.1} M/s", 1e-6 / seconds),
            Self::Time => format!("{:.3} ms", seconds * 1e3),
        }
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
