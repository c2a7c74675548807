//! Line charts and stacked bars as SVG, for reports that are one file.

use std::fmt::Write as _;

const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 46.0;
pub(crate) const COLOURS: [&str; 6] = ["#2563a8", "#c2571a", "#2e8540", "#8e3b8e", "#7a6a00", "#5b616b"];
/// About so many lines cross the plot.
const TICKS: f64 = 5.0;

/// How the horizontal axis is divided.
#[derive(Debug, Clone, PartialEq)]
pub enum Axis {
    Linear,
    /// Equal factors have equal lengths. Points at 0 or below are left out.
    Log,
    /// The points of each series are at 0, 1, 2 …, under these words.
    Words(Vec<String>),
}

/// One line of a chart.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A line chart. The vertical axis begins at 0.
#[derive(Debug, Clone)]
pub struct Chart {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub x_axis: Axis,
    pub series: Vec<Series>,
}

/// Bars of several parts on top of each other.
#[derive(Debug, Clone)]
pub struct Bars {
    pub title: String,
    pub y_label: String,
    /// The names of the parts, from bottom to top.
    pub parts: Vec<String>,
    /// A name and the value of each part.
    pub bars: Vec<(String, Vec<f64>)>,
}

impl Series {
    pub fn new(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.to_owned(), points: points.into_iter().collect() }
    }
}

impl Chart {
    /// A chart over seconds.
    pub fn over_seconds(title: &str, y_label: &str, series: Vec<Series>) -> Self {
        Self {
            title: title.to_owned(),
            x_label: "seconds".to_owned(),
            y_label: y_label.to_owned(),
            x_axis: Axis::Linear,
            series,
        }
    }

    /// The chart as an SVG element.
    pub fn svg(&self) -> String {
        self.svg_with_marks(&[])
    }

    /// The chart with vertical lines at these places, each with a text.
    pub fn svg_with_marks(&self, marks: &[(f64, String)]) -> String {
        let visible = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && (self.x_axis != Axis::Log || x > 0.0);
        let points = || self.series.iter().flat_map(|series| &series.points).copied().filter(visible);
        let top = nice_top(points().map(|(_, y)| y).fold(0.0, f64::max));
        let (first, last) = points().fold((f64::MAX, f64::MIN), |(first, last), (x, _)| (first.min(x), last.max(x)));
        let x_of = |x: f64| match &self.x_axis {
            Axis::Linear => across(share(x, first, last)),
            Axis::Log => across(share(x.ln(), first.ln(), last.ln())),
            Axis::Words(words) => across((x + 0.5) / words.len().max(1) as f64),
        };
        let mut svg = frame(&self.title, &self.x_label, &self.y_label, top);
        for (place, text) in self.x_ticks(first, last) {
            label(&mut svg, x_of(place), HEIGHT - BOTTOM + 16.0, "middle", &text);
        }
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let places: Vec<(f64, f64)> =
                series.points.iter().copied().filter(visible).map(|(x, y)| (x_of(x), down(y, top))).collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let path = path.join(" ");
            let _ = write!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{path}\"/>");
            // Dots would run into each other on a long line.
            if places.len() <= 20 {
                for (x, y) in places {
                    let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
                }
            }
        }
        for (number, (x, text)) in marks.iter().enumerate().filter(|(_, (x, _))| (first..=last).contains(x)) {
            let (x, y) = (x_of(*x), TOP + 10.0 + 11.0 * (number % 6) as f64);
            let (upper, lower) = (TOP, HEIGHT - BOTTOM);
            let _ = write!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{upper}\" y2=\"{lower}\" stroke=\"#999\" stroke-dasharray=\"3 3\"/>"
            );
            label(&mut svg, x + 3.0, y, "start", text);
        }
        legend(&mut svg, self.series.iter().map(|series| series.name.as_str()));
        svg.push_str("</svg>");
        svg
    }

    /// Places on the horizontal axis and their texts.
    fn x_ticks(&self, first: f64, last: f64) -> Vec<(f64, String)> {
        match &self.x_axis {
            Axis::Words(words) => (0..).zip(words).map(|(place, word)| (f64::from(place), word.clone())).collect(),
            // A measured value each.
            Axis::Log => {
                let points = self.series.iter().flat_map(|series| &series.points);
                let mut measured: Vec<f64> = points.map(|(x, _)| *x).filter(|x| *x > 0.0).collect();
                measured.sort_by(f64::total_cmp);
                measured.dedup();
                measured.into_iter().map(|x| (x, number(x))).collect()
            }
            Axis::Linear if first > last => Vec::new(),
            Axis::Linear => {
                let step = nice_step((last - first).max(f64::MIN_POSITIVE) / TICKS);
                let begin = (first / step).ceil();
                let places = (0..20).map(|n| (begin + f64::from(n)) * step);
                places.take_while(|place| *place <= last + step / 1e6).map(|place| (place, number(place))).collect()
            }
        }
    }
}

