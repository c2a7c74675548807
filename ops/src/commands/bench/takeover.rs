//! `shardctl bench takeover`: how long the death of a node keeps payments waiting.

use std::{path::PathBuf, process::ExitCode};

use super::{exit_code, own_cluster::OwnCluster, print_figures, write_page};
use crate::{
    bench::{
        figures::all_met,
        takeover::{self, Plan, Report},
    },
    commands::Context,
    output,
};

/// Kills the first of two nodes under load, several times. Exit code 1: a figure misses its bar. 3: the ledger does not balance
#[derive(clap::Args)]
pub struct Args {
    /// Kills
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Clients that send one payment at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let plan = Plan { rounds: args.rounds, clients: usize::from(args.clients) };
    let report = args.own_cluster.run(async |folder| takeover::run(plan, folder).await).await?;
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
