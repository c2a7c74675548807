//! `shardctl bench soak` keeps half of the peak for minutes or hours, with one master account, 1,000 sub-accounts, and duplicates among the
//! transfers. It reports throughput and latency by window, the memory of each process, disk usage, and the sum of all accounts over time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use telemetry::clock;
use tokio::time::{Instant, interval};

use super::{
    Experiment,
    chart::{Chart, Series},
    figures::{Figure, Promise, add_bars, median, print_figures},
    load::WARM_UP,
    machine::Machine,
    page::{Mark, Page},
    subject::{LoadSpec, MIN_OPEN_LOOP_CONNECTIONS, MeasuredCluster, Sample},
    tally::Window,
    workload::Workload,
};
use crate::{http_client::HttpClient, output};

/// Measures the peak first, and then keeps half of it, in the open loop. Exit code 1: a figure misses its bar. 3: the sum of
/// all accounts changed, or the ledger does not balance.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct SoakPlan {
    /// Minutes of the load
    #[arg(long, value_name = "M", default_value_t = 10.0)]
    minutes: f64,
    /// Seconds of a window
    #[arg(long = "window", value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    window_s: u32,
    /// Seconds of the measurement of the peak
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    peak_seconds: u32,
    /// The share of transfers that are sent a second time, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    replays: f64,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// Transfers in each request; 1 sends single transfers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    #[arg(skip)]
    seed: u64,
}

/// The master account and its sub-accounts.
const ACCOUNTS: usize = 1_001;
const SUMS: &str = "/v1/balances?prefix=bench:";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The cluster at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Moment {
    /// Seconds since the load began.
    pub at_s: f64,
    /// Bytes by process.
    pub memory: BTreeMap<String, f64>,
    /// Bytes of the tables and indexes of the ledger.
    pub disk_bytes: f64,
    /// The rows that are not folded yet. Absent if the node does not report them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfolded_rows: Option<f64>,
    /// The sum of all accounts, which must not change.
    pub sum: String,
}

#[derive(Deserialize)]
struct Sums {
    data: Vec<AssetSum>,
    partial: bool,
}

#[derive(Deserialize)]
struct AssetSum {
    posted: String,
}

impl Experiment for SoakPlan {
    type Report = SoakReport;

    fn prepare(&mut self, seed: u64) -> anyhow::Result<()> {
        let long_enough = self.minutes * 60.0 >= f64::from(3 * self.window_s);
        ensure!(long_enough && self.minutes.is_finite(), "--minutes must hold at least three windows");
        ensure!((0.0..=1.0).contains(&self.replays), "--replays must be between 0 and 1");
        self.seed = seed;
        output::note(&format!("seed {seed}, {} minutes", self.minutes));
        Ok(())
    }

    async fn measure(self, folder: &Path) -> anyhow::Result<SoakReport> {
        let subject = MeasuredCluster::start(folder, "soak", 1, 1, ACCOUNTS).await?;
        let base = LoadSpec {
            workload: Workload::Hot,
            batch: usize::from(self.batch),
            connections: usize::from(self.connections),
            replays: self.replays,
            ..LoadSpec::BATCHES
        };
        let peak = subject.measure(&LoadSpec { seconds: self.peak_seconds, seed: self.seed, ..base.clone() }).await?;
        let requests_per_s = peak.ours.as_ref().map_or(0.0, |ours| ours.requests_per_s);
        ensure!(requests_per_s > 1.0, "the peak is {requests_per_s} requests a second");
        let spec = LoadSpec {
            seconds: (self.minutes * 60.0).round().max(1.0) as u32,
            window: Some(Duration::from_secs(u64::from(self.window_s))),
            seed: self.seed.wrapping_add(1),
            ..base.at_rate(requests_per_s / 2.0)
        };
        let (sample, moments) = output::counted("seconds", spec.seconds as usize, async |bar| {
            let watch = watch(&subject, &spec, self.window_s, bar);
            tokio::try_join!(subject.measure(&spec), watch)
        })
        .await?;
        let windows: Vec<Window> = sample.ours.as_ref().map(|ours| ours.windows.clone()).unwrap_or_default();
        let clean = subject.cluster.is_clean().await?;
        Ok(SoakReport::new(self, &peak, &sample, windows, moments, clean))
    }
}

