//! `shardctl bench scaling`: throughput by the number of shards, and a router's cost with many shards.

use std::{path::PathBuf, process::ExitCode};

use super::{exit_code, own_cluster::OwnCluster, print_figures, write_page};
use crate::{
    bench::{
        figures::all_met,
        scaling::{self, MANY_HEADER, POINT_HEADER, Plan, Report},
    },
    commands::Context,
    output,
};

/// Each shard, its PostgreSQL and its node together, gets the same small part of the processors by a control group (version 1
/// or 2). Where this user cannot make one, each commit is delayed by the same time instead, and the report says so. Exit code
/// 1: a figure misses its bar. 3: a ledger that was measured does not balance.
#[derive(clap::Args)]
pub struct Args {
    /// Numbers of shards, rising
    #[arg(long, value_name = "N,N…", value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    shards: Vec<u16>,
    /// Shares of cross-shard transfers, from 0 to 1
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', default_values_t = [0.0, 0.1, 0.5, 1.0])]
    cross: Vec<f64>,
    /// Seconds of each point
    #[arg(long, value_name = "S", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Cores of each shard [default: half of the machine shared by the shards]
    #[arg(long, value_name = "CORES")]
    shard_cores: Option<f64>,
    /// Numbers of shards whose nodes are mock nodes
    #[arg(long, value_name = "N,N…", value_delimiter = ',', default_values_t = [4, 64, 1_024])]
    mock_shards: Vec<u16>,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let rising = args.shards.is_sorted() && args.shards.iter().all(|shards| (1..=64).contains(shards));
    anyhow::ensure!(rising && !args.shards.is_empty(), "--shards must rise from at least 1 to at most 64");
    let plan = Plan {
        shards: args.shards,
        cross: args.cross,
        seconds: args.seconds,
        shard_cores: args.shard_cores,
        mock_shards: args.mock_shards,
        seed,
    };
    output::note(&format!("seed {seed}"));
    let report = args.own_cluster.run(async |folder| scaling::run(plan, folder).await).await?;
    write_page(args.report.as_deref(), || report.page())?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.verified, all_met(&report.figures)))
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::data(&format!("{}\n", report.limit))?;
    output::table(POINT_HEADER, &report.point_rows())?;
    output::data("")?;
    output::table(MANY_HEADER, &report.many_rows())?;
    output::data("")?;
    print_figures(&report.figures)?;
    output::data(if report.verified { "verify: clean" } else { "verify: VIOLATED, the numbers are worth nothing" })
}
