//! The clusters of the suite, and how each of its runs is measured.

use std::{path::Path, time::Duration};

use anyhow::Context;
use rustix::process::Signal;
use serde::Serialize;

use super::{
    Plan,
    runs::{Point, Run, Shards, Sweep, What},
};
use crate::{
    bench::{
        baseline::Baseline,
        ceiling::{self, ACCOUNTS},
        figures::Samples,
        own_cluster::OwnCluster,
        subject::{Sample, Spec, Subject},
    },
    cluster::member::Role,
};

/// What a round runs against.
pub struct Stage {
    one: Subject,
    two: Subject,
    secured: Subject,
    function: Baseline,
    function_cluster: OwnCluster,
}

/// A plot's points, measured.
#[derive(Debug, Clone, Serialize)]
pub struct Drawn {
    pub name: &'static str,
    pub points: Vec<DrawnPoint>,
}

#[derive(Debug, Clone, Serialize)]
pub struct DrawnPoint {
    pub x: f64,
    pub label: &'static str,
    pub sample: Sample,
}

impl Stage {
    pub async fn set_up(folder: &Path) -> anyhow::Result<Self> {
        let one = Subject::start(folder, "one-shard", 1, 1, ACCOUNTS).await?;
        let two = Subject::start(folder, "two-shards", 2, 2, ACCOUNTS).await?;
        let secured = Subject::start_secured(folder, "secured", 1, ACCOUNTS).await?;
        // A server of its own: what ours has written must not weigh on the function.
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

    pub async fn measure(&self, run: &Run, plan: Plan, seed: u64, samples: &mut Samples) -> anyhow::Result<()> {
        let seconds = ((f64::from(plan.seconds) * run.share).round() as u32).max(1);
        let spec_of = |spec: &Spec| Spec { seconds, seed, checkpoint: seconds >= CHECKPOINT_FROM_S, ..spec.clone() };
        let sample = match &run.what {
            What::Ceiling => self.ceiling(seconds, seed).await,
            What::Function(script, clients) => {
                let measure = self.function.measure(*script, *clients, seconds, seed);
                self.of_function(seconds, measure, |rate| Sample { transfers_per_s: rate, ..Sample::default() }).await
            }
            What::FunctionLatency => {
                let measure = self.function.measure_latency(seconds, seed);
                self.of_function(seconds, measure, |(rate, latency)| Sample {
                    transfers_per_s: rate,
                    latency_us: Some(latency),
                    ..Sample::default()
                })
                .await
            }
            What::Ours(shards, spec) => self.subject(*shards).measure(&spec_of(spec)).await,
            What::AtHalfTheRateOf(peak, shards, spec) => {
                let Some(rate) = samples.0.get(*peak).and_then(|samples| samples.last()) else { return Ok(()) };
                self.subject(*shards).measure(&spec_of(spec).at_rate(rate.transfers_per_s / 2.0)).await
            }
            What::Kill(spec) => self.kill(&Spec { checkpoint: false, ..spec_of(spec) }).await,
        };
        samples.add(run.name, sample.context(run.name)?);
        Ok(())
    }

    pub async fn sweep(&self, sweep: &Sweep, plan: Plan) -> anyhow::Result<Drawn> {
        let mut points = Vec::new();
        for (number, Point { x, label, shards, spec }) in (0..).zip(sweep.points) {
            let seed = plan.seed.wrapping_add(1_000 + number);
            let spec = Spec { seconds: plan.sweep_seconds, seed, ..spec.clone() };
            let sample =
                self.subject(*shards).measure(&spec).await.with_context(|| format!("{}: {label}", sweep.name))?;
            points.push(DrawnPoint { x: *x, label, sample });
        }
        Ok(Drawn { name: sweep.name, points })
    }

    fn subject(&self, shards: Shards) -> &Subject {
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

    /// A checkpoint half way through a run that is long enough: it weighs on all sides alike.
    async fn checkpoint_within(&self, seconds: u32) -> anyhow::Result<()> {
        if seconds >= CHECKPOINT_FROM_S {
            tokio::time::sleep(Duration::from_secs(u64::from(seconds)) / 2).await;
            self.function_cluster.checkpoint().await?;
        }
        Ok(())
    }

    /// Kills the node with SIGKILL a third into the load. The supervisor starts it again.
    async fn kill(&self, spec: &Spec) -> anyhow::Result<Sample> {
        let kill = async {
            tokio::time::sleep(Duration::from_secs(u64::from(spec.seconds)) / 3).await;
            for node in self.one.cluster.processes(Role::Node)? {
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
