//! Samples of several rounds, the figures that are computed from them, and the bars of the figures.

use std::collections::BTreeMap;

use report_page::page::{Mark, Page};
use serde::Serialize;

use super::{machine::PerTransfer, subject::Sample, tally::Latency};
use crate::output;

/// The samples of each run, with one sample for each round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Samples(pub BTreeMap<String, Vec<Sample>>);

impl Samples {
    pub fn add(&mut self, run: &str, sample: Sample) {
        self.0.entry(run.to_owned()).or_default().push(sample);
    }

    /// The median over the rounds of a value that a sample may lack.
    pub fn median_of(&self, run: &str, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.0.get(run)?.iter().filter_map(value).collect())
    }

    /// Transfers a second.
    pub fn rate(&self, run: &str) -> Option<f64> {
        self.median_of(run, |sample| Some(sample.transfers_per_s))
    }

    /// The highest rate of these runs, in transfers a second.
    pub fn best_rate(&self, runs: &[&str]) -> Option<f64> {
        runs.iter().filter_map(|run| self.rate(run)).max_by(f64::total_cmp)
    }

    pub fn latency(&self, run: &str, of: impl Fn(&Latency) -> u64) -> Option<f64> {
        self.median_of(run, |sample| sample.latency_us.as_ref().map(|latency| of(latency) as f64))
    }

    pub fn cpu(&self, run: &str, of: impl Fn(&PerTransfer) -> f64) -> Option<f64> {
        self.median_of(run, |sample| Some(of(&sample.cpu_us_per_transfer)))
    }

    pub fn disk(&self, run: &str) -> Option<f64> {
        self.median_of(run, |sample| sample.disk_bytes_per_transfer)
    }
}

/// The median of some values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[odd / 2]),
        even => Some(f64::midpoint(values[even / 2 - 1], values[even / 2])),
    }
}

/// One value divided by another. `None` unless both were measured.
pub fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one? / other.filter(|other| *other > 0.0)?)
}

/// The bar and the aim of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Promise {
    AtLeast { bar: f64, aim: f64 },
    AtMost { bar: f64, aim: f64 },
}

/// A figure and whether it meets its bar.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    pub claim: String,
    pub unit: &'static str,
    /// `None` if it was not measured.
    pub value: Option<f64>,
    pub at_least: bool,
    pub bar: f64,
    pub aim: f64,
    pub met: bool,
    pub aim_met: bool,
}

/// The header of a table of [`Figure::cells`].
pub const FIGURE_HEADER: [&str; 5] = ["figure", "measured", "bar", "aim", ""];

/// Adds the figures and their bars to a page, under a heading.
pub fn add_bars(page: &mut Page, figures: &[Figure]) {
    page.heading("Bars").table(FIGURE_HEADER, figures.iter().map(|figure| (figure.mark(), figure.cells())));
}

/// Prints the figures against their bars, as a table.
pub fn print_figures(figures: &[Figure]) -> anyhow::Result<()> {
    let rows: Vec<[String; 5]> = figures.iter().map(Figure::cells).collect();
    output::table(FIGURE_HEADER, &rows)
}

/// Prints a summary, a table, and the figures against their bars.
pub fn print_all<const COLUMNS: usize>(
    summary: &str,
    header: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
    figures: &[Figure],
) -> anyhow::Result<()> {
    output::data(&format!("{summary}\n"))?;
    output::table(header, rows)?;
    output::data("")?;
    print_figures(figures)
}

/// Whether every figure was measured and meets its bar.
pub fn all_met(figures: &[Figure]) -> bool {
    figures.iter().all(|figure| figure.met)
}

impl Figure {
    pub fn new(claim: &str, unit: &'static str, promise: Promise, value: Option<f64>) -> Self {
        let (at_least, bar, aim) = match promise {
            Promise::AtLeast { bar, aim } => (true, bar, aim),
            Promise::AtMost { bar, aim } => (false, bar, aim),
        };
        let meets = |limit: f64| value.is_some_and(|value| if at_least { value >= limit } else { value <= limit });
        Self { claim: claim.to_owned(), unit, value, at_least, bar, aim, met: meets(bar), aim_met: meets(aim) }
    }

    /// The cells of a table: claim, value, bar, aim, verdict.
    pub fn cells(&self) -> [String; 5] {
        let with_unit = |value: f64| {
            let number = if value.abs() < 1_000.0 { format!("{value:.2}") } else { format!("{value:.0}") };
            if self.unit.is_empty() { number } else { format!("{number} {}", self.unit) }
        };
        let limit = |value: f64| {
            let number = format!("{value}");
            let number = if self.unit.is_empty() { number } else { format!("{number} {}", self.unit) };
            if self.at_least { number } else { format!("≤ {number}") }
        };
        let verdict = match (self.value, self.met, self.aim_met) {
            (None, ..) => "not measured",
            (_, true, true) => "met, aim met",
            (_, true, false) => "met",
            (_, false, _) => "MISSED",
        };
        let value = self.value.map_or_else(|| "-".to_owned(), with_unit);
        [self.claim.clone(), value, limit(self.bar), limit(self.aim), verdict.to_owned()]
    }

    pub fn mark(&self) -> Mark {
        if self.met { Mark::Met } else { Mark::Missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rates: &[f64]) -> Vec<Sample> {
        rates.iter().map(|&transfers_per_s| Sample { transfers_per_s, ..Sample::default() }).collect()
    }

    #[test]
    fn medians_shrug_off_one_bad_round() {
        assert_eq!(median(vec![3.0, 100.0, 1.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 2.0]), Some(3.0));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn the_better_of_the_others_counts() {
        let measured = Samples(BTreeMap::from([
            ("ours".to_owned(), samples(&[40.0])),
            ("few".to_owned(), samples(&[8.0])),
            ("many".to_owned(), samples(&[10.0])),
        ]));
        assert_eq!(ratio(measured.rate("ours"), measured.best_rate(&["few", "many", "absent"])), Some(4.0));
        assert_eq!(ratio(measured.rate("ours"), measured.rate("absent")), None);
        assert_eq!(measured.disk("ours"), None);
    }

    #[test]
    fn a_figure_meets_its_bar_from_the_right_side() {
        let least = |value| Figure::new("c", "", Promise::AtLeast { bar: 4.0, aim: 6.0 }, value);
        assert_eq!([Some(3.9), Some(4.0), Some(6.0), None].map(|value| least(value).met), [false, true, true, false]);
        assert!(least(Some(6.0)).aim_met && !least(Some(5.0)).aim_met);
        let most = |value| Figure::new("c", "B", Promise::AtMost { bar: 330.0, aim: 280.0 }, Some(value));
        assert_eq!([331.0, 330.0, 270.0].map(|value| most(value).met), [false, true, true]);
        assert_eq!(most(300.0).cells(), ["c", "300.00 B", "≤ 330 B", "≤ 280 B", "met"]);
        assert_eq!(least(None).cells()[4], "not measured");
    }
}
