//! `shardctl bench suite`: Shardledger, a PL/pgSQL transfer function and a bare append on the same machine, the same PostgreSQL
//! and the same settings, in turn, several rounds. This is what `make bench` runs.
//!
//! [`runs`] lists what is measured, [`stage`] measures it, [`report`] holds it against the bars and draws it.

mod report;
mod runs;
mod stage;

use std::path::Path;

use anyhow::ensure;

use crate::progress;

pub use report::{RUN_HEADER, Report};
use runs::{AT_LAST, ROUND, Run, SWEEPS};
use stage::Stage;

use super::{
    baseline::settings,
    figures::Samples,
    scaling::{self, Point},
};

/// The plot over the number of shards.
const BY_SHARDS: &str = "by_shards";
/// Shorter points would hold too few of the batches that a limited shard takes.
const LEAST_SECONDS_BY_SHARDS: u32 = 5;

/// Points over the number of shards, each with the same small part of the machine.
#[derive(Debug, Default, serde::Serialize)]
pub struct ByShards {
    /// How each shard was limited.
    pub limit: String,
    pub points: Vec<Point>,
}

/// How long, how often, and from which seed.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Plan {
    pub rounds: u32,
    /// Of each of the main runs.
    pub seconds: u32,
    /// Of each point of a plot.
    pub sweep_seconds: u32,
    pub seed: u64,
}

/// Measures everything whose name contains one of `only`, in clusters below `folder` that are gone afterwards.
pub async fn run(plan: Plan, only: &[String], folder: &Path) -> anyhow::Result<Report> {
    ensure!(plan.rounds > 0, "at least one round");
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    let round: Vec<&Run> = ROUND.iter().filter(|run| wanted(run.name)).collect();
    let at_last: Vec<&Run> = AT_LAST.iter().filter(|run| wanted(run.name)).collect();
    let sweeps: Vec<_> = SWEEPS.iter().filter(|sweep| wanted(sweep.name)).collect();
    let nothing = round.is_empty() && at_last.is_empty() && sweeps.is_empty() && !wanted(BY_SHARDS);
    ensure!(!nothing, "no run has such a name");

    let stage = Stage::set_up(folder).await?;
    let settings = settings(&stage.function_dsn()?).await?;
    let (mut by_shards, mut clean) = (ByShards::default(), true);
    let steps = plan.rounds as usize * round.len() + at_last.len() + sweeps.len();
    let mut samples = Samples::default();
    let mut drawn = Vec::new();
    progress::counted("runs", steps, async |bar| {
        for number in 0..plan.rounds {
            // Every round has ids and accounts of its own.
            let seed = plan.seed.wrapping_add(u64::from(number));
            for run in &round {
                bar.set_message(run.name);
                stage.measure(run, plan, seed, &mut samples).await?;
                bar.inc(1);
            }
        }
        for sweep in &sweeps {
            bar.set_message(sweep.name);
            drawn.push(stage.sweep(sweep, plan).await?);
            bar.inc(1);
        }
        if wanted(BY_SHARDS) {
            let seconds = plan.sweep_seconds.max(LEAST_SECONDS_BY_SHARDS);
            let points = scaling::Plan::short(seconds, plan.seed);
            let (limit, points, balanced) = scaling::limited(&points, folder, bar).await?;
            by_shards = ByShards { limit, points };
            clean &= balanced;
        }
        for run in &at_last {
            bar.set_message(run.name);
            stage.measure(run, plan, plan.seed.wrapping_sub(1), &mut samples).await?;
            bar.inc(1);
        }
        anyhow::Ok(())
    })
    .await?;
    clean &= stage.is_clean().await?;
    Ok(Report::new(plan, settings, samples, drawn, by_shards, clean))
}
