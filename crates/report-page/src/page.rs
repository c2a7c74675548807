//! A report as one HTML file: text, tables and charts, nothing that must be fetched.

use std::fmt::Write as _;

use crate::chart::escape;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1320px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #ddd}\
table{border-collapse:collapse;font-size:13px}th,td{padding:.25rem .7rem;border-bottom:1px solid #e5e5e5;text-align:left}\
td.n{text-align:right;font-variant-numeric:tabular-nums}tr.met td:last-child{color:#1a7f37;font-weight:600}\
tr.missed td:last-child{color:#c00;font-weight:600}.charts{display:flex;flex-wrap:wrap;gap:1rem}\
.charts svg{width:620px;max-width:100%;border:1px solid #eee}.wide svg{width:100%;border:1px solid #eee}p.note{color:#555}";

/// Whether a row of a table holds a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Plain,
    Met,
    Missed,
}

/// Builds the page from top to bottom.
pub struct Page(String);

impl Page {
    pub fn new(title: &str) -> Self {
        let title = escape(title);
        Self(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\n\
             <body><h1>{title}</h1>\n"
        ))
    }

    pub fn heading(&mut self, text: &str) -> &mut Self {
        self.line(&format!("<h2>{}</h2>", escape(text)))
    }

    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        self.line(&format!("<p>{}</p>", escape(text)))
    }

    pub fn note(&mut self, text: &str) -> &mut Self {
        self.line(&format!("<p class=\"note\">{}</p>", escape(text)))
    }

    /// A table. Cells that begin with a digit stand to the right.
    pub fn table<const COLUMNS: usize>(
        &mut self,
        header: [&str; COLUMNS],
        rows: impl IntoIterator<Item = (Mark, [String; COLUMNS])>,
    ) -> &mut Self {
        let mut html = String::from("<table><tr>");
        header.iter().for_each(|cell| {
            let _ = write!(html, "<th>{}</th>", escape(cell));
        });
        html.push_str("</tr>");
        for (mark, cells) in rows {
            html.push_str(match mark {
                Mark::Plain => "\n<tr>",
                Mark::Met => "\n<tr class=\"met\">",
                Mark::Missed => "\n<tr class=\"missed\">",
            });
            for cell in &cells {
                let class = if cell.starts_with(|c: char| c.is_ascii_digit()) { " class=\"n\"" } else { "" };
                let _ = write!(html, "<td{class}>{}</td>", escape(cell));
            }
            html.push_str("</tr>");
        }
        html.push_str("</table>");
        self.line(&html)
    }

    /// Charts beside each other.
    pub fn charts(&mut self, charts: &[String]) -> &mut Self {
        self.line(&format!("<div class=\"charts\">{}</div>", charts.join("\n")))
    }

    /// A chart as wide as the page.
    pub fn wide_chart(&mut self, chart: &str) -> &mut Self {
        self.line(&format!("<div class=\"wide\">{chart}</div>"))
    }

    pub fn finish(mut self) -> String {
        self.0.push_str("</body></html>\n");
        self.0
    }

    fn line(&mut self, html: &str) -> &mut Self {
        self.0.push_str(html);
        self.0.push('\n');
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_else() {
        let mut page = Page::new("a & b");
        page.heading("h")
            .paragraph("<script>")
            .table(["x", "y"], [(Mark::Met, ["name".to_owned(), "1.5".to_owned()])]);
        page.charts(&["<svg></svg>".to_owned()]);
        let html = page.finish();
        for part in ["<title>a &amp; b</title>", "&lt;script&gt;", "<tr class=\"met\">", "<td class=\"n\">1.5</td>"] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("http"), "{html}");
        assert!(html.ends_with("</html>\n"));
    }
}
