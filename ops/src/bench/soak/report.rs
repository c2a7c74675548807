//! What came out of a soak, as JSON and as a page.

use std::collections::BTreeSet;

use serde::Serialize;
use telemetry::clock;

use super::{Moment, Plan};
use crate::bench::{
    Window,
    chart::{Axis, Chart, Series},
    figures::{Figure, Promise, add_bars, median},
    machine::Machine,
    page::{Mark, Page},
    subject::{MIN_OPEN_LOOP_CONNECTIONS, Sample},
};

#[derive(Debug, Serialize)]
pub struct Report {
    pub plan: Plan,
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

/// The first fifth of the time fills caches.
const WARM_UP_SHARE: f64 = 0.2;

impl Report {
    pub fn new(
        plan: Plan,
        peak: &Sample,
        sample: &Sample,
        mut windows: Vec<Window>,
        moments: Vec<Moment>,
        verified: bool,
    ) -> Self {
        // A last window that is shorter than the others has fewer transfers.
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

    /// Whether the books held, by `verify` and by the sums.
    pub fn books_hold(&self) -> bool {
        self.verified && self.sum_unchanged
    }

    pub fn page(&self) -> String {
        let mut page = Page::new("Shardledger: soak");
        page.paragraph(&format!(
            "{}. {}. {} minutes at half of the peak of {:.0} transfers/s, {} transfers a request over {} connections ({} at the peak), {:.1} % of \
             them sent again, one master account with 1,000 sub-accounts, windows of {} s.",
            self.measured_at,
            self.machine,
            self.plan.minutes,
            self.peak_transfers_per_s,
            self.plan.batch,
            self.plan.connections.max(MIN_OPEN_LOOP_CONNECTIONS),
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

    /// What no chart shows.
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
        let over_time = |title: &str, y_label: &str, series: Vec<Series>| {
            Chart {
                title: title.to_owned(),
                x_label: "seconds".to_owned(),
                y_label: y_label.to_owned(),
                x_axis: Axis::Linear,
                series,
            }
            .svg()
        };
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

/// The largest distance from the median, as a part of the median and as it is.
fn deviation(values: &[f64]) -> Option<(f64, f64)> {
    let middle = median(values.to_vec())?;
    let distance = values.iter().map(|value| (value - middle).abs()).fold(0.0, f64::max);
    Some((if middle == 0.0 { 0.0 } else { distance / middle }, distance))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::Latency;

    fn moment(at_s: f64, bytes: f64, sum: &str) -> Moment {
        let memory = BTreeMap::from([("s0".to_owned(), bytes)]);
        Moment { at_s, memory, disk_bytes: 1.0, unfolded_rows: Some(3.0), sum: sum.to_owned() }
    }

    fn window(from_s: f64, mean: f64) -> Window {
        let latency_us = Latency { mean, ..Latency::default() };
        Window { from_s, transfers_per_s: 1.0, requests: 1, failures: 0, latency_us }
    }

    fn report(sums: [&str; 2]) -> Report {
        let plan =
            Plan { minutes: 0.5, window_s: 10, peak_seconds: 1, replays: 0.01, connections: 1, batch: 1, seed: 1 };
        let windows = vec![window(0.0, 90_000.0), window(10.0, 3_000.0), window(20.0, 5_000.0), window(30.0, 1.0)];
        let moments = vec![moment(1.0, 50.0, sums[0]), moment(10.0, 100.0, sums[1]), moment(20.0, 104.0, sums[1])];
        Report::new(plan, &Sample::default(), &Sample::default(), windows, moments, true)
    }

    #[test]
    fn only_what_comes_after_the_warm_up_counts() {
        let report = report(["0.00", "0.00"]);
        assert_eq!(report.windows.len(), 3, "the last one is not whole");
        let values: Vec<f64> = report.figures.iter().map(|figure| figure.value.unwrap()).collect();
        assert!((values[0] - 100.0 * 2.0 / 102.0).abs() < 1e-9 && (values[1] - 1.0).abs() < 1e-9, "{values:?}");
        assert!(crate::bench::figures::all_met(&report.figures) && report.books_hold());
        let html = report.page();
        assert!(html.contains("memory of s0") && html.contains("not folded"), "{html}");
    }

    #[test]
    fn a_sum_that_changes_is_a_violation() {
        let report = report(["0.00", "0.01"]);
        assert!(!report.books_hold() && report.summary().contains("CHANGED"));
    }
}
