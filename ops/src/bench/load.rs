//! `shardctl bench` without a subcommand: one workload against running routers, and what every load measures.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc, time::Duration};

use anyhow::ensure;
use serde::Serialize;
use telemetry::clock;

use super::{
    connection::Address,
    driver::{self, Load, LoadResult},
    request::Ids,
    subject,
    tally::{Latency, Window},
    workload::{Locality, Picker, Workload},
};
use crate::{
    context::{AdminAddress, Context, PublicAddress},
    output,
};

/// The load runs for this long before the counting begins. Meanwhile connections open and caches fill.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// Latencies are those of requests. In the open loop they count from the moment a request was meant to leave.
#[derive(clap::Args)]
pub struct LoadArgs {
    #[command(flatten)]
    address: PublicAddress,
    #[command(flatten)]
    admin: AdminAddress,
    /// How the accounts of a transfer are picked
    #[arg(long, value_enum, default_value = "uniform")]
    workload: Workload,
    /// Number of accounts to move money between; missing accounts are opened
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..))]
    accounts: u32,
    /// Transfers in each request; 1 sends single transfers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Connections; each has one request under way
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// How long to measure, in seconds
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    duration: u32,
    /// Send this many requests a second without waiting for answers (open loop) [default: each connection waits for its answer]
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Only transfers between accounts of one shard
    #[arg(long)]
    shards_local_only: bool,
    /// The share of transfers between accounts of different shards, from 0 to 1; the others are between accounts of one shard
    #[arg(long, value_name = "SHARE", conflicts_with = "shards_local_only")]
    cross_share: Option<f64>,
    /// The share of transfers that are sent a second time, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    replays: f64,
    /// How transfer ids are made
    #[arg(long, value_enum, default_value = "time-ordered")]
    ids: Ids,
    /// Threads of the load generator
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Seed of the accounts, amounts and random parts of ids; the same seed repeats them [default: from the clock; printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub async fn run(args: LoadArgs, context: &Context) -> anyhow::Result<ExitCode> {
    ensure!(args.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "--rate must be above 0");
    let is_share = |share: f64| (0.0..=1.0).contains(&share);
    ensure!(is_share(args.replays), "--replays must be between 0 and 1");
    ensure!(args.cross_share.is_none_or(is_share), "--cross-share must be between 0 and 1");
    let locality = match (args.workload, args.shards_local_only, args.cross_share) {
        (Workload::Cross, true, _) => anyhow::bail!("--workload cross and --shards-local-only exclude each other"),
        (Workload::Cross, false, Some(_)) => anyhow::bail!("--workload cross and --cross-share exclude each other"),
        (Workload::Cross, false, None) => Locality::Cross,
        (_, _, Some(share)) => Locality::Share(share),
        (_, true, None) => Locality::Local,
        (_, false, None) => Locality::Any,
    };
    let seed = args.seed.unwrap_or_else(|| clock::now_us().unsigned_abs());
    output::note(&format!("seed {seed}"));
    let count = args.accounts as usize;
    let homes = if locality == Locality::Any {
        vec![0; count]
    } else {
        let map = args.admin.routers(context)?.get("/admin/shard-map").await?;
        subject::homes(&subject::slot_owners(&map)?, count)
    };
    let urls = args.address.routers(context)?.urls;
    let routers = urls.iter().map(|url| Address::parse(url)).collect::<anyhow::Result<Vec<_>>>()?;
    subject::open_accounts(&routers[0], count).await?;
    let load = Load {
        routers,
        connections: usize::from(args.connections),
        threads: usize::from(args.threads),
        batch: usize::from(args.batch),
        rate: args.rate,
        ids: args.ids,
        replays: args.replays,
        retries: 0,
        leaves_out_late: false,
        warm_up: WARM_UP,
        duration: Duration::from_secs(u64::from(args.duration)),
        window: None,
        seed,
        stop: Default::default(),
    };
    let measurement = measure(&load, Picker::new(args.workload, locality, homes)?).await?;
    if context.json {
        output::json(&measurement)?
    } else {
        print(&measurement)?
    }
    Ok(ExitCode::SUCCESS)
}

fn print(measured: &Measurement) -> anyhow::Result<()> {
    let latency = &measured.latency_us;
    output::table(
        ["transfers/s", "requests/s", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us", "client us/request"],
        &[[
            format!("{:.0}", measured.transfers_per_s),
            format!("{:.0}", measured.requests_per_s),
            latency.p50.to_string(),
            latency.p90.to_string(),
            latency.p99.to_string(),
            latency.p99_9.to_string(),
            latency.max.to_string(),
            format!("{:.1}", measured.generator_us_per_request),
        ]],
    )?;
    let mut outcomes = format!("\n{} posted, {} pending", measured.posted, measured.pending);
    for (code, count) in &measured.others {
        outcomes.push_str(&format!(", {count} {code}"));
    }
    output::data(&outcomes)
}

/// The result of a load.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measurement {
    pub workload: Workload,
    pub locality: Locality,
    pub accounts: usize,
    pub batch: usize,
    pub connections: usize,
    /// The requested rate in requests a second. Absent in the closed loop.
    pub rate: Option<f64>,
    pub seed: u64,
    pub seconds: f64,
    pub requests: u64,
    pub requests_per_s: f64,
    pub posted: u64,
    /// Posted transfers a second.
    pub transfers_per_s: f64,
    pub pending: u64,
    /// New transfers, including those of the warm-up.
    pub transfers_in_all: u64,
    /// Transfers that were neither posted nor are pending, by code.
    pub others: BTreeMap<String, u64>,
    /// Answers to transfers that had been sent before.
    pub replayed: u64,
    /// Latency of requests, in microseconds.
    pub latency_us: Latency,
    /// Latency of requests without a result, from the moment they were sent.
    pub refusal_latency_us: Latency,
    /// Processor time of the load generator for each request.
    pub generator_us_per_request: f64,
    /// The longest time between two successful answers.
    pub longest_pause_s: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
}

/// Runs a load over the accounts of this picker.
pub async fn measure(load: &Load, picker: Picker) -> anyhow::Result<Measurement> {
    let (workload, locality, accounts) = (picker.workload(), picker.locality(), picker.accounts());
    let driven = driver::drive(load, Arc::new(picker)).await?;
    Ok(Measurement::new(workload, locality, accounts, load, driven))
}

impl Measurement {
    fn new(workload: Workload, locality: Locality, accounts: usize, load: &Load, driven: LoadResult) -> Self {
        let LoadResult { tally, transfers_in_all, windows, longest_pause, generator_us_per_request } = driven;
        let seconds = load.duration.as_secs_f64();
        Self {
            workload,
            locality,
            accounts,
            batch: load.batch,
            connections: load.connections,
            rate: load.rate,
            seed: load.seed,
            seconds,
            requests: tally.requests,
            requests_per_s: tally.requests as f64 / seconds,
            posted: tally.posted,
            transfers_per_s: tally.posted as f64 / seconds,
            pending: tally.pending,
            transfers_in_all,
            latency_us: tally.latency(),
            refusal_latency_us: tally.refusal_latency(),
            others: tally.codes,
            replayed: tally.replayed,
            generator_us_per_request,
            longest_pause_s: longest_pause.as_secs_f64(),
            windows,
        }
    }
}
