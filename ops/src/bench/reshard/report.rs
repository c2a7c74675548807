//! The result of `shardctl bench reshard`, as JSON and as a page.

use serde::Serialize;
use telemetry::clock;

use super::{CutOver, Phase, ReshardPlan, clients::ClientCounts};
use crate::{
    bench::{
        chart::{Chart, Series},
        figures::{Figure, Promise, add_bars, print_figures},
        machine::Machine,
        page::{Mark, Page},
        subject::Sample,
        tally::Window,
    },
    output,
    resharding::view::wait_ms,
};

/// The number of failures that a report shows.
const SHOWN: usize = 20;

#[derive(Debug, Serialize)]
pub struct ReshardReport {
    pub plan: ReshardPlan,
    pub measured_at: String,
    pub machine: Machine,
    pub peak_transfers_per_s: f64,
    pub clients: ClientCounts,
    /// The first wrong or missing answers.
    pub failures: Vec<String>,
    pub failure_count: u64,
    /// Whether `shardctl verify` found no violation and the sum of all accounts is unchanged.
    pub books_balance: bool,
    pub phases: Vec<Phase>,
    pub cut_overs: Vec<CutOver>,
    /// Operations that waited in a router for a slot, and their waits.
    pub waits: Waits,
    pub figures: Vec<Figure>,
    /// Transfers a second, and the latency of single transfers, by second.
    pub timeline: Vec<Second>,
}

