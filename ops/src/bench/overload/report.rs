//! The result of `shardctl bench overload`, as JSON and as a page.

use std::collections::BTreeSet;

use serde::Serialize;
use telemetry::clock;

use super::{
    AFTER_THAW, CONNECTIONS, FACTORS, FREEZE_S, Frozen, IN_FLIGHT, OverloadPlan, OverloadStep, RETRIES, SPIKE, THAW_S,
};
use crate::bench::{
    chart::{Axis, Chart, Series},
    driver::NOT_SENT,
    figures::{Figure, Promise, add_bars, median, print_all, ratio},
    load::Measurement,
    machine::Machine,
    page::{Mark, Page},
    tally::Window,
};

#[derive(Debug, Serialize)]
pub struct OverloadReport {
    pub plan: OverloadPlan,
    pub measured_at: String,
    pub machine: Machine,
    /// How the shards were limited.
    pub limit: String,
    pub peak: Measurement,
    pub steps: Vec<OverloadStep>,
    pub frozen: Frozen,
    pub spike: Vec<Window>,
    pub retrying: Vec<Window>,
    pub verified: bool,
    pub figures: Vec<Figure>,
}

/// A window is calm if its p99 is at most this many times the p99 of the windows before, or below [`CALM_MS`].
const CALM: f64 = 3.0;
const CALM_MS: f64 = 50.0;

impl OverloadReport {
    #[expect(clippy::too_many_arguments, reason = "each part of the measurement once")]
    pub fn new(
        plan: OverloadPlan,
        limit: String,
        peak: Measurement,
        steps: Vec<OverloadStep>,
        frozen: Frozen,
        spike: Vec<Window>,
        retrying: Vec<Window>,
        verified: bool,
    ) -> Self {
        let figures = figures(&peak, &steps, &frozen, &spike, &retrying);
        let (measured_at, machine) = (clock::format_rfc3339(clock::now_us()), Machine::this());
        Self { plan, measured_at, machine, limit, peak, steps, frozen, spike, retrying, verified, figures }
    }

    pub fn summary(&self) -> String {
        format!(
            "peak {:.0} transfers/s; {}; shardctl verify found {}.",
            self.peak.transfers_per_s,
            self.limit,
            if self.verified { "the ledger clean" } else { "a VIOLATION" },
        )
    }

    pub const HEADER: [&str; 8] =
        ["load", "offered/s", "goodput/s", "of peak", "refused", "not sent", "refusal p50 ms", "refusal p99 ms"];

    pub fn rows(&self) -> Vec<[String; 8]> {
        let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
        self.steps
            .iter()
            .map(|step| {
                let measured = &step.measured;
                let not_sent = measured.others.get(NOT_SENT).copied().unwrap_or(0);
                let refused = measured.others.values().sum::<u64>() - not_sent;
                [
                    format!("{} × peak", step.factor),
                    format!("{:.0}", measured.rate.unwrap_or_default()),
                    format!("{:.0}", measured.transfers_per_s),
                    format!("{:.2}", measured.transfers_per_s / self.peak.transfers_per_s),
                    refused.to_string(),
                    not_sent.to_string(),
                    ms(measured.refusal_latency_us.p50),
                    ms(measured.refusal_latency_us.p99),
                ]
            })
            .collect()
    }

