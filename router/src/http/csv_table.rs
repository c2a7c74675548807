//! Answers in CSV (RFC 4180): a header line, lines that end with CR LF, amounts as decimal strings.
//!
//! Spreadsheets take a text that begins with `=`, `+`, `-` or `@` for a formula. Ids of accounts may begin with the last two, and metadata
//! is anything. A text cell that begins with one of these, a tab or a carriage return gets an apostrophe in front, which spreadsheets take
//! for a mark of text. Amounts, which may begin with `-`, are numbers and stay as they are.

use std::borrow::Cow;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use super::problem::Problem;

pub const CSV: &str = "text/csv; charset=utf-8; header=present";

/// Whether the request asks for CSV: `Accept` names `text/csv`, and not with the quality 0.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    ranges.flat_map(|text| text.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_csv = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("text/csv"));
        is_csv
            && !parts.any(|parameter| {
                matches!(
                    parameter.replace(' ', "").to_ascii_lowercase().as_str(),
                    "q=0" | "q=0.0" | "q=0.00" | "q=0.000"
                )
            })
    })
}

/// A cell of text that no spreadsheet takes for a formula.
pub fn text(cell: &str) -> Cow<'_, str> {
    if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        Cow::Owned(format!("'{cell}"))
    } else {
        Cow::Borrowed(cell)
    }
}

/// Lines of CSV in memory.
pub struct Table(csv::Writer<Vec<u8>>);

impl Table {
    /// Without a header line.
    pub fn new() -> Self {
        Self(csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new()))
    }

    /// Adds a line. All lines of a table have the same number of cells.
    pub fn line<C: AsRef<[u8]>>(&mut self, cells: impl IntoIterator<Item = C>) -> Result<(), Problem> {
        self.0.write_record(cells).map_err(|reason| {
            tracing::error!(%reason, "a line of CSV could not be written");
            Problem::internal()
        })
    }

    pub fn into_bytes(self) -> Result<Bytes, Problem> {
        match self.0.into_inner() {
            Ok(bytes) => Ok(bytes.into()),
            Err(reason) => {
                tracing::error!(%reason, "CSV could not be written");
                Err(Problem::internal())
            }
        }
    }
}

/// A table that is an answer as it is.
pub fn answer(table: Table) -> Result<Response, Problem> {
    let mut response = Response::new(Body::from(table.into_bytes()?));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CSV));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_rfc_4180_and_no_text_is_a_formula() {
        let mut table = Table::new();
        table.line(["id", "posted"]).unwrap();
        for id in ["-x", "@y", "=1+1", "+z", "a,b", "say \"so\"", "two\r\nlines", "plain"] {
            table.line([&*text(id), "-5.00"]).unwrap();
        }
        let expected = "id,posted\r\n'-x,-5.00\r\n'@y,-5.00\r\n'=1+1,-5.00\r\n'+z,-5.00\r\n\"a,b\",-5.00\r\n\"say \"\"so\"\"\",-5.00\r\n\
                        \"two\r\nlines\",-5.00\r\nplain,-5.00\r\n";
        assert_eq!(table.into_bytes().unwrap(), expected);
    }

    #[test]
    fn csv_is_sent_to_those_who_ask_for_it() {
        let accepts = |values: &[&str]| {
            let headers = values.iter().map(|value| (header::ACCEPT, value.parse().unwrap()));
            is_wanted(&headers.collect())
        };
        for csv in [
            &["text/csv"][..],
            &["Text/CSV; charset=utf-8"],
            &["application/json;q=0.5, text/csv"],
            &["*/*", "text/csv;q=0.1"],
        ] {
            assert!(accepts(csv), "{csv:?}");
        }
        for other in [&[][..], &["*/*"], &["application/json"], &["text/csv; q=0"], &["text/csvx"]] {
            assert!(!accepts(other), "{other:?}");
        }
    }
}
