//! `shardctl bench prototype`: what each choice of the append path costs.

use std::process::ExitCode;

use super::own_cluster::OwnCluster;
use crate::{
    bench::prototype::{self, Plan, Report, Row},
    commands::Context,
    output,
};

/// Compares, through one connection to a database of its own: one row a transfer with a transfer and two entries, with CHECKs
/// and without; the used columns with all columns; COPY with an array of rows; ids in time order with random ids; a lock and
/// a check with an UPDATE as fence, alone and beside an open snapshot; and the UPDATE of accounts in sorted chunks. Processor
/// time is that of the connection's server process.
#[derive(clap::Args)]
pub struct Args {
    /// Commits of 4,096 rows of each variant
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u32).range(3..))]
    commits: u32,
    /// Commits of 8 rows of each variant of the fence
    #[arg(long, value_name = "N", default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(3..))]
    small_commits: u32,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let plan = Plan { commits: args.commits as usize, small_commits: args.small_commits as usize, seed };
    output::note(&format!("seed {seed}"));
    let report = args.own_cluster.run(async |folder| prototype::run(plan, folder).await).await?;
    args.own_cluster.report(&report, context, print)?;
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) -> anyhow::Result<()> {
    let rows: Vec<[String; 9]> = report.rows.iter().map(cells).collect();
    output::table(
        ["choice", "variant", "rows/commit", "rows/s", "us/row", "us/commit", "in thirds", "WAL B/row", "disk B/row"],
        &rows,
    )
}

fn cells(row: &Row) -> [String; 9] {
    let thirds: Vec<String> = row.backend_us_per_commit_in_thirds.iter().map(|us| format!("{us:.0}")).collect();
    [
        row.choice.to_owned(),
        row.variant.clone(),
        row.rows_per_commit.to_string(),
        format!("{:.0}", row.per_s),
        format!("{:.2}", row.backend_us),
        format!("{:.0}", row.backend_us_per_commit),
        thirds.join(" "),
        format!("{:.0}", row.wal_bytes),
        row.disk_bytes.map_or_else(String::new, |bytes| format!("{bytes:.0}")),
    ]
}
