//! `shardctl bench overload`: loads beyond the capacity of a cluster.

use std::{path::PathBuf, process::ExitCode};

use super::{exit_code, own_cluster::OwnCluster, print_figures, write_page};
use crate::{
    bench::{
        figures::all_met,
        overload::{self, Plan, Report},
    },
    commands::Context,
    output,
};

/// Measures the peak, then 1, 2, 5 and 10 × of it in the open loop, a frozen shard, a spike, and clients that retry. Exit code 1: a figure
/// misses its bar. 3: the ledger does not balance
#[derive(clap::Args)]
pub struct Args {
    /// Seconds of each load
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(3..=600))]
    seconds: u32,
    /// Processors of each shard, PostgreSQL and node together
    #[arg(long, value_name = "CORES", default_value_t = 0.1)]
    cores: f64,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    anyhow::ensure!((0.01..=64.0).contains(&args.cores), "--cores must be between 0.01 and 64");
    let plan = Plan { seconds: args.seconds, cores: args.cores, seed: args.own_cluster.seed() };
    output::note(&format!("seed {}", plan.seed));
    let report = args.own_cluster.run(async |folder| overload::run(plan, folder).await).await?;
    write_page(args.report.as_deref(), || report.page())?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.verified, all_met(&report.figures)))
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::data(&format!("{}\n", report.summary()))?;
    output::table(Report::HEADER, &report.rows())?;
    output::data("")?;
    print_figures(&report.figures)
}
