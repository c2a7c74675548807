//! `shardctl bench suite`: the comparison `make bench` prints.

use std::{path::PathBuf, process::ExitCode};

use super::{exit_code, own_cluster::OwnCluster, print_figures, write_page};
use crate::{
    bench::{
        figures::all_met,
        suite::{self, Plan, RUN_HEADER, Report},
    },
    commands::Context,
    output,
};

/// Exit code 1: a figure misses its bar, or was not measured. 3: a ledger that was measured does not balance.
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; medians over them count
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each main run; others have a part of it. A run of 8 seconds or more has a checkpoint half way
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Seconds of each point of a plot
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    sweep_seconds: u32,
    /// Only runs and plots whose name contains this; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let plan = Plan { rounds: args.rounds, seconds: args.seconds, sweep_seconds: args.sweep_seconds, seed };
    output::note(&format!("seed {seed}, {} rounds, main runs of {} s", plan.rounds, plan.seconds));
    let only = args.only;
    let report = args.own_cluster.run(async |folder| suite::run(plan, &only, folder).await).await?;
    write_page(args.report.as_deref(), || report.page())?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.verified, all_met(&report.figures)))
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::data(
        "Processor time for each transfer by kind of process, latency of requests, disk for each transfer\n",
    )?;
    output::table(RUN_HEADER, &report.run_rows())?;
    output::data("")?;
    print_figures(&report.figures)?;
    let settings: Vec<String> = report.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    output::data(&format!("\n{}; PostgreSQL on all sides: {}", report.machine, settings.join(" ")))?;
    output::data(if report.verified { "verify: clean" } else { "verify: VIOLATED, the numbers are worth nothing" })
}
