//! The result of `make bench`: the figures, their bars, and the page that shows them.

use std::collections::BTreeMap;

use serde::Serialize;
use telemetry::clock;

use super::{
    ByShards, MeasuredSweep, SuitePlan,
    runs::{FUNCTION_HOT, FUNCTION_UNIFORM, SWEEPS, Sweep, SweepAxis},
};
use crate::{
    bench::{
        chart::{Axis, Bars, Chart, Series, number},
        figures::{Figure, Promise, Samples, add_bars, print_figures, ratio},
        load::Measurement,
        machine::{Machine, PerTransfer},
        page::{Mark, Page},
        print_verdict,
        scaling::throughput,
        subject::Sample,
        tally::Latency,
    },
    output,
};

#[derive(Debug, Serialize)]
pub struct SuiteReport {
    pub plan: SuitePlan,
    pub measured_at: String,
    pub machine: Machine,
    /// The settings of PostgreSQL, which are the same for all measured systems.
    pub settings: BTreeMap<String, String>,
    /// Whether `verify` found the ledgers clean after all runs.
    pub verified: bool,
    pub figures: Vec<Figure>,
    pub samples: Samples,
    pub sweeps: Vec<MeasuredSweep>,
    pub by_shards: ByShards,
}

impl SuiteReport {
    pub fn new(
        plan: SuitePlan,
        settings: Vec<(String, String)>,
        samples: Samples,
        sweeps: Vec<MeasuredSweep>,
        by_shards: ByShards,
        verified: bool,
    ) -> Self {
        Self {
            plan,
            measured_at: clock::format_rfc3339(clock::now_us()),
            machine: Machine::this(),
            settings: settings.into_iter().collect(),
            verified,
            figures: figures(&samples),
            samples,
            sweeps,
            by_shards,
        }
    }

    /// The share of the raw append ceiling that a run reaches.
    pub fn share_of_ceiling(&self, run: &str) -> Option<f64> {
        ratio(self.samples.rate(run), self.samples.rate("ceiling_append"))
    }

    /// One row for each run, in the order of the names.
    pub fn run_rows(&self) -> Vec<[String; 12]> {
        let row = |(name, samples): (&String, &Vec<Sample>)| {
            let rates: Vec<String> = samples.iter().map(|sample| number(sample.transfers_per_s)).collect();
            let value = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
            let ms = |us: Option<f64>| us.map_or_else(String::new, |us| format!("{:.2}", us / 1e3));
            let last = samples.last();
            let unfolded = last.and_then(|sample| sample.unfolded_rows);
            [
                name.clone(),
                self.samples.rate(name).map_or_else(String::new, |rate| format!("{rate:.0}")),
                rates.join(" "),
                self.share_of_ceiling(name).map_or_else(String::new, |share| format!("{share:.3}")),
                value(self.samples.cpu(name, |cpu| cpu.client)),
                value(self.samples.cpu(name, |cpu| cpu.routers)),
                value(self.samples.cpu(name, |cpu| cpu.nodes)),
                value(self.samples.cpu(name, |cpu| cpu.postgres)),
                ms(self.samples.latency(name, |latency| latency.p50)),
                ms(self.samples.latency(name, |latency| latency.p99)),
                self.samples.disk(name).map_or_else(String::new, |bytes| format!("{bytes:.0}")),
                unfolded.map_or_else(String::new, |[before, after]| format!("{} {}", number(before), number(after))),
            ]
        };
        self.samples.0.iter().map(row).collect()
    }

    fn charts(&self) -> Vec<String> {
        let mut charts: Vec<String> = Vec::new();
        for drawn in &self.sweeps {
            let Some(sweep) = SWEEPS.iter().find(|sweep| sweep.name == drawn.name) else { continue };
            let (rate, latency) = sweep_charts(sweep, drawn);
            charts.push(rate);
            charts.push(latency);
        }
        if !self.by_shards.points.is_empty() {
            charts.push(throughput(&self.by_shards.points));
        }
        charts.push(self.percentiles());
        charts.push(self.processors());
        charts
    }

    fn percentiles(&self) -> String {
        const RUNS: [&str; 4] = ["one_client", "single_uniform", "two_shards_single_half_cross", "half_the_peak"];
        let series = RUNS.iter().filter_map(|run| {
            let latency = self.samples.0.get(*run)?.last()?.latency_us.as_ref()?;
            let values = [latency.p50, latency.p90, latency.p99, latency.p99_9];
            Some(Series::new(run, (0..).map(f64::from).zip(values.map(|us| us as f64 / 1e3))))
        });
        Chart {
            title: "Latency of single requests, last round".to_owned(),
            x_label: "percentile".to_owned(),
            y_label: "ms".to_owned(),
            x_axis: Axis::Words(["p50", "p90", "p99", "p99.9"].map(str::to_owned).to_vec()),
            series: series.collect(),
        }
        .svg()
    }