/// One second of the load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Second {
    pub at_s: f64,
    pub transfers_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// The waits of operations in routers, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Waits {
    pub operations: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Waits {
    /// `waits` has microseconds and numbers of operations, in ascending order.
    fn of(waits: &[(u64, u64)]) -> Self {
        let operations: u64 = waits.iter().map(|(_, count)| count).sum();
        let at = |share: f64| wait_ms(waits, share).unwrap_or(0.0);
        Self { operations, p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

impl ReshardReport {
    #[allow(clippy::too_many_arguments, reason = "each is a part of the report")]
    pub fn new(
        plan: ReshardPlan,
        peak_transfers_per_s: f64,
        samples: &[Sample; 2],
        phases: Vec<Phase>,
        cut_overs: Vec<CutOver>,
        waits: Vec<(u64, u64)>,
        clients: ClientCounts,
        books_balance: bool,
    ) -> Self {
        let measured: Vec<_> = samples.iter().filter_map(|sample| sample.ours.as_ref()).collect();
        let mut failures: Vec<String> = clients.failures.iter().take(SHOWN).cloned().collect();
        let mut failure_count = clients.failures.len() as u64;
        for (code, count) in measured.iter().flat_map(|ours| &ours.others) {
            failures.push(format!("{count} requests of the load ended with {code}"));
            failure_count += count;
        }
        let windows: Vec<&[Window]> = measured.iter().map(|ours| ours.windows.as_slice()).collect();
        let figures = figures(&cut_overs, failure_count);
        Self {
            plan,
            measured_at: clock::format_rfc3339(clock::now_us()),
            machine: Machine::this(),
            peak_transfers_per_s,
            failures,
            failure_count,
            books_balance,
            phases,
            cut_overs,
            waits: Waits::of(&waits),
            figures,
            timeline: timeline(&windows),
            clients,
        }
    }

    pub fn summary(&self) -> String {
        let ClientCounts { holds, captures, reversals, replays, statement_entries, lists, .. } = &self.clients;
        let sum = |of: fn(&CutOver) -> u64| self.cut_overs.iter().map(of).sum::<u64>();
        format!(
            "{} to {} shards and back with {} accounts: {} cut-overs, {} bookings and {} accounts copied ({:.0} MB). The load was half of \
             {:.0} transfers/s. Beside it: {holds} holds, {captures} captures, {reversals} reversals, {replays} old transfers sent again with the same \
             answer, {statement_entries} entries of statements, {lists} lists and sums. {} answers were wrong or missing. shardctl verify found {}. {} \
             operations waited in a router for a slot: p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms.",
            self.plan.shards,
            self.plan.shards + self.plan.added,
            self.plan.accounts,
            self.cut_overs.len(),
            sum(|it| it.bookings),
            sum(|it| it.accounts),
            sum(|it| it.bytes) as f64 / 1e6,
            self.peak_transfers_per_s,
            self.failure_count,
            if self.books_balance {
                "the ledger clean, and the sum did not change"
            } else {
                "a VIOLATION, or the sum CHANGED"
            },
            self.waits.operations,
            self.waits.p50_ms,
            self.waits.p99_ms,
            self.waits.max_ms,
        )
    }

    /// The pause that a share of the cut-overs did not exceed.
    pub fn distribution(&self) -> Vec<[String; 2]> {
        let pauses = seen(&self.cut_overs);
        let at = |share: f64| at(&pauses, share).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        [("50 %", 0.5), ("75 %", 0.75), ("90 %", 0.9), ("95 %", 0.95), ("99 %", 0.99), ("100 %", 1.0)]
            .map(|(name, share)| [name.to_owned(), at(share)])
            .to_vec()
    }

    fn charts(&self) -> Vec<String> {
        let marks: Vec<(f64, String)> =
            self.phases.iter().filter(|phase| phase.name != "plan").map(|it| (it.from_s, it.name.clone())).collect();
        let over_time = |title: &str, y_label: &str, series: Vec<Series>| {
            Chart::over_seconds(title, y_label, series).svg_with_marks(&marks)
        };
        let line =
            |name: &str, of: fn(&Second) -> f64| Series::new(name, self.timeline.iter().map(|it| (it.at_s, of(it))));
        let pauses = self.cut_overs.iter().filter_map(|it| Some((it.at_s, it.seen_by_clients_ms?)));
        vec![
            over_time("Throughput", "transfers/s", vec![line("transfers/s", |it| it.transfers_per_s)]),
            over_time(
                "Latency of single transfers",
                "ms",
                vec![line("p50", |it| it.p50_ms), line("p99", |it| it.p99_ms)],
            ),
            over_time("Longest latency in each second", "ms", vec![line("max", |it| it.max_ms)]),
            over_time("Pause of each cut-over, as clients saw it", "ms", vec![Series::new("pause", pauses)]),
        ]
    }
}

/// Adds up single transfers and batches by second. The latency is the latency of the single transfers.
fn timeline(windows: &[&[Window]]) -> Vec<Second> {
    let Some((singles, others)) = windows.split_first() else { return Vec::new() };
    let each = singles.iter().enumerate().map(|(place, window)| Second {
        at_s: window.from_s,
        transfers_per_s: window.transfers_per_s
            + others.iter().filter_map(|windows| windows.get(place)).map(|it| it.transfers_per_s).sum::<f64>(),
        p50_ms: window.latency_us.p50 as f64 / 1e3,
        p99_ms: window.latency_us.p99 as f64 / 1e3,
        max_ms: window.latency_us.max as f64 / 1e3,
    });
    each.collect()
}

/// The pauses that clients saw, in ascending order.
fn seen(cut_overs: &[CutOver]) -> Vec<f64> {
    let mut pauses: Vec<f64> = cut_overs.iter().filter_map(|it| it.seen_by_clients_ms).collect();
    pauses.sort_by(f64::total_cmp);
    pauses
}

/// The value that a share of the sorted values does not exceed.
fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn figures(cut_overs: &[CutOver], failures: u64) -> Vec<Figure> {
    let pauses = seen(cut_overs);
    vec![
        Figure::new(
            "pause of a cut-over as clients saw it, p50",
            "ms",
            Promise::AtMost { bar: 50.0, aim: 30.0 },
            at(&pauses, 0.5),
        ),
        Figure::new(
            "pause of a cut-over as clients saw it, p99",
            "ms",
            Promise::AtMost { bar: 250.0, aim: 100.0 },
            at(&pauses, 0.99),
        ),
        Figure::new("wrong or missing answers", "", Promise::AtMost { bar: 0.0, aim: 0.0 }, Some(failures as f64)),
    ]
}

impl crate::bench::ExperimentReport for ReshardReport {
    fn is_right(&self) -> bool {
        self.books_balance && self.failure_count == 0
    }

    fn figures(&self) -> &[Figure] {
        &self.figures
    }

    fn print(&self) -> anyhow::Result<()> {
        output::data(&self.summary())?;
        for failure in &self.failures {
            output::data(&format!("FAILED: {failure}"))?;
        }
        output::data("\npause of each cut-over, as clients saw it:")?;
        output::table(["of the cut-overs", "at most ms"], &self.distribution())?;
        output::data("")?;
        print_figures(&self.figures)
    }

    fn page(&self) -> String {
        let mut page = Page::new("Shardledger: slots move under load");
        page.paragraph(&format!("{}. {}.", self.measured_at, self.machine));
        page.paragraph(&self.summary());
        for failure in &self.failures {
            page.note(&format!("FAILED: {failure}"));
        }
        add_bars(&mut page, &self.figures);
        page.heading("Over time");
        page.charts(&self.charts());
        page.heading("Pause of each cut-over, as clients saw it");
        page.table(
            ["of the cut-overs", "at most ms"],
            self.distribution().into_iter().map(|cells| (Mark::Plain, cells)),
        );
        page.heading("Cut-overs");
        let header =
            ["at s", "from", "to", "slots", "bookings", "accounts", "MB", "pause ms", "clients ms", "lane locked ms"];
        page.table(
            header,
            self.cut_overs.iter().map(|it| {
                let cells = [
                    format!("{:.1}", it.at_s),
                    it.from.clone(),
                    it.to.clone(),
                    it.slots.to_string(),
                    it.bookings.to_string(),
                    it.accounts.to_string(),
                    format!("{:.1}", it.bytes as f64 / 1e6),
                    format!("{:.1}", it.pause_ms),
                    it.seen_by_clients_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")),
                    format!("{:.1}", it.source_locked_ms),
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
    use crate::bench::ExperimentReport as _;

    fn cut_over(seen: Option<f64>) -> CutOver {
        CutOver {
            from: "s0".to_owned(),
            to: "s1".to_owned(),
            slots: 1,
            bookings: 2,
            accounts: 3,
            bytes: 4,
            at_s: 5.0,
            pause_ms: 6.0,
            source_locked_ms: 0.7,
            seen_by_clients_ms: seen,
        }
    }

    #[test]
    fn the_pauses_make_a_distribution_and_failures_miss_the_bar() {
        let plan = ReshardPlan { shards: 4, added: 4, accounts: 10, peak_seconds: 1, seed: 1 };
        let cut_overs = vec![cut_over(Some(40.0)), cut_over(None), cut_over(Some(20.0)), cut_over(Some(90.0))];
        let none = [Sample::default(), Sample::default()];
        let waits = vec![(10_000, 3), (90_000, 1)];
        let report = ReshardReport::new(
            plan.clone(),
            100.0,
            &none,
            Vec::new(),
            cut_overs.clone(),
            waits,
            ClientCounts::default(),
            true,
        );
        assert_eq!([report.waits.p50_ms, report.waits.p99_ms], [10.0, 90.0]);
        assert_eq!(report.distribution()[0], ["50 %".to_owned(), "40.0".to_owned()]);
        assert_eq!(report.distribution()[5][1], "90.0");
        assert!(report.is_right() && report.page().contains("4 cut-overs"));
        let wrong = ClientCounts { failures: vec!["x".to_owned()], ..ClientCounts::default() };
        let report = ReshardReport::new(plan.clone(), 100.0, &none, Vec::new(), cut_overs, Vec::new(), wrong, true);
        assert!(!report.is_right() && report.summary().contains("1 answers were wrong"));
    }
}
