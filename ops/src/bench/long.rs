//! `shardctl bench long` runs the measurements that take too long for `make bench`: a shard with 10,000,000 accounts, a shard with 20,000,000
//! transfers, and a shard beside a transaction that holds a snapshot for minutes.

use std::{path::Path, time::Duration};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Serialize, Serializer};
use telemetry::clock;
use tokio::time::{Instant, sleep};

use super::{
    Experiment,
    baseline::{Baseline, Script},
    ceiling::ACCOUNTS,
    chart::{Axis, Chart, Series},
    figures::{Figure, Promise, Samples, add_bars, print_figures, ratio},
    machine::Machine,
    own_cluster::OwnCluster,
    page::{Mark, Page},
    print_verdict,
    prototype::hold_snapshot,
    request::Ids,
    subject::{LoadSpec, MeasuredCluster, Sample},
    tally::Window,
    workload::Workload,
};
use crate::output;

/// Exit code 1: a figure misses its bar. 3: a ledger that was measured does not balance.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct LongPlan {
    /// Run only this part; may be repeated
    #[arg(long, value_enum, value_name = "PART")]
    #[serde(rename = "parts", serialize_with = "wanted_parts")]
    only: Vec<Part>,
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Accounts of the shard with many accounts
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(100_001..))]
    #[serde(rename = "many_accounts")]
    accounts: u32,
    /// Transfers in the shard with a history
    #[arg(long, value_name = "N", default_value_t = 20_000_000)]
    #[serde(rename = "history")]
    transfers: u32,
    /// Seconds for which the snapshot is held
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u32).range(2..))]
    snapshot_seconds: u32,
    #[arg(skip)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Uniform transfers among many accounts, beside the function over as many
    Accounts,
    /// A shard with many transfers, ids in time order and random
    History,
    /// A shard beside a transaction that holds a snapshot
    Snapshot,
}

impl Part {
    fn is_in(self, only: &[Self]) -> bool {
        only.is_empty() || only.contains(&self)
    }
}

/// The report says for each part whether it was measured.
fn wanted_parts<S: Serializer>(only: &[Part], serializer: S) -> Result<S::Ok, S::Error> {
    let parts = [("accounts", Part::Accounts), ("history", Part::History), ("snapshot", Part::Snapshot)];
    serializer.collect_map(parts.map(|(name, part)| (name, part.is_in(only))))
}

/// After this the numbers before and under the snapshot are compared.
const SETTLE: Duration = Duration::from_secs(2);

/// The measurements of the parts.
#[derive(Debug, Default)]
struct PartMeasurements {
    samples: Samples,
    under_snapshot: Vec<Window>,
    clean: bool,
}

impl Experiment for LongPlan {
    type Report = LongReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        self.seed = seed;
        output::note(&format!("seed {seed}"));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<LongReport> {
        let mut measured = PartMeasurements { clean: true, ..PartMeasurements::default() };
        if Part::Accounts.is_in(&self.only) {
            many_accounts(&self, folder, &mut measured).await.context("many accounts")?;
        }
        if Part::History.is_in(&self.only) {
            for (ids, name) in [(Ids::TimeOrdered, "time_ordered"), (Ids::Random, "random")] {
                history(&self, folder, ids, name, &mut measured)
                    .await
                    .with_context(|| format!("history, {name} ids"))?;
            }
        }
        if Part::Snapshot.is_in(&self.only) {
            snapshot(&self, folder, &mut measured).await.context("snapshot")?;
        }
        Ok(LongReport::new(self, measured.samples, measured.under_snapshot, measured.clean))
    }
}

async fn many_accounts(plan: &LongPlan, folder: &Path, measured: &mut PartMeasurements) -> anyhow::Result<()> {
    output::note(&format!("{} accounts: the function", plan.accounts));
    {
        let cluster = OwnCluster::start(folder.join("function"), 1, 1)?;
        let dsn = cluster.databases()?.into_iter().next().context("a cluster without shards")?.dsn;
        let mut function = Baseline::prepare(&dsn, &cluster.description.postgres.bin_dir, folder).await?;
        function.grow(plan.accounts as usize).await?;
        for (clients, name) in [(16, "function_many_accounts_16"), (48, "function_many_accounts_48")] {
            let rate = function.measure(Script::Uniform, clients, plan.seconds, plan.seed).await?;
            measured.samples.add(name, Sample { transfers_per_s: rate, ..Sample::default() });
        }
    }
    output::note("the same with Shardledger");
    let subject = MeasuredCluster::start(folder, "many-accounts", 1, 1, plan.accounts as usize).await?;
    subject.cluster.checkpoint().await?;
    let spec = LoadSpec { seconds: plan.seconds, seed: plan.seed, checkpoint: true, ..LoadSpec::BATCHES };
    measured.samples.add("batch_many_accounts", subject.measure(&spec).await?);
    measured.clean &= subject.cluster.is_clean().await?;
    Ok(())
}

