//! The result of `shardctl bench scaling`, as JSON and as a page.

use std::fmt;

use serde::Serialize;
use telemetry::clock;

use super::{Requests, ScalingPlan, ScalingPoint, many::ManyShards};
use crate::{
    bench::{
        chart::{Axis, Chart, Series, number},
        figures::{Figure, Promise, add_bars, print_figures, ratio},
        machine::Machine,
        page::{Mark, Page},
        print_verdict,
    },
    output,
};

#[derive(Debug, Serialize)]
pub struct ScalingReport {
    pub plan: ScalingPlan,
    pub measured_at: String,
    pub machine: Machine,
    /// How each shard was limited.
    pub limit: String,
    pub verified: bool,
    pub figures: Vec<Figure>,
    pub points: Vec<ScalingPoint>,
    pub many_shards: Vec<ManyShards>,
}

/// The smaller number of shards of the efficiency figure.
const FEW: u16 = 1;
const FOUR: u16 = 4;
/// The larger number of shards of the figure of the router's cost.
const MANY: u16 = 1_024;

impl ScalingReport {
    pub fn new(
        plan: ScalingPlan,
        limit: String,
        points: Vec<ScalingPoint>,
        many_shards: Vec<ManyShards>,
        verified: bool,
    ) -> Self {
        Self {
            plan,
            measured_at: clock::format_rfc3339(clock::now_us()),
            machine: Machine::this(),
            limit,
            verified,
            figures: figures(&points, &many_shards),
            points,
            many_shards,
        }
    }

    pub fn point_rows(&self) -> Vec<[String; 10]> {
        let row = |point: &ScalingPoint| {
            let cpu = &point.sample.cpu_us_per_transfer;
            [
                point.shards.to_string(),
                point.requests.to_string(),
                format!("{:.0}", point.sample.transfers_per_s),
                efficiency(&self.points, point).map_or_else(String::new, |value| format!("{value:.2}")),
                point.throttled.map_or_else(String::new, |share| format!("{share:.2}")),
                format!("{:.0}", used_ms_per_s(point)),
                format!("{:.1}", cpu.client),
                format!("{:.1}", cpu.routers),
                format!("{:.1}", cpu.nodes),
                format!("{:.1}", cpu.postgres),
            ]
        };
        self.points.iter().map(row).collect()
    }

    pub fn many_rows(&self) -> Vec<[String; 6]> {
        let row = |many: &ManyShards| {
            [
                many.shards.to_string(),
                number(many.transfers_per_s),
                format!("{:.2}", many.router_us_per_transfer),
                format!("{:.1}", many.transfers_per_call),
                format!("{:.1}", many.router_idle_us_per_s / 1e3),
                format!("{:.2}", many.latency_us.p50 as f64 / 1e3),
            ]
        };
        self.many_shards.iter().map(row).collect()
    }

    fn router_chart(&self) -> String {
        let points = self.many_shards.iter().map(|many| (f64::from(many.shards), many.router_us_per_transfer));
        Chart {
            title: "Router's processor time for each transfer".to_owned(),
            x_label: "shards (mock nodes)".to_owned(),
            y_label: "µs".to_owned(),
            x_axis: Axis::Log,
            series: vec![Series::new("router", points)],
        }
        .svg()
    }
}

pub const POINT_HEADER: [&str; 10] = [
    "shards",
    "requests",
    "transfers/s",
    "efficiency",
    "throttled",
    "shard ms/s",
    "client µs",
    "router µs",
    "node µs",
    "PostgreSQL µs",
];
pub const MANY_HEADER: [&str; 6] =
    ["shards", "transfers/s", "router µs", "transfers/call", "idle router ms/s", "p50 ms"];

/// Throughput by the number of shards, one line for each share of cross-shard transfers.
pub fn throughput(points: &[ScalingPoint]) -> String {
    let mut kinds: Vec<Requests> = Vec::new();
    for point in points {
        if !kinds.contains(&point.requests) {
            kinds.push(point.requests);
        }
    }
    let series = kinds.into_iter().map(|requests| {
        let of_kind = points.iter().filter(|point| point.requests == requests);
        Series::new(
            &requests.to_string(),
            of_kind.map(|point| (f64::from(point.shards), point.sample.transfers_per_s)),
        )
    });
    Chart {
        title: "Throughput by the number of shards, each with the same small part of the machine".to_owned(),
        x_label: "shards".to_owned(),
        y_label: "transfers/s".to_owned(),
        x_axis: Axis::Log,
        series: series.collect(),
    }
    .svg()
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneShard => f.write_str("one shard each"),
            Self::Spread { cross: 0.0 } => f.write_str("spread, local"),
            Self::Spread { cross } => write!(f, "spread, {:.0} % cross-shard", cross * 100.0),
        }
    }
}

