//! The runs and plots of the suite.

use crate::bench::{
    baseline::Script,
    request::Ids,
    subject::LoadSpec,
    workload::{Locality, Workload},
};

/// One run of the suite.
pub struct SuiteRun {
    /// Its name in the report.
    pub name: &'static str,
    /// Its length as a part of the seconds of a main run.
    pub share: f64,
    pub what: RunKind,
}

pub enum RunKind {
    /// Appends the journal's rows through one connection, and does nothing else.
    Ceiling,
    /// The PL/pgSQL function with this number of clients.
    Function(Script, u16),
    /// The latency of the function with one client.
    FunctionLatency,
    Ours(Shards, LoadSpec),
    /// Shardledger at half of the rate that the run of this name has reached in this round.
    AtHalfTheRateOf(&'static str, Shards, LoadSpec),
    /// The node is killed under the load.
    Kill(LoadSpec),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shards {
    One,
    /// Two shards with two routers.
    Two,
    /// One shard, HTTPS, mutual TLS between router and node, and a key. PostgreSQL is reached on loopback without TLS.
    Secured,
}

/// Points of a plot.
pub struct Sweep {
    pub name: &'static str,
    /// What follows "Throughput" in the plot's title.
    pub title: &'static str,
    pub x_label: &'static str,
    pub axis: SweepAxis,
    pub points: &'static [SweepPoint],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SweepAxis {
    Linear,
    Log,
    Words,
}

pub struct SweepPoint {
    pub x: f64,
    pub label: &'static str,
    pub shards: Shards,
    pub spec: LoadSpec,
}

const fn ours(name: &'static str, share: f64, shards: Shards, spec: LoadSpec) -> SuiteRun {
    SuiteRun { name, share, what: RunKind::Ours(shards, spec) }
}

const fn function(name: &'static str, script: Script, clients: u16) -> SuiteRun {
    SuiteRun { name, share: 0.5, what: RunKind::Function(script, clients) }
}

const CROSS: LoadSpec = LoadSpec { workload: Workload::Cross, locality: Locality::Cross, ..LoadSpec::BATCHES };
const LOCAL: LoadSpec = LoadSpec { locality: Locality::Local, ..LoadSpec::BATCHES };
const HALF_CROSS_SINGLES: LoadSpec = LoadSpec { locality: Locality::Share(0.5), routers: 2, ..LoadSpec::SINGLES };

/// The runs of the function that the bars compare with. The better one counts.
pub const FUNCTION_UNIFORM: [&str; 2] = ["function_uniform_16", "function_uniform_48"];
pub const FUNCTION_HOT: [&str; 2] = ["function_hot_16", "function_hot_48"];

/// One round: Shardledger and the other systems in turn. pgbench runs with few clients and with many, and the better run counts. A server of
/// a cluster takes 64 connections, including those of its node.
pub const ROUND: [SuiteRun; 17] = [
    function("function_uniform_16", Script::Uniform, 16),
    ours("batch_uniform", 1.0, Shards::One, LoadSpec::BATCHES),
    ours("batch_secured", 1.0, Shards::Secured, LoadSpec::BATCHES),
    SuiteRun { name: "ceiling_append", share: 0.4, what: RunKind::Ceiling },
    ours("batch_replays", 1.0, Shards::One, LoadSpec { replays: 0.01, ..LoadSpec::BATCHES }),
    function("function_uniform_48", Script::Uniform, 48),
    ours("single_uniform", 1.0, Shards::One, LoadSpec::SINGLES),
    ours("single_secured", 1.0, Shards::Secured, LoadSpec::SINGLES),
    function("function_hot_16", Script::Hot, 16),
    ours("batch_hot", 1.0, Shards::One, LoadSpec { workload: Workload::Hot, ..LoadSpec::BATCHES }),
    function("function_hot_48", Script::Hot, 48),
    ours("one_client", 0.3, Shards::One, LoadSpec { connections: 1, ..LoadSpec::SINGLES }),
    SuiteRun { name: "function_one_client", share: 0.3, what: RunKind::FunctionLatency },
    ours("two_shards_cross", 1.0, Shards::Two, CROSS),
    ours("two_shards_local", 0.5, Shards::Two, LOCAL),
    ours("two_shards_single_half_cross", 1.0, Shards::Two, HALF_CROSS_SINGLES),
    SuiteRun {
        name: "half_the_peak",
        share: 0.5,
        what: RunKind::AtHalfTheRateOf("two_shards_single_half_cross", Shards::Two, HALF_CROSS_SINGLES),
    },
];

/// Runs that are measured once, after the plots, because they change the state of the shard.
pub const AT_LAST: [SuiteRun; 2] = [
    ours("batch_random_ids", 0.7, Shards::One, LoadSpec { ids: Ids::Random, ..LoadSpec::BATCHES }),
    SuiteRun { name: "node_killed", share: 0.7, what: RunKind::Kill(LoadSpec::BATCHES) },
];

const fn batch(size: usize, label: &'static str) -> SweepPoint {
    let spec = LoadSpec { batch: size, ..LoadSpec::BATCHES };
    SweepPoint { x: size as f64, label, shards: Shards::One, spec }
}

const fn connections(count: usize, label: &'static str) -> SweepPoint {
    let spec = LoadSpec { connections: count, ..LoadSpec::SINGLES };
    SweepPoint { x: count as f64, label, shards: Shards::One, spec }
}

const fn skew(x: f64, label: &'static str, workload: Workload) -> SweepPoint {
    SweepPoint { x, label, shards: Shards::One, spec: LoadSpec { workload, ..LoadSpec::BATCHES } }
}

const fn crossing(share: f64, label: &'static str) -> SweepPoint {
    let spec = LoadSpec { locality: Locality::Share(share), ..LoadSpec::BATCHES };
    SweepPoint { x: share * 100.0, label, shards: Shards::Two, spec }
}

/// The plots. The runs of their points are short.
pub const SWEEPS: [Sweep; 4] = [
    Sweep {
        name: "by_batch_size",
        title: "by batch size",
        x_label: "transfers in one request, 8 connections",
        axis: SweepAxis::Log,
        points: &[
            batch(1, "1"),
            batch(10, "10"),
            batch(100, "100"),
            batch(1_000, "1,000"),
            batch(4_000, "4,000"),
            batch(10_000, "10,000"),
        ],
    },
    Sweep {
        name: "by_connections",
        title: "by connections",
        x_label: "connections, one transfer a request",
        axis: SweepAxis::Log,
        points: &[
            connections(1, "1"),
            connections(4, "4"),
            connections(16, "16"),
            connections(64, "64"),
            connections(256, "256"),
        ],
    },
    Sweep {
        name: "by_skew",
        title: "by skew",
        x_label: "accounts, batches of 1,000",
        axis: SweepAxis::Words,
        points: &[
            skew(0.0, "uniform", Workload::Uniform),
            skew(1.0, "Zipf 0.99", Workload::Zipf),
            skew(2.0, "mix", Workload::Mix),
            skew(3.0, "one hot account", Workload::Hot),
        ],
    },
    Sweep {
        name: "by_cross_share",
        title: "by share of cross-shard transfers",
        x_label: "% cross-shard, two shards, batches of 1,000",
        axis: SweepAxis::Linear,
        points: &[
            crossing(0.0, "0 %"),
            crossing(0.1, "10 %"),
            crossing(0.25, "25 %"),
            crossing(0.5, "50 %"),
            crossing(0.75, "75 %"),
            crossing(1.0, "100 %"),
        ],
    },
];