    fn charts(&self) -> Vec<String> {
        let peak = self.peak.transfers_per_s;
        let of_steps = |name: &str, value: &dyn Fn(&OverloadStep) -> f64| {
            Series::new(name, self.steps.iter().map(|step| (step.factor, value(step))))
        };
        let goodput = Chart {
            title: "Goodput as a part of the peak".to_owned(),
            x_label: "offered load ÷ peak".to_owned(),
            y_label: "goodput ÷ peak".to_owned(),
            x_axis: Axis::Log,
            series: vec![of_steps("goodput", &|step| step.measured.transfers_per_s / peak)],
        };
        let refusals = Chart {
            title: "How long a refusal takes".to_owned(),
            x_label: "offered load ÷ peak".to_owned(),
            y_label: "ms".to_owned(),
            x_axis: Axis::Log,
            series: vec![
                of_steps("p50", &|step| step.measured.refusal_latency_us.p50 as f64 / 1e3),
                of_steps("p99", &|step| step.measured.refusal_latency_us.p99 as f64 / 1e3),
            ],
        };
        let over_time = |title: &str, windows: &[Window], marks: &[(f64, &str)]| {
            let of = |name: &str, value: fn(&Window) -> f64| {
                Series::new(name, windows.iter().map(|window| (window.from_s, value(window))))
            };
            let series = vec![
                of("transfers/s", |window| window.transfers_per_s),
                of("p99 ms", |window| window.latency_us.p99 as f64 / 1e3),
            ];
            let marks: Vec<(f64, String)> = marks.iter().map(|(at, text)| (*at, (*text).to_owned())).collect();
            Chart::over_seconds(title, "each second, or ms", series).svg_with_marks(&marks)
        };
        vec![
            goodput.svg(),
            refusals.svg(),
            over_time("A spike", &self.spike, &[(SPIKE.from_s, "spike"), (SPIKE.to_s, "over")]),
            over_time(
                "A frozen shard and clients that retry",
                &self.retrying,
                &[(FREEZE_S, "frozen"), (THAW_S, "thawed")],
            ),
        ]
    }
}

fn figures(
    peak: &Measurement,
    steps: &[OverloadStep],
    frozen: &Frozen,
    spike: &[Window],
    retrying: &[Window],
) -> Vec<Figure> {
    let of_peak = |measured: &Measurement| ratio(Some(measured.transfers_per_s), Some(peak.transfers_per_s));
    let step = |factor: f64| steps.iter().find(|step| step.factor == factor);
    let mut figures = Vec::new();
    for (factor, bar) in FACTORS.into_iter().skip(1).zip([0.95, 0.9, 0.8]) {
        let claim = format!("goodput at {factor} × the peak ÷ peak");
        let goodput = step(factor).and_then(|step| of_peak(&step.measured));
        figures.push(Figure::new(&claim, "", Promise::AtLeast { bar, aim: 0.95 }, goodput));
    }
    let refusal_ms = |factor| step(factor).map(|step| step.measured.refusal_latency_us.p99 as f64 / 1e3);
    for factor in [2.0, 10.0] {
        let claim = format!("p99 of refusals at {factor} × the peak");
        figures.push(Figure::new(&claim, "ms", Promise::AtMost { bar: 10.0, aim: 5.0 }, refusal_ms(factor)));
    }
    figures.extend(step(10.0).map(memory).unwrap_or_default());
    let beside = ratio(Some(frozen.beside_frozen.transfers_per_s), Some(frozen.beside_working.transfers_per_s));
    let claim = "goodput of a shard beside a frozen one ÷ beside a working one";
    figures.push(Figure::new(claim, "", Promise::AtLeast { bar: 0.95, aim: 0.99 }, beside));
    let calm = Promise::AtMost { bar: 5.0, aim: 2.0 };
    let after_spike = calm_after(spike, SPIKE.from_s, SPIKE.to_s);
    figures.push(Figure::new("a spike is forgotten after", "s", calm, after_spike));
    let after_thaw = calm_after(retrying, FREEZE_S, THAW_S);
    figures.push(Figure::new("2 × load, retries, a frozen shard: calm after the thaw", "s", calm, after_thaw));
    figures
}

/// Growth of each service's memory from the second to the last third of a load.
fn memory(step: &OverloadStep) -> Vec<Figure> {
    let third = step.memory.len() / 3;
    let services: BTreeSet<&String> =
        step.memory.iter().flat_map(|memory| memory.keys()).filter(|name| !name.starts_with("postgres")).collect();
    let highest = |part: &[std::collections::BTreeMap<String, f64>], name: &str| {
        part.iter().filter_map(|memory| memory.get(name).copied()).max_by(f64::total_cmp)
    };
    services
        .into_iter()
        .map(|name| {
            let before = step.memory.get(third..2 * third).and_then(|part| highest(part, name));
            let after = step.memory.get(2 * third..).and_then(|part| highest(part, name));
            let growth = ratio(after, before).map(|ratio| (ratio - 1.0) * 100.0);
            let claim =
                format!("memory of {name} at {} × the peak: growth from the second to the last third", step.factor);
            Figure::new(&claim, "%", Promise::AtMost { bar: 5.0, aim: 2.0 }, growth)
        })
        .collect()
}