impl Bars {
    /// The bars as an SVG element.
    pub fn svg(&self) -> String {
        let total = |values: &[f64]| values.iter().filter(|value| value.is_finite()).sum::<f64>();
        let top = nice_top(self.bars.iter().map(|(_, values)| total(values)).fold(0.0, f64::max));
        let mut svg = frame(&self.title, "", &self.y_label, top);
        let slot = (WIDTH - LEFT - RIGHT) / self.bars.len().max(1) as f64;
        let width = (slot * 0.6).min(60.0);
        for (place, (name, values)) in self.bars.iter().enumerate() {
            let middle = LEFT + (place as f64 + 0.5) * slot;
            let mut below = 0.0;
            for (value, colour) in values.iter().zip(COLOURS.iter().cycle()) {
                let value = if value.is_finite() { *value } else { 0.0 };
                let (upper, lower) = (down(below + value, top), down(below, top));
                let _ = write!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{upper:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                    middle - width / 2.0,
                    lower - upper,
                );
                below += value;
            }
            label(&mut svg, middle, down(below, top) - 4.0, "middle", &number(below));
            // Two lines, so that names do not run into each other.
            let line = if self.bars.len() > 4 && place % 2 == 1 { 28.0 } else { 15.0 };
            label(&mut svg, middle, HEIGHT - BOTTOM + line, "middle", name);
        }
        legend(&mut svg, self.parts.iter().map(String::as_str));
        svg.push_str("</svg>");
        svg
    }
}

/// A number in few characters: 0.25, 12.5, 4,200, 380k, 1.2M.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    if size >= 1e6 {
        format!("{}M", trimmed(format!("{:.2}", value / 1e6)))
    } else if size >= 10_000.0 {
        format!("{}k", trimmed(format!("{:.1}", value / 1e3)))
    } else if size >= 100.0 {
        let whole = format!("{value:.0}");
        let digits = whole.trim_start_matches('-').len();
        if digits > 3 { format!("{},{}", &whole[..whole.len() - 3], &whole[whole.len() - 3..]) } else { whole }
    } else if size >= 10.0 {
        trimmed(format!("{value:.1}"))
    } else {
        trimmed(format!("{value:.2}"))
    }
}

/// Text as it may stand in HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn frame(title: &str, x_label: &str, y_label: &str, top: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#333\"><title>{}</title>",
        escape(title)
    );
    let _ = write!(svg, "<text x=\"{LEFT}\" y=\"16\" font-size=\"13\" font-weight=\"600\">{}</text>", escape(title));
    let step = nice_step(top / TICKS);
    for line in 0..=(top / step).round() as usize {
        let value = line as f64 * step;
        let y = down(value, top);
        let _ =
            write!(svg, "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT);
        label(&mut svg, LEFT - 6.0, y + 4.0, "end", &number(value));
    }
    label(&mut svg, f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 8.0, "middle", x_label);
    let middle = f64::midpoint(TOP, HEIGHT - BOTTOM);
    let _ = write!(
        svg,
        "<text transform=\"translate(14 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        escape(y_label)
    );
    svg
}

fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) {
    let mut x = LEFT;
    for (name, colour) in names.zip(COLOURS.iter().cycle()) {
        let _ = write!(svg, "<rect x=\"{x:.1}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
        label(svg, x + 14.0, 35.0, "start", name);
        x += 28.0 + 6.2 * name.chars().count() as f64;
    }
}

pub(crate) fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text));
}

