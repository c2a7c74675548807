//! `shardctl bench statements`: pages and balances of a long history.

use std::process::ExitCode;

use super::{exit_code, own_cluster::OwnCluster};
use crate::{
    bench::statements::{self, Plan, Report, Row},
    commands::Context,
    output,
};

/// Exit code 1: a question takes longer than its bar. 3: the ledger that was measured does not balance.
#[derive(clap::Args)]
pub struct Args {
    /// Entries of the long history
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(10_000..))]
    entries: u32,
    /// How often each question is asked
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..))]
    requests: u32,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let plan = Plan { entries: args.entries as usize, requests: args.requests as usize, seed };
    output::note(&format!("seed {seed}, a history of {} entries", plan.entries));
    let report = args.own_cluster.run(async |folder| statements::run(plan, folder).await).await?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.verified, report.all_met()))
}

fn print(report: &Report) -> anyhow::Result<()> {
    let rows: Vec<[String; 6]> = report.rows.iter().map(cells).collect();
    output::table(["statement over HTTP", "entries", "p50 ms", "p99 ms", "bar", ""], &rows)?;
    output::data(if report.verified { "verify: clean" } else { "verify: VIOLATED, the numbers are worth nothing" })
}

fn cells(row: &Row) -> [String; 6] {
    let ms = |us: u64| format!("{:.1}", us as f64 / 1_000.0);
    let verdict = match (row.bar_p99_us, row.met) {
        (None, _) => "",
        (Some(_), true) => "met",
        (Some(_), false) => "ABOVE",
    };
    [
        row.question.to_owned(),
        row.entries.to_string(),
        ms(row.latency_us.p50),
        ms(row.latency_us.p99),
        row.bar_p99_us.map_or_else(String::new, ms),
        verdict.to_owned(),
    ]
}
