//! `shardctl bench`: load on routers, measured; the comparison with a PL/pgSQL transfer function (`bench suite`); and further
//! experiments, each in clusters of its own.
//!
//! The load generator: [`workload`] picks accounts, [`request`] writes and counts, [`connection`] carries, [`driver`] times,
//! [`tally`] adds up, [`load`] has the result. The client usually shares the machine with what it measures, so it does as little as
//! it can for each transfer.
//!
//! What is measured: an [`own_cluster`], with open accounts a [`subject`]; a PL/pgSQL transfer function as [`baseline`]; a bare
//! append as [`ceiling`]. [`machine`] says what it cost.
//!
//! The experiments: [`suite`] is `make bench`, [`scaling`] adds shards, [`soak`] goes on for hours, [`reshard`] moves slots under
//! load, [`long`] fills shards first, [`statements`] reads long histories, [`takeover`] kills nodes, [`overload`] offers more than the
//! capacity, [`prototype`] compares choices of the append path.
//! [`figures`] compares what came out with the bars, [`page`] and [`chart`] draw it.

mod baseline;
mod ceiling;
mod connection;
mod driver;
mod figures;
mod limits;
mod load;
mod long;
mod machine;
mod overload;
mod own_cluster;
mod prototype;
mod request;
mod reshard;
mod scaling;
mod soak;
mod statements;
mod subject;
mod suite;
mod takeover;
mod tally;
mod workload;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use report_page::{chart, page};
use serde::Serialize;
use telemetry::{clock, process::shutdown_signal};

use crate::{context::Context, exit, output};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(flatten)]
    load: load::LoadArgs,
    #[command(subcommand)]
    command: Option<BenchCommand>,
}

#[derive(clap::Subcommand)]
enum BenchCommand {
    /// Measure clusters of its own beside a PL/pgSQL transfer function on the same PostgreSQL, in turn
    Suite(ExperimentArgs<suite::SuitePlan>),
    /// Measure what each choice of the append path costs, apart from the services
    Prototype(ExperimentArgs<prototype::PrototypePlan, ()>),
    /// Measure whether throughput grows with the number of shards, in clusters of its own
    Scaling(ExperimentArgs<scaling::ScalingPlan>),
    /// Keep half of the peak for a long time, in a cluster of its own
    Soak(ExperimentArgs<soak::SoakPlan>),
    /// Grow a cluster of its own under load, shrink it again, and measure what clients notice
    Reshard(ExperimentArgs<reshard::ReshardPlan>),
    /// Measure what takes too long for the suite: many accounts, a long history, an open snapshot
    Long(ExperimentArgs<long::LongPlan>),
    /// Serve nodes without databases
    #[command(hide = true)]
    MockNodes(scaling::mock::MockNodesArgs),
    /// Measure statements of an account with a long history, in a cluster of its own
    Statements(ExperimentArgs<statements::StatementsPlan, ()>),
    /// Offer 1, 2, 5 and 10 times the capacity of a cluster of its own, freeze a shard of it, and see it recover
    Overload(ExperimentArgs<overload::OverloadPlan>),
    /// Kill the first of two nodes under load, and measure how long payments wait, in a cluster of its own
    Takeover(ExperimentArgs<takeover::TakeoverPlan>),
}

pub async fn run(args: BenchArgs, context: &Context) -> anyhow::Result<ExitCode> {
    match args.command {
        None => load::run(args.load, context).await,
        Some(BenchCommand::Suite(run)) => run.run(context).await,
        Some(BenchCommand::Prototype(run)) => run.run(context).await,
        Some(BenchCommand::Scaling(run)) => run.run(context).await,
        Some(BenchCommand::Soak(run)) => run.run(context).await,
        Some(BenchCommand::Reshard(run)) => run.run(context).await,
        Some(BenchCommand::Long(run)) => run.run(context).await,
        Some(BenchCommand::MockNodes(args)) => scaling::mock::run(args).await,
        Some(BenchCommand::Statements(run)) => run.run(context).await,
        Some(BenchCommand::Overload(run)) => run.run(context).await,
        Some(BenchCommand::Takeover(run)) => run.run(context).await,
    }
}

