//! A run over time: panels of lines above each other on one time axis, and the events of the run as bars below, with their shadows in
//! the panels.

use std::fmt::Write as _;

use crate::chart::{COLOURS, Series, escape, label, nice_step, nice_top, number};

const WIDTH: f64 = 1240.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 20.0;
const TITLE: f64 = 26.0;
/// The legend above each panel.
const LEGEND: f64 = 22.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 14.0;
/// The bars of one kind of event.
const ROW: f64 = 17.0;
const AXIS: f64 = 34.0;
/// About so many lines cross a panel.
const LINES: f64 = 4.0;
/// About so many places are named on the time axis.
const PLACES: f64 = 12.0;
/// An event is at least so wide, however short it was.
const NARROWEST: f64 = 2.0;

/// What is drawn.
#[derive(Debug, Clone)]
pub struct Timeline {
    pub title: String,
    /// The end of the time axis; it begins at 0.
    pub seconds: f64,
    pub panels: Vec<Panel>,
    /// One row for each kind, in the order of their first events.
    pub events: Vec<Event>,
}

/// Lines over the time, with a vertical axis of their own that begins at 0.
#[derive(Debug, Clone)]
pub struct Panel {
    pub label: String,
    /// In seconds.
    pub series: Vec<Series>,
}

/// Something that went on for a time.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: String,
    pub from_s: f64,
    pub to_s: f64,
    /// Shown where the pointer rests on the event.
    pub detail: String,
}

impl Timeline {
    /// The timeline as an SVG element.
    pub fn svg(&self) -> String {
        let kinds = self.kinds();
        let rows_top = TITLE + self.panels.len() as f64 * (LEGEND + PANEL + GAP);
        let axis = rows_top + kinds.len() as f64 * ROW;
        let height = axis + AXIS;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
             font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#333\"><title>{}</title>",
            escape(&self.title)
        );
        let _ = write!(
            svg,
            "<text x=\"{LEFT}\" y=\"16\" font-size=\"13\" font-weight=\"600\">{}</text>",
            escape(&self.title)
        );
        for (place, panel) in self.panels.iter().enumerate() {
            let top = TITLE + place as f64 * (LEGEND + PANEL + GAP) + LEGEND;
            self.shadows(&mut svg, &kinds, top);
            self.panel(&mut svg, panel, top);
        }
        self.rows(&mut svg, &kinds, rows_top);
        self.time_axis(&mut svg, axis);
        svg.push_str("</svg>");
        svg
    }

    fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = Vec::new();
        for event in &self.events {
            if !kinds.contains(&event.kind.as_str()) {
                kinds.push(&event.kind);
            }
        }
        kinds
    }

    /// The events behind the lines of a panel.
    fn shadows(&self, svg: &mut String, kinds: &[&str], top: f64) {
        for event in &self.events {
            let (x, width) = self.extent(event);
            let colour = colour_of(kinds, event);
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{PANEL}\" fill=\"{colour}\" opacity=\"0.13\"/>"
            );
        }
    }

    fn panel(&self, svg: &mut String, panel: &Panel, top: f64) {
        let points = panel.series.iter().flat_map(|series| &series.points).filter(|point| is_finite(point));
        let highest = nice_top(points.map(|(_, y)| *y).fold(0.0, f64::max));
        let y_of = |value: f64| top + PANEL - value / highest * PANEL;
        let step = nice_step(highest / LINES);
        for line in (0..20_u8).map(|line| f64::from(line) * step).take_while(|line| *line <= highest * 1.001) {
            let y = y_of(line);
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>",
                WIDTH - RIGHT
            );
            label(svg, LEFT - 6.0, y + 4.0, "end", &number(line));
        }
        let _ = write!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"600\">{}</text>",
            top - 8.0,
            escape(&panel.label)
        );
        let mut x = LEFT + 24.0 + 6.6 * panel.label.chars().count() as f64;
        for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
                top - 17.0
            );
            label(svg, x + 14.0, top - 8.0, "start", &series.name);
            x += 28.0 + 6.2 * series.name.chars().count() as f64;
            let places: Vec<String> = series
                .points
                .iter()
                .filter(|point| is_finite(point))
                .map(|(at, value)| format!("{:.1},{:.1}", self.x_of(*at), y_of(*value)))
                .collect();
            let places = places.join(" ");
            let _ =
                write!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{places}\"/>");
        }
    }

    /// The events, a row for each kind.
    fn rows(&self, svg: &mut String, kinds: &[&str], top: f64) {
        for (row, kind) in kinds.iter().enumerate() {
            label(svg, LEFT - 6.0, top + row as f64 * ROW + 12.0, "end", kind);
        }
        for event in &self.events {
            let (x, width) = self.extent(event);
            let row = kinds.iter().position(|kind| *kind == event.kind).unwrap_or(0);
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"><title>{}</title></rect>",
                top + row as f64 * ROW + 2.0,
                ROW - 4.0,
                colour_of(kinds, event),
                escape(&format!("{}, {:.1} s to {:.1} s: {}", event.kind, event.from_s, event.to_s, event.detail))
            );
        }
    }

    fn time_axis(&self, svg: &mut String, y: f64) {
        let _ =
            write!(svg, "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#999\"/>", WIDTH - RIGHT);
        let step = nice_step(self.seconds.max(f64::MIN_POSITIVE) / PLACES);
        for place in (0..40_u8).map(|place| f64::from(place) * step).take_while(|place| *place <= self.seconds) {
            label(svg, self.x_of(place), y + 14.0, "middle", &number(place));
        }
        label(svg, f64::midpoint(LEFT, WIDTH - RIGHT), y + 28.0, "middle", "seconds");
    }

    fn extent(&self, event: &Event) -> (f64, f64) {
        let from = self.x_of(event.from_s);
        (from, (self.x_of(event.to_s) - from).max(NARROWEST))
    }

    fn x_of(&self, at_s: f64) -> f64 {
        let share = if self.seconds > 0.0 { (at_s / self.seconds).clamp(0.0, 1.0) } else { 0.0 };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }
}

