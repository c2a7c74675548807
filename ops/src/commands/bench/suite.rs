//! `shardctl bench suite`: the comparison `make bench` prints.

use std::process::ExitCode;

use super::{exit_code, own_cluster::OwnCluster};
use crate::{
    bench::{
        Latency,
        suite::{self, PerTransfer, Plan, Report, Sample, median},
    },
    commands::Context,
    output,
};

/// Exit code 1: a ratio is below its bar. 3: a ledger that was measured does not balance.
#[derive(clap::Args)]
pub struct Args {
    /// Rounds; medians over them count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each run, nine to a round
    #[arg(long, value_name = "S", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    #[command(flatten)]
    own_cluster: OwnCluster,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.own_cluster.seed();
    let plan = Plan { rounds: args.rounds, seconds: args.seconds, seed };
    output::note(&format!("seed {seed}, {} rounds of {} s a run", plan.rounds, plan.seconds));
    let report = args.own_cluster.run(async |folder| suite::run(plan, folder).await).await?;
    args.own_cluster.report(&report, context, print)?;
    Ok(exit_code(report.verified, report.all_met()))
}

fn print(report: &Report) -> anyhow::Result<()> {
    let runs: Vec<[String; 9]> = report.samples.iter().map(|(name, samples)| run_row(name, samples)).collect();
    output::data(
        "Processor time a transfer (client, routers, nodes, PostgreSQL) and latency of requests: last round\n",
    )?;
    output::table(
        ["run", "median/s", "rounds", "client us", "router us", "node us", "postgres us", "p50 ms", "p99 ms"],
        &runs,
    )?;
    output::data("")?;
    let comparisons: Vec<[String; 6]> = report
        .comparisons
        .iter()
        .map(|c| {
            let verdict = if c.met { "met" } else { "BELOW" };
            [
                c.claim.to_owned(),
                format!("{:.0}", c.ours),
                format!("{:.0}", c.other),
                format!("{:.2}", c.ratio),
                format!("{:.1}", c.at_least),
                verdict.to_owned(),
            ]
        })
        .collect();
    output::table(["transfers a second, medians", "ours", "other", "ratio", "bar", ""], &comparisons)?;
    let settings: Vec<String> = report.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    output::data(&format!("\n{} cores; PostgreSQL on both sides: {}", report.cores, settings.join(" ")))?;
    output::data(if report.verified { "verify: clean" } else { "verify: VIOLATED, the numbers are worth nothing" })
}

fn run_row(name: &str, samples: &[Sample]) -> [String; 9] {
    let rates: Vec<String> = samples.iter().map(|sample| format!("{:.0}", sample.transfers_per_s)).collect();
    let last = samples.last();
    let cpu = |of: fn(&PerTransfer) -> f64| {
        last.map_or_else(String::new, |sample| format!("{:.1}", of(&sample.cpu_us_per_transfer)))
    };
    let ms = |of: fn(&Latency) -> u64| {
        let ours = last.and_then(|sample| sample.ours.as_ref());
        ours.map_or_else(String::new, |ours| format!("{:.1}", of(&ours.latency_us) as f64 / 1_000.0))
    };
    [
        name.to_owned(),
        format!("{:.0}", median(samples)),
        rates.join(" "),
        cpu(|cpu| cpu.client),
        cpu(|cpu| cpu.routers),
        cpu(|cpu| cpu.nodes),
        cpu(|cpu| cpu.postgres),
        ms(|latency| latency.p50),
        ms(|latency| latency.p99),
    ]
}