/// A measurement in clusters that are made for it. Its command-line arguments are its plan.
trait Experiment: clap::Args {
    type Report: ExperimentReport;

    /// Checks the plan and takes the seed.
    fn prepare(&mut self, seed: u64) -> anyhow::Result<()>;

    /// Measures in clusters below `folder` that are gone afterwards.
    async fn measure(self, folder: &Path) -> anyhow::Result<Self::Report>;
}

/// What an experiment measured.
trait ExperimentReport: Serialize {
    /// Whether the ledger that was measured balances. If not, the exit code is 3.
    fn is_right(&self) -> bool;

    /// The figures that have bars.
    fn figures(&self) -> &[figures::Figure];

    /// Whether every figure meets its bar. If not, the exit code is 1.
    fn meets_bars(&self) -> bool {
        figures::all_met(self.figures())
    }

    /// Prints the report for a person.
    fn print(&self) -> anyhow::Result<()>;

    /// The report as one HTML file; empty for an experiment without `--report`.
    fn page(&self) -> String {
        String::new()
    }
}

/// The arguments of an experiment and those of all experiments. `P` is [`PageFile`], or `()` where there is no page.
#[derive(clap::Args)]
struct ExperimentArgs<E: clap::Args, P: clap::Args = PageFile> {
    #[command(flatten)]
    experiment: E,
    #[command(flatten)]
    page: P,
    /// Folder of the clusters that are measured, made and removed here [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Write the result as JSON to this file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Repeats what a run drew at random [default: from the clock; printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

#[derive(clap::Args)]
struct PageFile {
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

trait MaybePageFile: clap::Args {
    fn path(&self) -> Option<&Path> {
        None
    }
}

impl MaybePageFile for () {}

impl MaybePageFile for PageFile {
    fn path(&self) -> Option<&Path> {
        self.report.as_deref()
    }
}

impl<E: Experiment, P: MaybePageFile> ExperimentArgs<E, P> {
    /// Measures in a folder that is removed afterwards, also when a signal stops the command. Writes and prints the report.
    async fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let Self { mut experiment, page, folder, out, seed } = self;
        experiment.prepare(seed.unwrap_or_else(|| clock::now_us().unsigned_abs()))?;
        let folder = RunFolder::create(&folder.unwrap_or_else(std::env::temp_dir))?;
        let stopped = shutdown_signal()?;
        let report = tokio::select! {
            report = experiment.measure(&folder.0) => report?,
            // Dropping the experiment stops and removes its clusters.
            signal = stopped => anyhow::bail!("stopped by {signal}"),
        };
        drop(folder);
        if let Some(file) = page.path() {
            write(file, &report.page())?;
        }
        if let Some(file) = &out {
            write(file, &serde_json::to_string_pretty(&report)?)?;
        }
        if context.json {
            output::json(&report)?;
        } else {
            report.print()?;
        }
        Ok(match (report.is_right(), report.meets_bars()) {
            (false, _) => exit::violation(),
            (true, false) => exit::failure(),
            (true, true) => ExitCode::SUCCESS,
        })
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Prints what `shardctl verify` found, at the end of a report.
fn print_verdict(verified: bool) -> anyhow::Result<()> {
    output::data(if verified { "verify: clean" } else { "verify: VIOLATED, the numbers are worth nothing" })
}

/// A folder for one run, removed when it is dropped.
struct RunFolder(PathBuf);

impl RunFolder {
    fn create(parent: &Path) -> anyhow::Result<Self> {
        let path = parent.join(format!("shardledger-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            output::note(&format!("{} could not be removed: {error}", self.0.display()));
        }
    }
}