fn efficiency(points: &[ScalingPoint], point: &ScalingPoint) -> Option<f64> {
    let one = points.iter().find(|one| one.shards == FEW && one.requests == Requests::OneShard)?;
    let perfect = one.sample.transfers_per_s * f64::from(point.shards);
    ratio(Some(point.sample.transfers_per_s), Some(perfect))
}

/// Processor time that a shard used, in ms a second. The kernel may give a group more than its share.
fn used_ms_per_s(point: &ScalingPoint) -> f64 {
    let cpu = &point.sample.cpu_us_per_transfer;
    point.sample.transfers_per_s * (cpu.nodes + cpu.postgres) / f64::from(point.shards) / 1e3
}

fn figures(points: &[ScalingPoint], many: &[ManyShards]) -> Vec<Figure> {
    let four = points.iter().find(|point| point.shards == FOUR && point.requests == Requests::OneShard);
    let router = |shards| many.iter().find(|many| many.shards == shards).map(|many| many.router_us_per_transfer);
    let mut figures = vec![Figure::new(
        "efficiency from 1 to 4 limited shards, local transfers, requests for one shard each",
        "",
        Promise::AtLeast { bar: 0.9, aim: 0.97 },
        four.and_then(|four| efficiency(points, four)),
    )];
    if !many.is_empty() {
        figures.push(Figure::new(
            "router's processor time for each transfer, 1,024 shards ÷ 4, equal transfers for each call",
            "",
            Promise::AtMost { bar: 1.15, aim: 1.05 },
            ratio(router(MANY), router(FOUR)),
        ));
    }
    figures
}

impl crate::bench::ExperimentReport for ScalingReport {
    fn is_right(&self) -> bool {
        self.verified
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn print(&self) -> anyhow::Result<()> {
        output::data(&format!("{}\n", self.limit))?;
        output::table(POINT_HEADER, &self.point_rows())?;
        output::data("")?;
        output::table(MANY_HEADER, &self.many_rows())?;
        output::data("")?;
        print_figures(&self.figures)?;
        print_verdict(self.verified)
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: scaling");
        page.paragraph(&format!("{}. {}.", self.measured_at, self.machine));
        page.paragraph(&format!(
            "{}. The load uses the accounts of the first shards of one cluster, batches of 1,000 over 8 connections for each \
             shard, {} s a point.",
            self.limit, self.plan.seconds
        ));
        add_bars(&mut page, &self.figures);
        page.heading("Shards");
        page.note(
            "Efficiency: transfers a second ÷ (shards × transfers a second of one shard). Requests are for one shard each, or \
             spread over all loaded shards with some share of cross-shard transfers.",
        );
        page.table(POINT_HEADER, self.point_rows().into_iter().map(|cells| (Mark::Plain, cells)));
        page.heading("Many shards, mock nodes");
        page.table(MANY_HEADER, self.many_rows().into_iter().map(|cells| (Mark::Plain, cells)));
        page.heading("Plots");
        page.charts(&[throughput(&self.points), self.router_chart()]);
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{subject::Sample, tally::Latency};

    fn point(shards: u16, requests: Requests, transfers_per_s: f64) -> ScalingPoint {
        ScalingPoint {
            shards,
            requests,
            sample: Sample { transfers_per_s, ..Sample::default() },
            throttled: Some(0.5),
        }
    }

    fn many(shards: u16, router_us_per_transfer: f64) -> ManyShards {
        ManyShards {
            shards,
            transfers_per_s: 1.0,
            router_us_per_transfer,
            mock_nodes_us_per_transfer: 1.0,
            transfers_per_call: 250.0,
            router_idle_us_per_s: 1.0,
            latency_us: Latency::default(),
        }
    }

    #[test]
    fn efficiency_compares_with_as_many_single_shards() {
        let spread = Requests::Spread { cross: 0.5 };
        let points =
            vec![point(1, Requests::OneShard, 100.0), point(4, Requests::OneShard, 380.0), point(4, spread, 200.0)];
        let figures = figures(&points, &[many(4, 10.0), many(1_024, 11.0)]);
        assert_eq!(figures[0].value, Some(0.95));
        assert!(figures[0].met && !figures[0].aim_met);
        assert!((figures[1].value.unwrap() - 1.1).abs() < 1e-9 && figures[1].met);
        assert_eq!(used_ms_per_s(&points[1]), 0.0);
        assert!(throughput(&points).contains("50 % cross-shard"));
    }
}