fn colour_of(kinds: &[&str], event: &Event) -> &'static str {
    // The lines of a panel take the colours in their order; events begin at the other end.
    let kind = kinds.iter().position(|kind| *kind == event.kind).unwrap_or(0);
    COLOURS[COLOURS.len() - 1 - kind % COLOURS.len()]
}

fn is_finite((at, value): &(f64, f64)) -> bool {
    at.is_finite() && value.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, from_s: f64, to_s: f64) -> Event {
        Event { kind: kind.to_owned(), from_s, to_s, detail: "shard 1 < 2".to_owned() }
    }

    fn timeline(points: &[(f64, f64)], events: Vec<Event>) -> String {
        let panel = Panel { label: "posted/s".to_owned(), series: vec![Series::new("s0", points.iter().copied())] };
        Timeline { title: "round 1".to_owned(), seconds: 10.0, panels: vec![panel], events }.svg()
    }

    #[test]
    fn points_and_events_share_one_time_axis() {
        let svg = timeline(&[(0.0, 0.0), (5.0, 10.0)], vec![event("kill-node", 5.0, 7.5), event("freeze", 1.0, 1.0)]);
        // Half of the plot is at 130 + 1090 / 2.
        assert!(svg.contains("points=\"130.0,198.0 675.0,48.0\""), "{svg}");
        assert!(svg.contains("<rect x=\"675.0\" y=\"48.0\" width=\"272.5\""), "the shadow: {svg}");
        assert!(svg.contains("<rect x=\"675.0\" y=\"214.0\" width=\"272.5\" height=\"13\""), "the bar: {svg}");
        assert!(svg.contains("<rect x=\"239.0\" y=\"231.0\" width=\"2.0\""), "a second row: {svg}");
        assert!(svg.contains("shard 1 &lt; 2") && svg.contains(">kill-node<"), "{svg}");
    }

    #[test]
    fn a_run_without_points_and_events_is_still_drawn() {
        let svg = timeline(&[], Vec::new());
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
    }
}
