//! `shardctl bench suite`: the comparison `make bench` prints.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use telemetry::{clock, shutdown};

use crate::{
    bench::suite::{self, Plan, Report, median},
    commands::Context,
    exit, output,
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
    /// Folder of the clusters that are measured, made and removed here [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Write the result as JSON to this file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(|| clock::now_us().unsigned_abs());
    let plan = Plan { rounds: args.rounds, seconds: args.seconds, seed };
    output::note(&format!("seed {seed}, {} rounds of {} s a run", plan.rounds, plan.seconds));
    let folder = Folder::create(args.folder.unwrap_or_else(std::env::temp_dir))?;
    let stopped = shutdown::signal()?;
    let report = tokio::select! {
        report = suite::run(plan, &folder.0) => report?,
        // Dropping the run stops and removes its clusters.
        signal = stopped => anyhow::bail!("stopped by {signal}"),
    };
    if let Some(out) = &args.out {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    }
    if context.json {
        output::json(&report)?
    } else {
        print(&report)?
    }
    Ok(match (report.verified, report.all_met()) {
        (false, _) => exit::violation(),
        (true, false) => exit::failure(),
        (true, true) => ExitCode::SUCCESS,
    })
}

fn print(report: &Report) -> anyhow::Result<()> {
    let runs: Vec<[String; 5]> = report
        .samples
        .iter()
        .map(|(name, samples)| {
            let rates: Vec<String> = samples.iter().map(|sample| format!("{:.0}", sample.transfers_per_s)).collect();
            // Latencies of the last round: those of requests, so of whole batches.
            let latency = samples.last().and_then(|sample| sample.ours.as_ref()).map(|ours| &ours.latency_us);
            let ms = |us: u64| format!("{:.1}", us as f64 / 1_000.0);
            [
                name.clone(),
                format!("{:.0}", median(samples)),
                rates.join(" "),
                latency.map_or_else(String::new, |latency| ms(latency.p50)),
                latency.map_or_else(String::new, |latency| ms(latency.p99)),
            ]
        })
        .collect();
    output::table(["run", "median/s", "rounds", "p50 ms", "p99 ms"], &runs)?;
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

/// A folder for one run, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn create(parent: PathBuf) -> anyhow::Result<Self> {
        let path = parent.join(format!("shardledger-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            output::note(&format!("{} could not be removed: {error}", self.0.display()));
        }
    }
}
