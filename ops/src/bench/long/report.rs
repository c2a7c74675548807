//! What came out of the long measurements, as JSON and as a page.

use serde::Serialize;
use telemetry::clock;

use super::Plan;
use crate::bench::{
    Window,
    chart::{Axis, Chart, Series},
    figures::{Figure, Promise, Samples, add_bars, ratio},
    machine::Machine,
    page::{Mark, Page},
};

#[derive(Debug, Serialize)]
pub struct Report {
    pub plan: Plan,
    pub measured_at: String,
    pub machine: Machine,
    pub verified: bool,
    pub figures: Vec<Figure>,
    pub samples: Samples,
    /// While the snapshot was held.
    pub under_snapshot: Vec<Window>,
}

impl Report {
    pub fn new(plan: Plan, samples: Samples, under_snapshot: Vec<Window>, verified: bool) -> Self {
        Self {
            plan,
            measured_at: clock::format_rfc3339(clock::now_us()),
            machine: Machine::this(),
            verified,
            figures: figures(plan, &samples),
            samples,
            under_snapshot,
        }
    }

    pub fn page(&self) -> String {
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

fn figures(plan: Plan, samples: &Samples) -> Vec<Figure> {
    let least = |bar, aim| Promise::AtLeast { bar, aim };
    let of = |one: &str, other: &str| ratio(samples.rate(one), samples.rate(other));
    let mut figures = Vec::new();
    if plan.parts.accounts {
        let function = samples.best_rate(&["function_many_accounts_16", "function_many_accounts_48"]);
        let claim = format!("{} accounts, uniform ÷ function over as many", plan.many_accounts);
        figures.push(Figure::new(&claim, "", least(3.0, 6.0), ratio(samples.rate("batch_many_accounts"), function)));
    }
    if plan.parts.history {
        let claim = |ids: &str| format!("shard with {} transfers ÷ empty, {ids}", plan.history);
        let in_order = of("full_time_ordered", "empty_time_ordered");
        figures.push(Figure::new(&claim("ids in time order"), "", least(0.85, 0.95), in_order));
        figures.push(Figure::new(&claim("random ids"), "", least(0.5, 0.7), of("full_random", "empty_random")));
    }
    if plan.parts.snapshot {
        let claim = format!("beside a snapshot held for {} s, at its end ÷ before", plan.snapshot_seconds);
        figures.push(Figure::new(&claim, "", least(0.9, 0.98), of("end_of_snapshot", "before_snapshot")));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{long::Parts, subject::Sample};

    #[test]
    fn only_the_parts_that_ran_have_figures() {
        let parts = Parts { accounts: false, history: true, snapshot: false };
        let plan = Plan { parts, seconds: 1, many_accounts: 10, history: 20, snapshot_seconds: 1, seed: 1 };
        let mut samples = Samples::default();
        for (name, transfers_per_s) in [("empty_time_ordered", 100.0), ("full_time_ordered", 90.0)] {
            samples.add(name, Sample { transfers_per_s, ..Sample::default() });
        }
        let report = Report::new(plan, samples, Vec::new(), true);
        let values: Vec<Option<f64>> = report.figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [Some(0.9), None]);
        assert!(report.page().contains("full_time_ordered"));
    }
}