/// Measures an empty shard, fills it, and measures it again.
async fn history(
    plan: &LongPlan,
    folder: &Path,
    ids: Ids,
    name: &str,
    measured: &mut PartMeasurements,
) -> anyhow::Result<()> {
    output::note(&format!("{} transfers with {} ids", plan.transfers, name.replace('_', "-")));
    let subject = MeasuredCluster::start(folder, &format!("history-{name}"), 1, 1, ACCOUNTS).await?;
    let spec = LoadSpec { ids, seconds: plan.seconds, seed: plan.seed, checkpoint: true, ..LoadSpec::BATCHES };
    let empty = subject.measure(&spec).await?;
    let transfers_in_all = |sample: &Sample| sample.ours.as_ref().map_or(0, |ours| ours.transfers_in_all);
    let mut written = transfers_in_all(&empty) as usize;
    measured.samples.add(&format!("empty_{name}"), empty);
    output::counted("transfers", plan.transfers as usize, async |bar| {
        for seed in 1.. {
            bar.set_position(written as u64);
            if written >= plan.transfers as usize {
                break;
            }
            let fill =
                LoadSpec { checkpoint: false, seconds: FILL_S, seed: plan.seed.wrapping_add(seed), ..spec.clone() };
            let filled = transfers_in_all(&subject.measure(&fill).await?);
            anyhow::ensure!(filled > 0, "the shard takes no transfers any more");
            written += filled as usize;
        }
        Ok(())
    })
    .await?;
    subject.cluster.checkpoint().await?;
    sleep(SETTLE).await;
    let full = LoadSpec { seed: plan.seed.wrapping_sub(1), ..spec };
    measured.samples.add(&format!("full_{name}"), subject.measure(&full).await?);
    measured.clean &= subject.cluster.is_clean().await?;
    Ok(())
}

/// A shard is filled in pieces of this length.
const FILL_S: u32 = 20;

/// Hot accounts in small commits, before a snapshot is opened and while it is held: the versions of hot rows are what an open
/// snapshot makes expensive.
async fn snapshot(plan: &LongPlan, folder: &Path, measured: &mut PartMeasurements) -> anyhow::Result<()> {
    output::note(&format!("a snapshot held for {} s", plan.snapshot_seconds));
    let subject = MeasuredCluster::start(folder, "snapshot", 1, 1, ACCOUNTS).await?;
    let spec = LoadSpec { workload: Workload::Hot, seconds: plan.seconds, seed: plan.seed, ..LoadSpec::SINGLES };
    measured.samples.add("before_snapshot", subject.measure(&spec).await?);
    let dsn = subject.cluster.databases()?.into_iter().next().context("a cluster without shards")?.dsn;
    let mut holder = hold_snapshot(&dsn).await?;
    let begin = Instant::now();
    let window = Some(Duration::from_secs(10));
    let held = LoadSpec {
        seconds: plan.snapshot_seconds.saturating_sub(plan.seconds).max(1),
        window,
        seed: plan.seed.wrapping_add(1),
        ..spec.clone()
    };
    let long = subject.measure(&held).await?;
    measured.under_snapshot = long.ours.as_ref().map(|ours| ours.windows.clone()).unwrap_or_default();
    measured.samples.add("under_snapshot", long);
    // The comparison uses the end of the time, because the cost grows while the snapshot is held.
    let last = LoadSpec { seed: plan.seed.wrapping_add(2), ..spec };
    measured.samples.add("end_of_snapshot", subject.measure(&last).await?);
    output::note(&format!("the snapshot was held for {:.0} s", begin.elapsed().as_secs_f64()));
    holder.run("COMMIT", None).await.context("the transaction that holds the snapshot ended early")?;
    holder.close().await;
    measured.clean &= subject.cluster.is_clean().await?;
    Ok(())
}

#[derive(Debug, Serialize)]
pub struct LongReport {
    pub plan: LongPlan,
    pub measured_at: String,
    pub machine: Machine,
    pub verified: bool,
    pub figures: Vec<Figure>,
    pub samples: Samples,
    /// The windows of the time during which the snapshot was held.
    pub under_snapshot: Vec<Window>,
}

impl LongReport {
    pub fn new(plan: LongPlan, samples: Samples, under_snapshot: Vec<Window>, verified: bool) -> Self {
        Self {
            measured_at: clock::format_rfc3339(clock::now_us()),
            machine: Machine::this(),
            verified,
            figures: figures(&plan, &samples),
            plan,
            samples,
            under_snapshot,
        }
    }