    fn processors(&self) -> String {
        const RUNS: [&str; 6] = [
            "batch_uniform",
            "batch_hot",
            "two_shards_cross",
            "single_uniform",
            "two_shards_single_half_cross",
            "function_uniform_16",
        ];
        let bars = RUNS.iter().filter(|run| self.samples.0.contains_key(**run)).map(|run| {
            let of = |part: fn(&PerTransfer) -> f64| self.samples.cpu(run, part).unwrap_or_default();
            let parts =
                vec![of(|cpu| cpu.postgres), of(|cpu| cpu.nodes), of(|cpu| cpu.routers), of(|cpu| cpu.client)];
            ((*run).to_owned(), parts)
        });
        Bars {
            title: "Processor time for each transfer".to_owned(),
            y_label: "µs".to_owned(),
            parts: ["PostgreSQL", "node", "router", "client"].map(str::to_owned).to_vec(),
            bars: bars.collect(),
        }
        .svg()
    }
}

pub const RUN_HEADER: [&str; 12] = [
    "run",
    "transfers/s",
    "rounds",
    "of ceiling",
    "client µs",
    "router µs",
    "node µs",
    "PostgreSQL µs",
    "p50 ms",
    "p99 ms",
    "disk B",
    "unfolded",
];

/// The charts of transfers a second and of latencies over the varied quantity of the sweep.
fn sweep_charts(sweep: &Sweep, drawn: &MeasuredSweep) -> (String, String) {
    let axis = match sweep.axis {
        SweepAxis::Linear => Axis::Linear,
        SweepAxis::Log => Axis::Log,
        SweepAxis::Words => Axis::Words(drawn.points.iter().map(|point| point.label.to_owned()).collect()),
    };
    let chart = |title: &str, y_label: &str, series: Vec<Series>| Chart {
        title: title.to_owned(),
        x_label: sweep.x_label.to_owned(),
        y_label: y_label.to_owned(),
        x_axis: axis.clone(),
        series,
    };
    let rate = drawn.points.iter().map(|point| (point.x, point.sample.transfers_per_s));
    let ms = |of: fn(&Latency) -> u64| {
        drawn
            .points
            .iter()
            .filter_map(move |point| Some((point.x, of(point.sample.latency_us.as_ref()?) as f64 / 1e3)))
    };
    let title = |what: &str| format!("{what} {}", sweep.title);
    let rates = chart(&title("Throughput"), "transfers/s", vec![Series::new("transfers/s", rate)]);
    let latencies =
        vec![Series::new("p50", ms(|latency| latency.p50)), Series::new("p99", ms(|latency| latency.p99))];
    (rates.svg(), chart(&title("Latency of requests"), "ms", latencies).svg())
}

/// The figures that one run of `make bench` can compare with bars.
fn figures(samples: &Samples) -> Vec<Figure> {
    let (least, most) = (|bar, aim| Promise::AtLeast { bar, aim }, |bar, aim| Promise::AtMost { bar, aim });
    let rate = |run: &str| samples.rate(run);
    let (function, hot) = (samples.best_rate(&FUNCTION_UNIFORM), samples.best_rate(&FUNCTION_HOT));
    let p50 = |run: &str| samples.latency(run, |latency| latency.p50);
    let of_ours =
        |run: &str, of: fn(&Measurement) -> f64| samples.median_of(run, |sample| sample.ours.as_ref().map(of));
    vec![
        Figure::new(
            "batches of 1,000, uniform over 100,000 accounts, one shard ÷ PL/pgSQL function",
            "",
            least(8.0, 12.0),
            ratio(rate("batch_uniform"), function),
        ),
        Figure::new(
            "the same ÷ raw append",
            "",
            least(0.25, 0.35),
            ratio(rate("batch_uniform"), rate("ceiling_append")),
        ),
        Figure::new(
            "batches, one hot account ÷ function on the hot account",
            "",
            least(35.0, 50.0),
            ratio(rate("batch_hot"), hot),
        ),
        Figure::new(
            "batches with a key, HTTPS and mutual TLS ÷ without",
            "",
            least(0.9, 0.95),
            ratio(rate("batch_secured"), rate("batch_uniform")),
        ),
        Figure::new(
            "single transfers with a key, HTTPS and mutual TLS ÷ without",
            "",
            least(0.8, 0.9),
            ratio(rate("single_secured"), rate("single_uniform")),
        ),
        Figure::new(
            "single transfers over HTTP, 64 connections ÷ function",
            "",
            least(1.8, 2.5),
            ratio(rate("single_uniform"), function),
        ),
        Figure::new(
            "one client, one transfer at a time: p50 ÷ the function's p50",
            "",
            most(2.5, 1.5),
            ratio(p50("one_client"), p50("function_one_client")),
        ),
        Figure::new(
            "100 % cross-shard over two shards, batches ÷ function",
            "",
            least(4.0, 6.0),
            ratio(rate("two_shards_cross"), function),
        ),
        Figure::new(
            "single HTTP, half of them cross-shard, two shards and two routers ÷ function",
            "",
            least(0.9, 1.3),
            ratio(rate("two_shards_single_half_cross"), function),
        ),
        Figure::new(
            "batches with 1 % replays ÷ none",
            "",
            least(0.8, 0.95),
            ratio(rate("batch_replays"), rate("batch_uniform")),
        ),
        Figure::new(
            "disk for each local transfer, ids in time order",
            "B",
            most(330.0, 280.0),
            samples.disk("batch_uniform"),
        ),
        Figure::new(
            "disk for each local transfer, random ids",
            "B",
            most(360.0, 310.0),
            samples.disk("batch_random_ids"),
        ),
        Figure::new(
            "PostgreSQL processor time for each transfer in batches",
            "µs",
            most(6.0, 4.0),
            samples.cpu("batch_uniform", |cpu| cpu.postgres),
        ),
        Figure::new(
            "kill -9 of the node at full write rate until a transfer succeeds",
            "s",
            most(5.0, 2.0),
            of_ours("node_killed", |ours| ours.longest_pause_s),
        ),
        Figure::new(
            "half the peak of single requests: p99 ÷ p50",
            "",
            most(3.0, 3.0),
            ratio(samples.latency("half_the_peak", |latency| latency.p99), p50("half_the_peak")),
        ),
        Figure::new(
            "the load generator's own processor time for each request",
            "µs",
            most(15.0, 15.0),
            of_ours("single_uniform", |ours| ours.generator_us_per_request),
        ),
    ]
}

