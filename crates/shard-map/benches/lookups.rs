//! Does a map of 1000 shards load and route as fast as one of 4? Both are measured in turn, round after round, so that
//! whatever else the machine does hits them alike. `cargo bench -p shard-map`

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use shard_map::{Shard, ShardMap, SlotRange, slot_of};

const ROUNDS: usize = 15;
const ACCOUNTS: usize = 1 << 16;
const LOOKUPS: usize = 1 << 20;
const RELOADS: u32 = 20;

/// The ways a map is measured, each as the time one operation takes.
const MEASURES: [(&str, fn(&Subject) -> Duration); 4] = [
    ("account id to shard", Subject::route),
    ("slot to shard", Subject::look_up),
    ("parse and validate", Subject::parse),
    ("diff to the next version", Subject::diff),
];

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
        let map = ShardMap::new(1, dealt(0)).expect("a valid map");
        let next = ShardMap::new(2, dealt(1)).expect("a valid map");
        let accounts = (0..ACCOUNTS).map(|n| format!("customer-{n:08}")).collect();
        Self { text: map.to_toml(), map, next, accounts }
    }

    fn route(&self) -> Duration {
        let started = Instant::now();
        for account in self.accounts.iter().cycle().take(LOOKUPS) {
            black_box(self.map.owner(slot_of(black_box(account))));
        }
        started.elapsed() / LOOKUPS as u32
    }

    fn look_up(&self) -> Duration {
        let slots: Vec<_> = self.accounts.iter().map(|account| slot_of(account)).collect();
        let started = Instant::now();
        for _ in 0..LOOKUPS / ACCOUNTS {
            for slot in &slots {
                black_box(self.map.owner(*black_box(slot)));
            }
        }
        // Below a nanosecond each: a Duration could not hold one, so this is the time of a thousand.
        started.elapsed() * 1000 / LOOKUPS as u32
    }

    fn parse(&self) -> Duration {
        let started = Instant::now();
        for _ in 0..RELOADS {
            black_box(ShardMap::parse(black_box(&self.text)).expect("a valid map"));
        }
        started.elapsed() / RELOADS
    }

    fn diff(&self) -> Duration {
        let started = Instant::now();
        for _ in 0..RELOADS {
            black_box(self.map.diff(black_box(&self.next)));
        }
        started.elapsed() / RELOADS
    }
}

fn main() {
    let subjects = [Subject::new(4), Subject::new(1000)];
    let mut times = vec![[Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS)]; MEASURES.len()];
    for _ in 0..ROUNDS {
        for ((_, measure), times) in MEASURES.iter().zip(&mut times) {
            for (subject, times) in subjects.iter().zip(times) {
                times.push(measure(subject));
            }
        }
    }

    println!("shard map, median of {ROUNDS} rounds, A and B in turn\n");
    println!("{:<28} {:>16} {:>16} {:>8}", "", "A: 4 shards", "B: 1000 shards", "B / A");
    for ((name, _), [a, b]) in MEASURES.iter().zip(&mut times) {
        let (a, b) = (median(a), median(b));
        let ratio = b.as_secs_f64() / a.as_secs_f64();
        let (a, b) = match *name {
            "account id to shard" => (rate(1.0, a), rate(1.0, b)),
            "slot to shard" => (rate(1000.0, a), rate(1000.0, b)),
            _ => (milliseconds(a), milliseconds(b)),
        };
        println!("{name:<28} {a:>16} {b:>16} {ratio:>8.2}");
    }
    println!("\n(B / A compares times: 1 is equally fast.)");
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn rate(operations: f64, time: Duration) -> String {
    format!("{:.1} M/s", operations / time.as_secs_f64() / 1e6)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
