//! `shardctl bench suite`: Shardledger and a PL/pgSQL transfer function on the same machine, the same PostgreSQL and the
//! same settings, in turn, several rounds.
//!
//! [`own_cluster`] brings up what is measured, [`baseline`] is what it is compared with, [`report`] does the sums.

mod baseline;
mod cpu;
mod own_cluster;
mod report;

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;

pub(super) use baseline::connect;
pub use cpu::PerTransfer;
pub(super) use own_cluster::OwnCluster;
pub use report::{Plan, Report, Sample, median};

use super::{
    Bench, Measurement, WARM_UP, accounts,
    connection::Address,
    driver::Load,
    workload::{Locality, Workload},
};
use crate::{
    http_client::HttpClient,
    progress,
    verify::{self, Target},
};
use baseline::{Baseline, Script};
use report::Samples;

const ACCOUNTS: usize = 100_000;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One thing that is measured once a round.
struct Run {
    /// Its name in the report.
    name: &'static str,
    what: What,
}

enum What {
    /// The PL/pgSQL function, with so many clients.
    Function(Script, u16),
    /// Ours, on one shard or two.
    Transfers { shards: Shards, workload: Workload, locality: Locality, batch: usize, connections: usize },
}

#[derive(Clone, Copy)]
enum Shards {
    One,
    Two,
}

/// A round: ours and the other in turn. pgbench runs with few clients and with many (a server of a cluster takes 64
/// connections, its node's among them); the better of the two counts for it.
const ROUND: [Run; 9] = [
    Run { name: "function_uniform_16", what: What::Function(Script::Uniform, 16) },
    ours("batch_uniform", Shards::One, Workload::Uniform, Locality::Any, 1_000, 8),
    Run { name: "function_uniform_48", what: What::Function(Script::Uniform, 48) },
    ours("single_uniform", Shards::One, Workload::Uniform, Locality::Any, 1, 64),
    Run { name: "function_hot_16", what: What::Function(Script::Hot, 16) },
    ours("batch_hot", Shards::One, Workload::Hot, Locality::Any, 1_000, 8),
    Run { name: "function_hot_48", what: What::Function(Script::Hot, 48) },
    ours("two_shards_local", Shards::Two, Workload::Uniform, Locality::Local, 1_000, 8),
    ours("two_shards_cross", Shards::Two, Workload::Cross, Locality::Cross, 1_000, 8),
];

const fn ours(
    name: &'static str,
    shards: Shards,
    workload: Workload,
    locality: Locality,
    batch: usize,
    connections: usize,
) -> Run {
    Run { name, what: What::Transfers { shards, workload, locality, batch, connections } }
}

/// What a round runs against.
struct Stage {
    one: Ours,
    two: Ours,
    function: Baseline,
    function_cluster: OwnCluster,
}

/// A cluster of ours, its accounts open.
struct Ours {
    cluster: OwnCluster,
    router: Address,
    /// The shard of each account.
    homes: Vec<u16>,
}

/// Measures everything, in clusters below `folder` that are gone afterwards.
pub async fn run(plan: Plan, folder: &Path) -> anyhow::Result<Report> {
    ensure!(plan.rounds > 0, "at least one round");
    let stage = Stage::set_up(folder).await?;
    let settings = stage.function.settings().await?;
    let runs = plan.rounds as usize * ROUND.len();
    let samples = progress::counted("runs", runs, async |bar| stage.measure(plan, bar).await).await?;
    let clean = stage.verify().await?;
    Ok(Report::new(plan, settings, samples, clean))
}

impl Stage {
    async fn set_up(folder: &Path) -> anyhow::Result<Self> {
        let one = Ours::set_up(folder, "one-shard", 1).await?;
        let two = Ours::set_up(folder, "two-shards", 2).await?;
        // A server of its own: what ours has written must not weigh on the function.
        let function_cluster = OwnCluster::start(folder.join("function"), 1, 1)?;
        let databases = function_cluster.databases()?;
        let dsn = &databases.first().context("a cluster without shards")?.dsn;
        let function = Baseline::prepare(dsn, &function_cluster.description.postgres.bin_dir, folder).await?;
        Ok(Self { one, two, function, function_cluster })
    }

    async fn measure(&self, plan: Plan, bar: &ProgressBar) -> anyhow::Result<Samples> {
        let mut samples = Samples::default();
        for round in 0..plan.rounds {
            // Every round has ids and accounts of its own.
            let seed = plan.seed.wrapping_add(u64::from(round));
            for run in &ROUND {
                bar.set_message(run.name);
                let sample = self.measure_one(&run.what, plan.seconds, seed).await.context(run.name)?;
                samples.entry(run.name.to_owned()).or_default().push(sample);
                bar.inc(1);
            }
        }
        Ok(samples)
    }

    async fn measure_one(&self, what: &What, seconds: u32, seed: u64) -> anyhow::Result<Sample> {
        let (cluster, warm_up) = match what {
            What::Function(..) => (&self.function_cluster, Duration::ZERO),
            What::Transfers { shards, .. } => (&self.ours(*shards).cluster, WARM_UP),
        };
        let before = cluster.spent()?;
        let (transfers_per_s, ours) = self.load(what, seconds, warm_up, seed).await?;
        // The processors worked during the warm-up too, for transfers that no rate counts.
        let transfers = transfers_per_s * (f64::from(seconds) + warm_up.as_secs_f64());
        let cpu_us_per_transfer = cluster.spent()?.per_transfer(&before, transfers);
        Ok(Sample { transfers_per_s, cpu_us_per_transfer, ours })
    }

    async fn load(
        &self,
        what: &What,
        seconds: u32,
        warm_up: Duration,
        seed: u64,
    ) -> anyhow::Result<(f64, Option<Measurement>)> {
        match *what {
            What::Function(script, clients) => {
                Ok((self.function.measure(script, clients, seconds, seed).await?, None))
            }
            What::Transfers { shards, workload, locality, batch, connections } => {
                let ours = self.ours(shards);
                let duration = Duration::from_secs(u64::from(seconds));
                let load =
                    Load { warm_up, ..Load::closed(vec![ours.router.clone()], connections, batch, duration, seed) };
                let measured = Bench { workload, locality, homes: ours.homes.clone(), load }.run().await?;
                Ok((measured.transfers_per_s, Some(measured)))
            }
        }
    }

    fn ours(&self, shards: Shards) -> &Ours {
        match shards {
            Shards::One => &self.one,
            Shards::Two => &self.two,
        }
    }

    /// Numbers of a ledger that does not balance are worth nothing.
    async fn verify(&self) -> anyhow::Result<bool> {
        let one = verify::verify(&self.one.databases()?).await?;
        let two = verify::verify(&self.two.databases()?).await?;
        Ok(one.is_clean() && two.is_clean())
    }
}

impl Ours {
    async fn set_up(folder: &Path, name: &str, shards: u16) -> anyhow::Result<Self> {
        let cluster = OwnCluster::start(folder.join(name), shards, 1)?;
        let place = cluster.description.routers.first().context("a cluster without routers")?;
        let router = Address::parse(&place.url())?;
        let map = HttpClient::new(ANSWER_TIMEOUT).get(&format!("{}/admin/shard-map", place.admin_url())).await?;
        let homes = accounts::homes(&accounts::slot_owners(&map)?, ACCOUNTS);
        accounts::open(&router, ACCOUNTS).await?;
        Ok(Self { cluster, router, homes })
    }

    fn databases(&self) -> anyhow::Result<Vec<Target>> {
        self.cluster.databases()
    }
}
