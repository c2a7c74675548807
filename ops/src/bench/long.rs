//! `shardctl bench long`: what takes too long for `make bench`. A shard with 10,000,000 accounts, a shard with 20,000,000
//! transfers in it, and a shard beside a transaction that holds a snapshot for minutes.

mod report;

use std::{path::Path, time::Duration};

use anyhow::Context;
use serde::Serialize;
use tokio::time::{Instant, sleep};

pub use report::{RUN_HEADER, Report};

use super::{
    Window,
    baseline::{Baseline, Script},
    ceiling::ACCOUNTS,
    figures::Samples,
    own_cluster::OwnCluster,
    prototype::hold_snapshot,
    request::Ids,
    subject::{Sample, Spec, Subject},
    workload::Workload,
};
use crate::{output, progress};

/// How much, how long, and from which seed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Plan {
    pub parts: Parts,
    /// Of each measurement.
    pub seconds: u32,
    pub many_accounts: usize,
    /// Transfers in a shard before it is measured.
    pub history: usize,
    pub snapshot_seconds: u32,
    pub seed: u64,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parts {
    pub accounts: bool,
    pub history: bool,
    pub snapshot: bool,
}

/// After this the numbers before and under the snapshot are compared.
const SETTLE: Duration = Duration::from_secs(2);

/// What the parts measured.
#[derive(Debug, Default)]
struct Measured {
    samples: Samples,
    under_snapshot: Vec<Window>,
    clean: bool,
}

/// Measures in clusters below `folder` that are gone afterwards.
pub async fn run(plan: Plan, folder: &Path) -> anyhow::Result<Report> {
    let mut measured = Measured { clean: true, ..Measured::default() };
    if plan.parts.accounts {
        many_accounts(plan, folder, &mut measured).await.context("many accounts")?;
    }
    if plan.parts.history {
        for (ids, name) in [(Ids::TimeOrdered, "time_ordered"), (Ids::Random, "random")] {
            history(plan, folder, ids, name, &mut measured).await.with_context(|| format!("history, {name} ids"))?;
        }
    }
    if plan.parts.snapshot {
        snapshot(plan, folder, &mut measured).await.context("snapshot")?;
    }
    Ok(Report::new(plan, measured.samples, measured.under_snapshot, measured.clean))
}

async fn many_accounts(plan: Plan, folder: &Path, measured: &mut Measured) -> anyhow::Result<()> {
    output::note(&format!("{} accounts: the function", plan.many_accounts));
    {
        let cluster = OwnCluster::start(folder.join("function"), 1, 1)?;
        let dsn = cluster.databases()?.into_iter().next().context("a cluster without shards")?.dsn;
        let mut function = Baseline::prepare(&dsn, &cluster.description.postgres.bin_dir, folder).await?;
        function.grow(plan.many_accounts).await?;
        for (clients, name) in [(16, "function_many_accounts_16"), (48, "function_many_accounts_48")] {
            let rate = function.measure(Script::Uniform, clients, plan.seconds, plan.seed).await?;
            measured.samples.add(name, Sample { transfers_per_s: rate, ..Sample::default() });
        }
    }
    output::note("the same with Shardledger");
    let subject = Subject::start(folder, "many-accounts", 1, 1, plan.many_accounts).await?;
    subject.cluster.checkpoint().await?;
    let spec = Spec { seconds: plan.seconds, seed: plan.seed, checkpoint: true, ..Spec::BATCHES };
    measured.samples.add("batch_many_accounts", subject.measure(&spec).await?);
    measured.clean &= subject.cluster.is_clean().await?;
    Ok(())
}

/// Measures an empty shard, fills it, and measures it again.
async fn history(plan: Plan, folder: &Path, ids: Ids, name: &str, measured: &mut Measured) -> anyhow::Result<()> {
    output::note(&format!("{} transfers with {} ids", plan.history, name.replace('_', "-")));
    let subject = Subject::start(folder, &format!("history-{name}"), 1, 1, ACCOUNTS).await?;
    let spec = Spec { ids, seconds: plan.seconds, seed: plan.seed, checkpoint: true, ..Spec::BATCHES };
    let empty = subject.measure(&spec).await?;
    let transfers_in_all = |sample: &Sample| sample.ours.as_ref().map_or(0, |ours| ours.transfers_in_all);
    let mut written = transfers_in_all(&empty) as usize;
    measured.samples.add(&format!("empty_{name}"), empty);
    progress::counted("transfers", plan.history, async |bar| {
        for seed in 1.. {
            bar.set_position(written as u64);
            if written >= plan.history {
                break;
            }
            let fill =
                Spec { checkpoint: false, seconds: FILL_S, seed: plan.seed.wrapping_add(seed), ..spec.clone() };
            let filled = transfers_in_all(&subject.measure(&fill).await?);
            anyhow::ensure!(filled > 0, "the shard takes no transfers any more");
            written += filled as usize;
        }
        Ok(())
    })
    .await?;
    subject.cluster.checkpoint().await?;
    sleep(SETTLE).await;
    let full = Spec { seed: plan.seed.wrapping_sub(1), ..spec };
    measured.samples.add(&format!("full_{name}"), subject.measure(&full).await?);
    measured.clean &= subject.cluster.is_clean().await?;
    Ok(())
}

/// A shard is filled in pieces of this length.
const FILL_S: u32 = 20;

/// Hot accounts in small commits, before a snapshot is opened and while it is held: the versions of hot rows are what an open
/// snapshot makes expensive.
async fn snapshot(plan: Plan, folder: &Path, measured: &mut Measured) -> anyhow::Result<()> {
    output::note(&format!("a snapshot held for {} s", plan.snapshot_seconds));
    let subject = Subject::start(folder, "snapshot", 1, 1, ACCOUNTS).await?;
    let spec = Spec { workload: Workload::Hot, seconds: plan.seconds, seed: plan.seed, ..Spec::SINGLES };
    measured.samples.add("before_snapshot", subject.measure(&spec).await?);
    let dsn = subject.cluster.databases()?.into_iter().next().context("a cluster without shards")?.dsn;
    let mut holder = hold_snapshot(&dsn).await?;
    let begin = Instant::now();
    let window = Some(Duration::from_secs(10));
    let held = Spec {
        seconds: plan.snapshot_seconds.saturating_sub(plan.seconds).max(1),
        window,
        seed: plan.seed.wrapping_add(1),
        ..spec.clone()
    };
    let long = subject.measure(&held).await?;
    measured.under_snapshot = long.ours.as_ref().map(|ours| ours.windows.clone()).unwrap_or_default();
    measured.samples.add("under_snapshot", long);
    // The end of the held time is what counts: the cost grows with it.
    let last = Spec { seed: plan.seed.wrapping_add(2), ..spec };
    measured.samples.add("end_of_snapshot", subject.measure(&last).await?);
    output::note(&format!("the snapshot was held for {:.0} s", begin.elapsed().as_secs_f64()));
    holder.run("COMMIT", None).await.context("the transaction that holds the snapshot ended early")?;
    holder.close().await;
    measured.clean &= subject.cluster.is_clean().await?;
    Ok(())
}
