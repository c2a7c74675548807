//! `shardctl bench` puts load on routers and measures it. `bench suite` compares Shardledger with a PL/pgSQL transfer function. The other
//! experiments each run in clusters of their own.
//!
//! The load generator consists of [`workload`], which picks accounts; [`request`], which writes requests and counts answers; [`connection`],
//! which carries both; [`driver`], which times them; [`tally`], which adds up; and [`load`], which has the result. The client usually shares
//! the machine with the measured processes, so it does as little as possible for each transfer.
//!
//! The measured systems are an [`own_cluster`], which becomes a [`subject`] once its accounts are open; a PL/pgSQL transfer function
//! ([`baseline`]); and a bare append ([`ceiling`]). [`machine`] measures processor time and memory.
//!
//! The experiments are: [`suite`] is `make bench`, [`scaling`] adds shards, [`soak`] runs for hours, [`reshard`] moves slots under load,
//! [`long`] fills shards first, [`statements`] reads long histories, [`takeover`] kills nodes, [`overload`] offers more than the capacity,
//! [`prototype`] compares choices of the append path. [`figures`] compares the results with the bars. [`page`] and [`chart`] draw them.

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
    /// Measure Shardledger and a PL/pgSQL transfer function in turn on the same PostgreSQL, in clusters of their own
    Suite(ExperimentArgs<suite::SuitePlan>),
    /// Measure what each choice of the append path costs, apart from the services
    Prototype(ExperimentArgs<prototype::PrototypePlan, ()>),
    /// Measure whether throughput grows with the number of shards, in clusters of its own
    Scaling(ExperimentArgs<scaling::ScalingPlan>),
    /// Keep half of the peak for a long time, in a cluster of its own
    Soak(ExperimentArgs<soak::SoakPlan>),
    /// Grow a cluster of its own under load, shrink it again, and measure what clients notice
    Reshard(ExperimentArgs<reshard::ReshardPlan>),
    /// Run the measurements that take too long for the suite: many accounts, a long history, an open snapshot
    Long(ExperimentArgs<long::LongPlan>),
    /// Serve mock nodes without databases
    #[command(hide = true)]
    MockNodes(scaling::mock::MockNodesArgs),
    /// Measure how long statements of an account with a long history take, in a cluster of its own
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

    /// Measures in clusters below `folder`, and removes them afterwards.
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

    /// The report as one HTML page. Empty for an experiment without `--report`.
    fn page(&self) -> String {
        String::new()
    }
}

/// The arguments of one experiment and the arguments that all experiments share. `P` is [`PageFile`], or `()` if the experiment has no page.
#[derive(clap::Args)]
struct ExperimentArgs<E: clap::Args, P: clap::Args = PageFile> {
    #[command(flatten)]
    experiment: E,
    #[command(flatten)]
    page: P,
    /// Folder in which the measured clusters are made and removed [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Also write the result as JSON to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seed of the random choices; the same seed repeats them [default: from the clock; printed]
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
    /// Measures in a folder that is removed afterwards, even if a signal stops the command. Writes and prints the report.
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
    output::data(if verified { "verify: clean" } else { "verify: VIOLATED, the figures are void" })
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
