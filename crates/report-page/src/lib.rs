//! Reports as one HTML file that needs nothing else: [`page`] has text and tables, [`chart`] draws lines and bars as SVG, and
//! [`timeline`] draws a run with the events in it. No I/O.

pub mod chart;
pub mod page;
pub mod timeline;
