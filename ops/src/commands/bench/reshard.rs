//! `shardctl bench reshard`: a cluster grows and shrinks under load.

use std::{path::PathBuf, process::ExitCode};

use super::{exit_code, own_cluster::OwnCluster, print_figures, write_page};
use crate::{
    bench::{
        figures::all_met,
        reshard::{self, Plan, Report},
    },
    commands::Context,
    output,
};

/// Measures the peak, keeps half of it in the open loop, adds shards and balances, then drains and removes them. Further clients hold,
/// capture, reverse, page statements and lists, and send old transfers again; each checks what it is answered. Exit code 1: a figure
/// misses its bar. 3: a client was answered wrongly, or the ledger does not balance.
#[derive(clap::Args)]
pub struct Args {
    /// Shards at the beginning and at the end
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    shards: u16,
    /// Shards that are added, and removed again
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    added: u16,
    /// Accounts
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=50_000_000))]
    accounts: u32,
    /// Seconds of the measurement of the peak
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    peak_seconds: u32,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let plan = Plan {
        shards: args.shards,
        added: args.added,
        accounts: args.accounts as usize,
        peak_seconds: args.peak_seconds,
        seed,
    };
    output::note(&format!("seed {seed}: {} to {} shards and back", plan.shards, plan.shards + plan.added));
    let report = args.own_cluster.run(async |folder| reshard::run(plan, folder).await).await?;
    write_page(args.report.as_deref(), || report.page())?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.is_right(), all_met(&report.figures)))
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::data(&report.summary())?;
    for failure in &report.failures {
        output::data(&format!("FAILED: {failure}"))?;
    }
    output::data("\npause of each cut-over, as clients saw it:")?;
    output::table(["of the cut-overs", "at most ms"], &report.distribution())?;
    output::data("")?;
    print_figures(&report.figures)
}