/// Seconds from `to_s` until all later windows are calm: without failures, and with about the latency of the windows before `from_s`. `None`:
/// the last window is not calm.
fn calm_after(windows: &[Window], from_s: f64, to_s: f64) -> Option<f64> {
    let p99_ms = |window: &Window| window.latency_us.p99 as f64 / 1e3;
    let before = median(windows.iter().filter(|window| window.from_s < from_s - 0.5).map(p99_ms).collect())?;
    let is_calm = |window: &&Window| window.failures == 0 && p99_ms(window) <= (CALM * before).max(CALM_MS);
    let calm: Vec<&Window> = windows.iter().rev().take_while(is_calm).collect();
    let first = calm.last()?;
    Some((first.from_s - to_s).max(0.0))
}

impl crate::bench::ExperimentReport for OverloadReport {
    fn is_right(&self) -> bool {
        self.verified
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn print(&self) -> anyhow::Result<()> {
        print_all(&self.summary(), Self::HEADER, &self.rows(), &self.figures)
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: overload");
        page.paragraph(&format!(
            "{}. {}. Two shards, one router that lets in {IN_FLIGHT} requests at once, single transfers within a shard over {CONNECTIONS} \
             connections, {} s for each load. {}",
            self.measured_at, self.machine, self.plan.seconds, self.limit
        ));
        page.paragraph(&self.summary());
        add_bars(&mut page, &self.figures);
        page.heading("Loads");
        page.table(Self::HEADER, self.rows().into_iter().map(|row| (Mark::Plain, row)));
        page.heading("Over time");
        page.charts(&self.charts());
        page.note(&format!(
            "The spike is {} × the peak upon {} × the peak. The retrying clients send a request again up to {RETRIES} times; together they \
             offer 2 × the peak until the frozen shard is thawed, and {AFTER_THAW} × the peak after that.",
            SPIKE.factor, SPIKE.base
        ));
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::tally::Latency;

    fn window(from_s: f64, p99_ms: u64, failures: u64) -> Window {
        let latency_us = Latency { p99: p99_ms * 1_000, ..Latency::default() };
        Window { from_s, transfers_per_s: 1.0, requests: 1, failures, latency_us }
    }

    #[test]
    fn calm_begins_with_the_first_window_after_which_all_are_calm() {
        let windows = |tail: &[(f64, u64, u64)]| {
            let before = [(0.0, 30, 0), (1.0, 30, 0), (2.0, 900, 5)];
            before.iter().chain(tail).map(|(at, p99, failures)| window(*at, *p99, *failures)).collect::<Vec<_>>()
        };
        let calm = |tail: &[(f64, u64, u64)]| calm_after(&windows(tail), 2.0, 3.0);
        assert_eq!(calm(&[(3.0, 30, 0), (4.0, 85, 0)]), Some(0.0));
        assert_eq!(calm(&[(3.0, 30, 0), (4.0, 30, 1), (5.0, 95, 0), (6.0, 30, 0)]), Some(3.0));
        assert_eq!(calm(&[(3.0, 30, 0), (4.0, 30, 1)]), None, "it did not become calm");
    }

    #[test]
    fn memory_that_grows_misses_its_bar() {
        let step = |last: f64| {
            let memory =
                |bytes: f64| BTreeMap::from([("router-0".to_owned(), bytes), ("postgres-s0".to_owned(), 1.0)]);
            let memory = [10.0, 10.0, 100.0, 100.0, last, last].map(memory).into();
            OverloadStep { factor: 10.0, measured: Measurement::default(), memory }
        };
        let flat = memory(&step(104.0));
        assert_eq!((flat.len(), flat[0].met), (1, true), "{flat:?}");
        assert!(!memory(&step(120.0))[0].met);
    }
}