/// Records the state of the cluster at the end of each window.
async fn watch(
    subject: &MeasuredCluster,
    spec: &LoadSpec,
    window_s: u32,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<Vec<Moment>> {
    let client = HttpClient::new(ANSWER_TIMEOUT);
    let place = subject.cluster.description.routers.first().context("a cluster without routers")?;
    let url = format!("{}{SUMS}", place.url());
    let begin = Instant::now();
    let mut moments = Vec::new();
    let mut ticks = interval(Duration::from_secs(u64::from(window_s)));
    ticks.tick().await;
    let warm_up_s = WARM_UP.as_secs_f64();
    // After the end of the load, the processes are at rest.
    while begin.elapsed().as_secs_f64() + f64::from(window_s) < f64::from(spec.seconds) + warm_up_s {
        ticks.tick().await;
        let sums: Sums = client.get(&url).await?;
        ensure!(!sums.partial, "a shard did not report its sums");
        moments.push(Moment {
            at_s: begin.elapsed().as_secs_f64(),
            memory: subject.cluster.memory()?.0,
            disk_bytes: subject.cluster.ledger_bytes().await?,
            unfolded_rows: subject.cluster.unfolded_rows().await,
            sum: sums.data.first().map_or_else(|| "0".to_owned(), |sum| sum.posted.clone()),
        });
        bar.set_position(begin.elapsed().as_secs());
    }
    Ok(moments)
}

#[derive(Debug, Serialize)]
pub struct SoakReport {
    pub plan: SoakPlan,
    pub measured_at: String,
    pub machine: Machine,
    pub peak_transfers_per_s: f64,
    pub transfers_per_s: f64,
    pub disk_bytes_per_transfer: Option<f64>,
    /// Answers to transfers that had been sent before.
    pub replayed: u64,
    pub failures: u64,
    /// Whether every sum over all accounts was the same.
    pub sum_unchanged: bool,
    pub verified: bool,
    pub figures: Vec<Figure>,
    pub windows: Vec<Window>,
    pub moments: Vec<Moment>,
}

/// The share of the time that is left out, because caches fill meanwhile.
const WARM_UP_SHARE: f64 = 0.2;

impl SoakReport {
    pub fn new(
        plan: SoakPlan,
        peak: &Sample,
        sample: &Sample,
        mut windows: Vec<Window>,
        moments: Vec<Moment>,
        verified: bool,
    ) -> Self {
        // The last window may be shorter than the others, and then has fewer transfers.
        windows.retain(|window| window.from_s + f64::from(plan.window_s) <= plan.minutes * 60.0 + 0.5);
        let sums: BTreeSet<&String> = moments.iter().map(|moment| &moment.sum).collect();
        Self {
            plan,
            measured_at: clock::format_rfc3339(clock::now_us()),
            machine: Machine::this(),
            peak_transfers_per_s: peak.transfers_per_s,
            transfers_per_s: sample.transfers_per_s,
            disk_bytes_per_transfer: sample.disk_bytes_per_transfer,
            replayed: sample.ours.as_ref().map_or(0, |ours| ours.replayed),
            failures: windows.iter().map(|window| window.failures).sum(),
            sum_unchanged: sums.len() <= 1,
            verified,
            figures: figures(&windows, &moments),
            windows,
            moments,
        }
    }

    /// The figures that no chart shows.
    pub fn summary(&self) -> String {
        format!(
            "{:.0} transfers/s, {} answers to transfers sent again, {} failures; disk {} B for each transfer; the sum of all \
             accounts {}; shardctl verify found {}.",
            self.transfers_per_s,
            self.replayed,
            self.failures,
            self.disk_bytes_per_transfer.map_or_else(|| "-".to_owned(), |bytes| format!("{bytes:.0}")),
            if self.sum_unchanged { "did not change" } else { "CHANGED" },
            if self.verified { "the ledger clean" } else { "a VIOLATION" },
        )
    }

    fn charts(&self) -> Vec<String> {
        let over_time =
            |title: &str, y_label: &str, series: Vec<Series>| Chart::over_seconds(title, y_label, series).svg();
        let of_windows = |name: &str, value: fn(&Window) -> f64| {
            Series::new(name, self.windows.iter().map(|window| (window.from_s, value(window))))
        };
        let of_moments = |name: &str, value: &dyn Fn(&Moment) -> Option<f64>| {
            Series::new(name, self.moments.iter().filter_map(|moment| Some((moment.at_s, value(moment)?))))
        };
        let processes: BTreeSet<&String> = self.moments.iter().flat_map(|moment| moment.memory.keys()).collect();
        let memory = processes
            .into_iter()
            .map(|process| of_moments(process, &|moment| Some(moment.memory.get(process)? / 1024.0 / 1024.0)));
        let disk = of_moments("tables and indexes", &|moment| Some(moment.disk_bytes / 1024.0 / 1024.0));
        let sum = of_moments("sum", &|moment| moment.sum.parse().ok());
        let mut charts = vec![
            over_time("Throughput", "transfers/s", vec![of_windows("transfers/s", |window| window.transfers_per_s)]),
            over_time(
                "Latency",
                "ms",
                vec![
                    of_windows("mean", |window| window.latency_us.mean / 1e3),
                    of_windows("p99", |window| window.latency_us.p99 as f64 / 1e3),
                ],
            ),
            over_time("Memory", "MiB", memory.collect()),
            over_time("Disk", "MiB", vec![disk]),
            over_time("Sum of all accounts", "USD", vec![sum]),
        ];
        if self.moments.iter().any(|moment| moment.unfolded_rows.is_some()) {
            let rows = of_moments("rows", &|moment| moment.unfolded_rows);
            charts.push(over_time("Rows that are not folded yet", "rows", vec![rows]));
        }
        charts
    }
}

fn figures(windows: &[Window], moments: &[Moment]) -> Vec<Figure> {
    let end = moments.last().map_or(0.0, |moment| moment.at_s);
    let warm: Vec<&Moment> = moments.iter().filter(|moment| moment.at_s >= end * WARM_UP_SHARE).collect();
    let processes: BTreeSet<&String> = warm.iter().flat_map(|moment| moment.memory.keys()).collect();
    let mut figures: Vec<Figure> = processes
        .into_iter()
        .map(|process| {
            let values: Vec<f64> = warm.iter().filter_map(|moment| moment.memory.get(process).copied()).collect();
            let deviation = deviation(&values).map(|(relative, _)| relative * 100.0);
            let claim = format!("memory of {process} after warm-up: ± around its median");
            Figure::new(&claim, "%", Promise::AtMost { bar: 5.0, aim: 2.0 }, deviation)
        })
        .collect();
    let last = windows.last().map_or(0.0, |window| window.from_s);
    let warm = windows.iter().filter(|window| window.from_s >= last * WARM_UP_SHARE);
    let means: Vec<f64> = warm.map(|window| window.latency_us.mean / 1e3).collect();
    figures.push(Figure::new(
        "mean latency from window to window: ± around its median",
        "ms",
        Promise::AtMost { bar: 5.0, aim: 2.0 },
        deviation(&means).map(|(_, absolute)| absolute),
    ));
    figures
}

/// The largest distance from the median, relative to the median and absolute.
fn deviation(values: &[f64]) -> Option<(f64, f64)> {
    let middle = median(values.to_vec())?;
    let distance = values.iter().map(|value| (value - middle).abs()).fold(0.0, f64::max);
    Some((if middle == 0.0 { 0.0 } else { distance / middle }, distance))
}

impl super::ExperimentReport for SoakReport {
    fn is_right(&self) -> bool {
        self.verified && self.sum_unchanged
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn print(&self) -> anyhow::Result<()> {
        output::data(&format!("peak {:.0} transfers/s\n{}\n", self.peak_transfers_per_s, self.summary()))?;
        print_figures(&self.figures)
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: soak");
        page.paragraph(&format!(
            "{}. {}. {} minutes at half of the peak of {:.0} transfers/s, {} transfers a request over {} connections ({} at the peak), {:.1} % of \
             them sent again, one master account with 1,000 sub-accounts, windows of {} s.",
            self.measured_at,
            self.machine,
            self.plan.minutes,
            self.peak_transfers_per_s,
            self.plan.batch,
            usize::from(self.plan.connections).max(MIN_OPEN_LOOP_CONNECTIONS),
            self.plan.connections,
            self.plan.replays * 100.0,
            self.plan.window_s
        ));
        page.paragraph(&self.summary());
        add_bars(&mut page, &self.figures);
        page.heading("Over time");
        page.charts(&self.charts());
        page.heading("Windows");
        page.table(
            ["from s", "transfers/s", "mean ms", "p99 ms", "max ms", "failures"],
            self.windows.iter().map(|window| {
                let latency = &window.latency_us;
                let cells = [
                    format!("{:.0}", window.from_s),
                    format!("{:.0}", window.transfers_per_s),
                    format!("{:.2}", latency.mean / 1e3),
                    format!("{:.2}", latency.p99 as f64 / 1e3),
                    format!("{:.1}", latency.max as f64 / 1e3),
                    window.failures.to_string(),
                ];
                (Mark::Plain, cells)
            }),
        );
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{ExperimentReport as _, tally::Latency};

    fn moment(at_s: f64, bytes: f64, sum: &str) -> Moment {
        let memory = BTreeMap::from([("s0".to_owned(), bytes)]);
        Moment { at_s, memory, disk_bytes: 1.0, unfolded_rows: Some(3.0), sum: sum.to_owned() }
    }

    fn window(from_s: f64, mean: f64) -> Window {
        let latency_us = Latency { mean, ..Latency::default() };
        Window { from_s, transfers_per_s: 1.0, requests: 1, failures: 0, latency_us }
    }

    fn report(sums: [&str; 2]) -> SoakReport {
        let plan = SoakPlan {
            minutes: 0.5,
            window_s: 10,
            peak_seconds: 1,
            replays: 0.01,
            connections: 1,
            batch: 1,
            seed: 1,
        };
        let windows = vec![window(0.0, 90_000.0), window(10.0, 3_000.0), window(20.0, 5_000.0), window(30.0, 1.0)];
        let moments = vec![moment(1.0, 50.0, sums[0]), moment(10.0, 100.0, sums[1]), moment(20.0, 104.0, sums[1])];
        SoakReport::new(plan, &Sample::default(), &Sample::default(), windows, moments, true)
    }

    #[test]
    fn only_what_comes_after_the_warm_up_counts() {
        let report = report(["0.00", "0.00"]);
        assert_eq!(report.windows.len(), 3, "the last one is not whole");
        let values: Vec<f64> = report.figures.iter().map(|figure| figure.value.unwrap()).collect();
        assert!((values[0] - 100.0 * 2.0 / 102.0).abs() < 1e-9 && (values[1] - 1.0).abs() < 1e-9, "{values:?}");
        assert!(report.meets_bars() && report.is_right());
        let html = report.page();
        assert!(html.contains("memory of s0") && html.contains("not folded"), "{html}");
    }

    #[test]
    fn a_sum_that_changes_is_a_violation() {
        let report = report(["0.00", "0.01"]);
        assert!(!report.is_right() && report.summary().contains("CHANGED"));
    }
}
