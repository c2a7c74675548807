//! `shardctl bench suite`, which `make bench` runs, measures Shardledger, a PL/pgSQL transfer function and a bare append in turn for several
//! rounds, on the same machine and PostgreSQL with the same settings.
//!
//! [`runs`] lists what is measured, [`report`] compares the figures with the bars and draws them.

mod report;
mod runs;

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use report::SuiteReport;
use runs::{AT_LAST, ROUND, RunKind, SWEEPS, Shards, SuiteRun, Sweep, SweepPoint};
use rustix::process::Signal;
use serde::Serialize;

use super::{
    Experiment,
    baseline::{Baseline, settings},
    ceiling::{self, ACCOUNTS},
    figures::Samples,
    own_cluster::OwnCluster,
    scaling,
    subject::{LoadSpec, MeasuredCluster, Sample},
};
use crate::{cluster::member::ProcessRole, output};

/// Exit code 1: a figure misses its bar, or was not measured. 3: a ledger that was measured does not balance.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct SuitePlan {
    /// Rounds; the figures are medians over the rounds
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each main run; other runs take a part of this time. A run of 8 seconds or more has a checkpoint half way
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Seconds of each point of a plot
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    sweep_seconds: u32,
    /// Run only runs and plots whose name contains this; may be repeated
    #[arg(long, value_name = "PART")]
    #[serde(skip)]
    only: Vec<String>,
    #[arg(skip)]
    seed: u64,
}

/// The name of the plot over the number of shards.
const BY_SHARDS: &str = "by_shards";
/// Shorter points would hold too few of the batches that a limited shard takes.
const LEAST_SECONDS_BY_SHARDS: u32 = 5;

/// Points over the number of shards, each with the same small part of the machine.
#[derive(Debug, Default, Serialize)]
pub struct ByShards {
    /// How each shard was limited.
    pub limit: String,
    pub points: Vec<scaling::ScalingPoint>,
}

/// The clusters that a round measures.
pub struct SuiteClusters {
    one: MeasuredCluster,
    two: MeasuredCluster,
    secured: MeasuredCluster,
    function: Baseline,
    function_cluster: OwnCluster,
}

/// The measured points of a plot.
#[derive(Debug, Clone, Serialize)]
pub struct MeasuredSweep {
    pub name: &'static str,
    pub points: Vec<MeasuredPoint>,
}

#[derive(Debug, Clone, Serialize)]
pub struct MeasuredPoint {
    pub x: f64,
    pub label: &'static str,
    pub sample: Sample,
}

impl SuiteClusters {
    pub async fn set_up(folder: &Path) -> anyhow::Result<Self> {
        let one = MeasuredCluster::start(folder, "one-shard", 1, 1, ACCOUNTS).await?;
        let two = MeasuredCluster::start(folder, "two-shards", 2, 2, ACCOUNTS).await?;
        let secured = MeasuredCluster::start_secured(folder, "secured", 1, ACCOUNTS).await?;
        // The function has a server of its own, so that the data of Shardledger does not slow it down.
        let function_cluster = OwnCluster::start(folder.join("function"), 1, 1)?;
        let databases = function_cluster.databases()?;
        let dsn = &databases.first().context("a cluster without shards")?.dsn;
        let function = Baseline::prepare(dsn, &function_cluster.description.postgres.bin_dir, folder).await?;
        Ok(Self { one, two, secured, function, function_cluster })
    }

    pub fn function_dsn(&self) -> anyhow::Result<String> {
        let databases = self.function_cluster.databases()?;
        Ok(databases.into_iter().next().context("a cluster without shards")?.dsn)
    }

    pub async fn is_clean(&self) -> anyhow::Result<bool> {
        let mut clean = true;
        for subject in [&self.one, &self.two, &self.secured] {
            clean &= subject.cluster.is_clean().await?;
        }
        Ok(clean)
    }

    pub async fn measure(
        &self,
        run: &SuiteRun,
        plan: &SuitePlan,
        seed: u64,
        samples: &mut Samples,
    ) -> anyhow::Result<()> {
        let seconds = ((f64::from(plan.seconds) * run.share).round() as u32).max(1);
        let spec_of =
            |spec: &LoadSpec| LoadSpec { seconds, seed, checkpoint: seconds >= CHECKPOINT_FROM_S, ..spec.clone() };
        let sample = match &run.what {
            RunKind::Ceiling => self.ceiling(seconds, seed).await,
            RunKind::Function(script, clients) => {
                let measure = self.function.measure(*script, *clients, seconds, seed);
                self.of_function(seconds, measure, |rate| Sample { transfers_per_s: rate, ..Sample::default() }).await
            }
            RunKind::FunctionLatency => {
                let measure = self.function.measure_latency(seconds, seed);
                self.of_function(seconds, measure, |(rate, latency)| Sample {
                    transfers_per_s: rate,
                    latency_us: Some(latency),
                    ..Sample::default()
                })
                .await
            }
            RunKind::Ours(shards, spec) => self.subject(*shards).measure(&spec_of(spec)).await,
            RunKind::AtHalfTheRateOf(peak, shards, spec) => {
                let Some(rate) = samples.0.get(*peak).and_then(|samples| samples.last()) else { return Ok(()) };
                self.subject(*shards).measure(&spec_of(spec).at_rate(rate.transfers_per_s / 2.0)).await
            }
            RunKind::Kill(spec) => self.kill(&LoadSpec { checkpoint: false, ..spec_of(spec) }).await,
        };
        samples.add(run.name, sample.context(run.name)?);
        Ok(())
    }

