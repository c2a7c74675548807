//! `shardctl bench soak`: constant load for a long time.

use std::{path::PathBuf, process::ExitCode};

use super::{exit_code, own_cluster::OwnCluster, print_figures, write_page};
use crate::{
    bench::{
        figures::all_met,
        soak::{self, Plan, Report},
    },
    commands::Context,
    output,
};

/// Measures the peak first, and then keeps half of it, in the open loop. Exit code 1: a figure misses its bar. 3: the sum of
/// all accounts changed, or the ledger does not balance.
#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, value_name = "M", default_value_t = 10.0)]
    minutes: f64,
    /// Seconds of a window
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    window: u32,
    /// Seconds of the measurement of the peak
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    peak_seconds: u32,
    /// The share of transfers that are sent a second time, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    replays: f64,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// Transfers a request; 1 sends single transfers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let long_enough = args.minutes * 60.0 >= f64::from(3 * args.window);
    anyhow::ensure!(long_enough && args.minutes.is_finite(), "--minutes must hold at least three windows");
    anyhow::ensure!((0.0..=1.0).contains(&args.replays), "--replays must be between 0 and 1");
    let plan = Plan {
        minutes: args.minutes,
        window_s: args.window,
        peak_seconds: args.peak_seconds,
        replays: args.replays,
        connections: usize::from(args.connections),
        batch: usize::from(args.batch),
        seed,
    };
    output::note(&format!("seed {seed}, {} minutes", plan.minutes));
    let report = args.own_cluster.run(async |folder| soak::run(plan, folder).await).await?;
    write_page(args.report.as_deref(), || report.page())?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.books_hold(), all_met(&report.figures)))
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::data(&format!("peak {:.0} transfers/s\n{}\n", report.peak_transfers_per_s, report.summary()))?;
    print_figures(&report.figures)
}