    pub fn run_rows(&self) -> Vec<[String; 6]> {
        let value = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
        let ms = |us: Option<f64>| us.map_or_else(String::new, |us| format!("{:.2}", us / 1e3));
        let row = |name: &String| {
            [
                name.clone(),
                self.samples.rate(name).map_or_else(String::new, |rate| format!("{rate:.0}")),
                value(self.samples.cpu(name, |cpu| cpu.nodes)),
                value(self.samples.cpu(name, |cpu| cpu.postgres)),
                ms(self.samples.latency(name, |latency| latency.p99)),
                self.samples.disk(name).map_or_else(String::new, |bytes| format!("{bytes:.0}")),
            ]
        };
        self.samples.0.keys().map(row).collect()
    }
}

pub const RUN_HEADER: [&str; 6] = ["run", "transfers/s", "node µs", "PostgreSQL µs", "p99 ms", "disk B"];

fn figures(plan: &LongPlan, samples: &Samples) -> Vec<Figure> {
    let least = |bar, aim| Promise::AtLeast { bar, aim };
    let of = |one: &str, other: &str| ratio(samples.rate(one), samples.rate(other));
    let mut figures = Vec::new();
    if Part::Accounts.is_in(&plan.only) {
        let function = samples.best_rate(&["function_many_accounts_16", "function_many_accounts_48"]);
        let claim = format!("{} accounts, uniform ÷ function over as many", plan.accounts);
        figures.push(Figure::new(&claim, "", least(3.0, 6.0), ratio(samples.rate("batch_many_accounts"), function)));
    }
    if Part::History.is_in(&plan.only) {
        let claim = |ids: &str| format!("shard with {} transfers ÷ empty, {ids}", plan.transfers);
        let in_order = of("full_time_ordered", "empty_time_ordered");
        figures.push(Figure::new(&claim("ids in time order"), "", least(0.85, 0.95), in_order));
        figures.push(Figure::new(&claim("random ids"), "", least(0.5, 0.7), of("full_random", "empty_random")));
    }
    if Part::Snapshot.is_in(&plan.only) {
        let claim = format!("beside a snapshot held for {} s, at its end ÷ before", plan.snapshot_seconds);
        figures.push(Figure::new(&claim, "", least(0.9, 0.98), of("end_of_snapshot", "before_snapshot")));
    }
    figures
}

impl super::ExperimentReport for LongReport {
    fn is_right(&self) -> bool {
        self.verified
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn print(&self) -> anyhow::Result<()> {
        output::table(RUN_HEADER, &self.run_rows())?;
        output::data("")?;
        print_figures(&self.figures)?;
        print_verdict(self.verified)
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: long measurements");
        page.paragraph(&format!("{}. {}. {} s a measurement.", self.measured_at, self.machine, self.plan.seconds));
        add_bars(&mut page, &self.figures);
        page.heading("Runs");
        page.table(RUN_HEADER, self.run_rows().into_iter().map(|cells| (Mark::Plain, cells)));
        if !self.under_snapshot.is_empty() {
            page.heading("While a snapshot is held");
            let rate = self.under_snapshot.iter().map(|window| (window.from_s, window.transfers_per_s));
            let p99 = self.under_snapshot.iter().map(|window| (window.from_s, window.latency_us.p99 as f64 / 1e3));
            let chart = |title: &str, y_label: &str, series: Series| {
                Chart {
                    title: title.to_owned(),
                    x_label: "seconds since the snapshot was opened".to_owned(),
                    y_label: y_label.to_owned(),
                    x_axis: Axis::Linear,
                    series: vec![series],
                }
                .svg()
            };
            page.charts(&[
                chart("Throughput", "transfers/s", Series::new("transfers/s", rate)),
                chart("Latency", "ms", Series::new("p99", p99)),
            ]);
        }
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::ExperimentReport as _;

    #[test]
    fn only_the_parts_that_ran_have_figures() {
        let only = vec![Part::History];
        let plan = LongPlan { only, seconds: 1, accounts: 10, transfers: 20, snapshot_seconds: 1, seed: 1 };
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["parts"], serde_json::json!({"accounts": false, "history": true, "snapshot": false}));
        let mut samples = Samples::default();
        for (name, transfers_per_s) in [("empty_time_ordered", 100.0), ("full_time_ordered", 90.0)] {
            samples.add(name, Sample { transfers_per_s, ..Sample::default() });
        }
        let report = LongReport::new(plan, samples, Vec::new(), true);
        let values: Vec<Option<f64>> = report.figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [Some(0.9), None]);
        assert!(report.page().contains("full_time_ordered"));
    }
}
