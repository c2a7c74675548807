//! `shardctl bench long`: what takes too long for `make bench`.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;

use super::{exit_code, own_cluster::OwnCluster, print_figures, write_page};
use crate::{
    bench::{
        figures::all_met,
        long::{self, Parts, Plan, RUN_HEADER, Report},
    },
    commands::Context,
    output,
};

/// Exit code 1: a figure misses its bar. 3: a ledger that was measured does not balance.
#[derive(clap::Args)]
pub struct Args {
    /// Only this part; may be repeated
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Accounts of the shard with many accounts
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(100_001..))]
    accounts: u32,
    /// Transfers in the shard with a history
    #[arg(long, value_name = "N", default_value_t = 20_000_000)]
    transfers: u32,
    /// How long the snapshot is held
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u32).range(2..))]
    snapshot_seconds: u32,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Uniform transfers among many accounts, beside the function over as many
    Accounts,
    /// A shard with many transfers, ids in time order and random
    History,
    /// Beside a transaction that holds a snapshot
    Snapshot,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let plan = Plan {
        parts: Parts {
            accounts: wanted(Part::Accounts),
            history: wanted(Part::History),
            snapshot: wanted(Part::Snapshot),
        },
        seconds: args.seconds,
        many_accounts: args.accounts as usize,
        history: args.transfers as usize,
        snapshot_seconds: args.snapshot_seconds,
        seed,
    };
    output::note(&format!("seed {seed}"));
    let report = args.own_cluster.run(async |folder| long::run(plan, folder).await).await?;
    write_page(args.report.as_deref(), || report.page())?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.verified, all_met(&report.figures)))
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::table(RUN_HEADER, &report.run_rows())?;
    output::data("")?;
    print_figures(&report.figures)?;
    output::data(if report.verified { "verify: clean" } else { "verify: VIOLATED, the numbers are worth nothing" })
}