impl crate::bench::ExperimentReport for SuiteReport {
    fn is_right(&self) -> bool {
        self.verified
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn print(&self) -> anyhow::Result<()> {
        output::data(
            "Processor time for each transfer by kind of process, latency of requests, disk for each transfer\n",
        )?;
        output::table(RUN_HEADER, &self.run_rows())?;
        output::data("")?;
        print_figures(&self.figures)?;
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        output::data(&format!("\n{}; PostgreSQL on all sides: {}", self.machine, settings.join(" ")))?;
        print_verdict(self.verified)
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: make bench");
        page.paragraph(&format!(
            "{}. {} rounds, main runs of {} s, points of plots {} s, seed {}. Medians over the rounds. Client, routers, nodes and \
             PostgreSQL share the machine.",
            self.measured_at, self.plan.rounds, self.plan.seconds, self.plan.sweep_seconds, self.plan.seed
        ));
        page.paragraph(&self.machine.to_string());
        page.paragraph(if self.verified {
            "shardctl verify found the ledgers clean after all runs."
        } else {
            "shardctl verify found a VIOLATION: the figures are void."
        });
        add_bars(&mut page, &self.figures);
        page.heading("Runs");
        page.note(
            "Processor time is in microseconds for each transfer, of all processes of a kind; latency is that of requests. \
             The unfolded rows are those at the beginning and at the end.",
        );
        page.table(RUN_HEADER, self.run_rows().into_iter().map(|cells| (Mark::Plain, cells)));
        page.heading("Plots");
        page.charts(&self.charts());
        if !self.by_shards.limit.is_empty() {
            page.note(&format!("Throughput by the number of shards: {}.", self.by_shards.limit));
        }
        page.heading("PostgreSQL settings, the same on all sides");
        page.table(
            ["setting", "value"],
            self.settings.iter().map(|(name, value)| (Mark::Plain, [name.clone(), value.clone()])),
        );
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::ExperimentReport as _;
    use crate::bench::suite::MeasuredPoint;

    fn sample(transfers_per_s: f64) -> Sample {
        let latency_us = Some(Latency { p50: 1_000, p90: 2_000, p99: 3_000, p99_9: 4_000, ..Latency::default() });
        Sample { transfers_per_s, latency_us, ..Sample::default() }
    }

    fn report() -> SuiteReport {
        let mut samples = Samples::default();
        for (run, rate) in [("function_uniform_16", 10.0), ("batch_uniform", 90.0), ("ceiling_append", 300.0)] {
            samples.add(run, sample(rate));
        }
        let point = |x, label| MeasuredPoint { x, label, sample: sample(5.0) };
        let drawn =
            MeasuredSweep { name: "by_skew", points: vec![point(0.0, "uniform"), point(1.0, "one hot account")] };
        let plan = SuitePlan { rounds: 1, seconds: 1, sweep_seconds: 1, only: Vec::new(), seed: 1 };
        SuiteReport::new(
            plan,
            vec![("fsync".to_owned(), "on".to_owned())],
            samples,
            vec![drawn],
            ByShards::default(),
            true,
        )
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let report = report();
        let values: Vec<Option<f64>> = report.figures.iter().take(3).map(|figure| figure.value).collect();
        assert_eq!(values, [Some(9.0), Some(0.3), None]);
        assert!(
            report.figures[0].met
                && report.figures[1].met
                && !report.figures[2].met
                && !crate::bench::figures::all_met(&report.figures)
        );
    }

    #[test]
    fn the_page_shows_bars_runs_and_plots() {
        let html = report().page();
        for part in ["MISSED", "not measured", "batch_uniform", "one hot account", "fsync", "<polyline"] {
            let expected = part != "MISSED";
            assert_eq!(html.contains(part), expected, "{part}");
        }
    }
}