    pub async fn sweep(&self, sweep: &Sweep, plan: &SuitePlan) -> anyhow::Result<MeasuredSweep> {
        let mut points = Vec::new();
        for (number, SweepPoint { x, label, shards, spec }) in (0..).zip(sweep.points) {
            let seed = plan.seed.wrapping_add(1_000 + number);
            let spec = LoadSpec { seconds: plan.sweep_seconds, seed, ..spec.clone() };
            let sample =
                self.subject(*shards).measure(&spec).await.with_context(|| format!("{}: {label}", sweep.name))?;
            points.push(MeasuredPoint { x: *x, label, sample });
        }
        Ok(MeasuredSweep { name: sweep.name, points })
    }

    fn subject(&self, shards: Shards) -> &MeasuredCluster {
        match shards {
            Shards::One => &self.one,
            Shards::Two => &self.two,
            Shards::Secured => &self.secured,
        }
    }

    async fn ceiling(&self, seconds: u32, seed: u64) -> anyhow::Result<Sample> {
        let dsn = self.function_dsn()?;
        let duration = Duration::from_secs(u64::from(seconds));
        let before = self.function_cluster.spent()?;
        let (measured, ()) =
            tokio::try_join!(ceiling::measure(&dsn, duration, seed), self.checkpoint_within(seconds))?;
        let cpu_us_per_transfer = self.function_cluster.spent()?.per_transfer(&before, measured.transfers as f64);
        Ok(Sample {
            transfers_per_s: measured.transfers_per_s,
            cpu_us_per_transfer,
            disk_bytes_per_transfer: Some(measured.disk_bytes_per_transfer),
            ..Sample::default()
        })
    }

    async fn of_function<T>(
        &self,
        seconds: u32,
        measure: impl Future<Output = anyhow::Result<T>>,
        sample: impl FnOnce(T) -> Sample,
    ) -> anyhow::Result<Sample> {
        let before = self.function_cluster.spent()?;
        let (measured, ()) = tokio::try_join!(measure, self.checkpoint_within(seconds))?;
        let mut sample = sample(measured);
        let transfers = sample.transfers_per_s * f64::from(seconds);
        sample.cpu_us_per_transfer = self.function_cluster.spent()?.per_transfer(&before, transfers);
        Ok(sample)
    }

    /// Writes a checkpoint half way through a run that is long enough. All measured systems get the same checkpoint.
    async fn checkpoint_within(&self, seconds: u32) -> anyhow::Result<()> {
        if seconds >= CHECKPOINT_FROM_S {
            tokio::time::sleep(Duration::from_secs(u64::from(seconds)) / 2).await;
            self.function_cluster.checkpoint().await?;
        }
        Ok(())
    }

    /// Kills the node with SIGKILL a third into the load. The supervisor starts it again.
    async fn kill(&self, spec: &LoadSpec) -> anyhow::Result<Sample> {
        let kill = async {
            tokio::time::sleep(Duration::from_secs(u64::from(spec.seconds)) / 3).await;
            for node in self.one.cluster.processes(ProcessRole::Node)? {
                node.signal(Signal::KILL)?;
            }
            Ok(())
        };
        let (sample, ()) = tokio::try_join!(self.one.measure(spec), kill)?;
        Ok(sample)
    }
}

/// Runs shorter than this have no checkpoint.
const CHECKPOINT_FROM_S: u32 = 8;

impl Experiment for SuitePlan {
    type Report = SuiteReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        self.seed = seed;
        output::note(&format!("seed {seed}, {} rounds, main runs of {} s", self.rounds, self.seconds));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<SuiteReport> {
        ensure!(self.rounds > 0, "at least one round");
        let wanted = |name: &str| self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()));
        let round: Vec<&SuiteRun> = ROUND.iter().filter(|run| wanted(run.name)).collect();
        let at_last: Vec<&SuiteRun> = AT_LAST.iter().filter(|run| wanted(run.name)).collect();
        let sweeps: Vec<_> = SWEEPS.iter().filter(|sweep| wanted(sweep.name)).collect();
        let nothing = round.is_empty() && at_last.is_empty() && sweeps.is_empty() && !wanted(BY_SHARDS);
        ensure!(!nothing, "no run has such a name");

        let stage = SuiteClusters::set_up(folder).await?;
        let settings = settings(&stage.function_dsn()?).await?;
        let (mut by_shards, mut clean) = (ByShards::default(), true);
        let steps = self.rounds as usize * round.len() + at_last.len() + sweeps.len();
        let mut samples = Samples::default();
        let mut drawn = Vec::new();
        output::counted("runs", steps, async |bar| {
            for number in 0..self.rounds {
                // Every round draws other ids and accounts.
                let seed = self.seed.wrapping_add(u64::from(number));
                for run in &round {
                    bar.set_message(run.name);
                    stage.measure(run, &self, seed, &mut samples).await?;
                    bar.inc(1);
                }
            }
            for sweep in &sweeps {
                bar.set_message(sweep.name);
                drawn.push(stage.sweep(sweep, &self).await?);
                bar.inc(1);
            }
            if wanted(BY_SHARDS) {
                let seconds = self.sweep_seconds.max(LEAST_SECONDS_BY_SHARDS);
                let points = scaling::ScalingPlan::short(seconds, self.seed);
                let (limit, points, balanced) = scaling::limited(&points, folder, bar).await?;
                by_shards = ByShards { limit, points };
                clean &= balanced;
            }
            for run in &at_last {
                bar.set_message(run.name);
                stage.measure(run, &self, self.seed.wrapping_sub(1), &mut samples).await?;
                bar.inc(1);
            }
            anyhow::Ok(())
        })
        .await?;
        clean &= stage.is_clean().await?;
        Ok(SuiteReport::new(self, settings, samples, drawn, by_shards, clean))
    }
}