fn share(value: f64, first: f64, last: f64) -> f64 {
    if last > first { (value - first) / (last - first) } else { 0.5 }
}

fn across(share: f64) -> f64 {
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn down(value: f64, top: f64) -> f64 {
    HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)
}

/// The next of 1, 2 and 5 times a power of ten.
pub(crate) fn nice_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= step * 0.999_999).unwrap_or(10.0);
    digit * power
}

/// A whole number of nice steps that is not below the highest value.
pub(crate) fn nice_top(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let step = nice_step(highest / TICKS);
    (highest / step).ceil() * step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x_axis: Axis, points: &[(f64, f64)]) -> Chart {
        Chart {
            title: "a < b".to_owned(),
            x_label: "x".to_owned(),
            y_label: "y".to_owned(),
            x_axis,
            series: vec![Series::new("one", points.iter().copied())],
        }
    }

    #[test]
    fn steps_and_tops_are_round_numbers() {
        for (step, nice) in [(1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (7.0, 10.0), (0.03, 0.05), (2_100.0, 5_000.0)] {
            assert!((nice_step(step) - nice).abs() < nice / 1e6, "{step}: {}", nice_step(step));
        }
        for highest in [0.7, 1.0, 13.0, 99.0, 412_345.0] {
            let top = nice_top(highest);
            assert!(top >= highest && top <= highest * 1.5, "{highest}: {top}");
        }
        assert_eq!(nice_top(0.0), 1.0);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.25, "0.25"),
            (12.5, "12.5"),
            (950.0, "950"),
            (4_200.0, "4,200"),
            (380_000.0, "380k"),
            (12_345.0, "12.3k"),
            (1_200_000.0, "1.2M"),
            (-5_000.0, "-5,000"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn points_are_placed_by_their_axis() {
        let svg = chart(Axis::Linear, &[(0.0, 0.0), (5.0, 5.0), (10.0, 10.0)]).svg();
        assert!(svg.contains(&format!("points=\"{LEFT:.1},254.0 337.0,150.0 604.0,46.0\"")), "{svg}");
        assert!(svg.contains("a &lt; b"));
        let svg = chart(Axis::Log, &[(0.0, 1.0), (1.0, 1.0), (10.0, 1.0), (100.0, 1.0)]).svg();
        assert!(svg.contains("points=\"70.0,46.0 337.0,46.0 604.0,46.0\""), "a point at 0 has no place: {svg}");
        let words = Axis::Words(vec!["uniform".to_owned(), "hot".to_owned()]);
        let svg = chart(words, &[(0.0, 1.0), (1.0, 1.0)]).svg();
        assert!(svg.contains("points=\"203.5,46.0 470.5,46.0\"") && svg.contains(">hot<"), "{svg}");
    }

    #[test]
    fn marks_stand_at_their_places() {
        let marks = [(5.0, "a < b".to_owned()), (50.0, "outside".to_owned())];
        let svg = chart(Axis::Linear, &[(0.0, 1.0), (10.0, 1.0)]).svg_with_marks(&marks);
        assert!(svg.contains("x1=\"337.0\"") && svg.contains("a &lt; b") && !svg.contains("outside"), "{svg}");
    }

    #[test]
    fn a_chart_without_points_is_still_a_chart() {
        for axis in [Axis::Linear, Axis::Log, Axis::Words(Vec::new())] {
            let svg = chart(axis, &[]).svg();
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
        }
        let svg = chart(Axis::Linear, &[(1.0, 2.0)]).svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn parts_stand_on_each_other() {
        let bars = Bars {
            title: "t".to_owned(),
            y_label: "y".to_owned(),
            parts: vec!["a".to_owned(), "b".to_owned()],
            bars: vec![("first".to_owned(), vec![5.0, 5.0])],
        };
        let svg = bars.svg();
        assert!(svg.contains("y=\"150.0\" width=\"60.0\" height=\"104.0\""), "{svg}");
        assert!(svg.contains("y=\"46.0\" width=\"60.0\" height=\"104.0\""), "{svg}");
    }
}
