//! Answers in JSON and CSV, and the ledger's values as the contract writes them: amounts as decimal strings in full scale, times as RFC 3339.

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ledger::{AccountId, AssetCode, AssetRegistry, Limit, TransferId, format_minor};
use serde::{Serialize, Serializer};
use wire::convert::BadMessage;

use super::{
    problem::{Definition, Problem, code_of, mark_replayed},
    schemas::UNLIMITED,
};
use crate::core::call::CallError;

/// An answer in JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    json_with_capacity(status, value, 512)
}

/// An answer in JSON whose size is roughly known, written into one buffer.
pub fn json_with_capacity(status: StatusCode, value: &impl Serialize, capacity: usize) -> Response {
    let mut body = Vec::with_capacity(capacity);
    if let Err(reason) = serde_json::to_writer(&mut body, value) {
        tracing::error!(%reason, "an answer could not be written");
        return Problem::internal().into_response();
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer to a request that has made something, or is about to: where to read it.
pub fn made(status: StatusCode, value: &impl Serialize, location: &str) -> Response {
    let mut response = json(status, value);
    // Ids are ASCII, which a header can hold.
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The answer to a request that was sent before: the stored result.
pub fn replay(value: &impl Serialize) -> Response {
    let mut response = json(StatusCode::OK, value);
    mark_replayed(response.headers_mut());
    response
}

/// Where to read an account.
pub fn path_of_account(id: &AccountId) -> String {
    format!("/v1/accounts/{}", escaped(id))
}

/// Where to read a transfer. With the debit account, so that it goes straight to its shard and is never ambiguous.
pub fn path_of_transfer(id: TransferId, debit: &AccountId) -> String {
    path_of_owned("transfers", id, debit)
}

/// Where to read a hold; with the debit account, too.
pub fn path_of_hold(id: TransferId, debit: &AccountId) -> String {
    path_of_owned("holds", id, debit)
}

fn path_of_owned(collection: &str, id: TransferId, debit: &AccountId) -> String {
    format!("/v1/{collection}/{}?debit={}", id.0, escaped(debit))
}

/// An account id as it stands in a URL. Of its characters only the braces need escaping.
fn escaped(account: &AccountId) -> String {
    account.as_str().replace('{', "%7B").replace('}', "%7D")
}

// === batches ===

/// Bytes of one result without a refusal, rounded up: what the buffer is reserved for.
pub const RESULT_BYTES: usize = 96;

/// `{"results": [...]}` out of an iterator, without a list of results in between.
#[derive(Serialize)]
pub struct Results<I: Iterator<Item = T> + Clone, T: Serialize> {
    #[serde(serialize_with = "in_sequence")]
    pub results: I,
}

fn in_sequence<S: Serializer, T: Serialize>(
    results: &(impl Iterator<Item = T> + Clone),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(results.clone())
}

/// Status and code of an item without an answer.
pub fn not_answered(error: &CallError) -> (&'static str, Definition) {
    let status = if error.is_not_executed() { "failed" } else { "unknown" };
    (status, code_of(error).definition())
}

// === values ===

/// Amounts of one asset.
#[derive(Debug, Clone, Copy)]
pub struct Scale(u32);

impl Scale {
    /// The scale of an asset some shard stores. An asset that is not declared here any more cannot be printed.
    pub fn of(asset: AssetCode, assets: &AssetRegistry) -> Result<Self, Problem> {
        assets.scale(asset).map(Self).ok_or_else(|| {
            tracing::error!(%asset, "accounts hold an asset that is missing in [assets] of this router's configuration");
            Problem::internal()
        })
    }

    pub fn digits(self) -> u32 {
        self.0
    }

    pub fn amount(self, minor: impl Into<i128>) -> String {
        format_minor(minor, self.0)
    }

    /// posted − held + overdraft.
    pub fn available(self, posted: i64, held: i64, overdraft: Limit) -> String {
        match ledger::account::available(posted, held, overdraft) {
            Some(minor) => format_minor(minor, self.0),
            None => UNLIMITED.to_owned(),
        }
    }

    pub fn limit_or_unlimited(self, limit: Limit) -> String {
        self.limit_or_none(limit).unwrap_or_else(|| UNLIMITED.to_owned())
    }

    pub fn limit_or_none(self, limit: Limit) -> Option<String> {
        limit.to_nullable().map(|minor| self.amount(minor))
    }
}

/// A journal position as a string of digits: JavaScript reads JSON numbers beyond 2^53 as other numbers.
pub fn position<S: Serializer>(position: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(position)
}

/// Metadata as stored, read back into a map.
pub fn metadata(canonical: &str) -> Result<BTreeMap<String, String>, Problem> {
    if canonical.is_empty() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(canonical).map_err(|reason| {
        tracing::error!(%reason, "stored metadata is no JSON");
        Problem::internal()
    })
}

/// The answer to a request for which a shard sent a message that breaks the protocol.
pub fn nonsense(reason: BadMessage) -> Problem {
    tracing::error!(%reason, "a shard sent a message that makes no sense");
    Problem::internal()
}

/// The limit of a message, which always has one.
pub fn limit(limit: Option<wire::Limit>, field: &'static str) -> Result<Limit, Problem> {
    limit.map(Limit::from).ok_or_else(|| nonsense(BadMessage::Missing(field)))
}

// === tables ===
//
// CSV is that of RFC 4180: a header line, lines that end with CR LF, amounts as decimal strings.
//
// Spreadsheets take a text that begins with `=`, `+`, `-` or `@` for a formula. Ids of accounts may begin with the last two, and metadata may
// have any text. A text cell that begins with one of these, a tab or a carriage return gets an apostrophe in front, which spreadsheets take
// for a mark of text. Amounts, which may begin with `-`, are numbers and stay as they are.

/// The media type of a table.
pub const CSV: &str = "text/csv; charset=utf-8; header=present";

/// Whether the request asks for a table: `Accept` names `text/csv`, and not with the quality 0.
pub fn wants_csv(headers: &HeaderMap) -> bool {
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
pub fn text_cell(cell: &str) -> Cow<'_, str> {
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
pub fn table(table: Table) -> Result<Response, Problem> {
    let mut response = Response::new(Body::from(table.into_bytes()?));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CSV));
    Ok(response)
}

/// Metadata as a cell of CSV: its JSON text, which begins with a brace. A semicolon is escaped: many spreadsheets take it for the end of a
/// cell, also between quotes within one, and what follows could be a formula.
pub fn metadata_cell(metadata: &BTreeMap<String, String>) -> String {
    if metadata.is_empty() { String::new() } else { serde_json::json!(metadata).to_string().replace(';', "\\u003b") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_rfc_4180_and_no_text_is_a_formula() {
        let mut table = Table::new();
        table.line(["id", "posted"]).unwrap();
        for id in ["-x", "@y", "=1+1", "+z", "a,b", "say \"so\"", "two\r\nlines", "plain"] {
            table.line([&*text_cell(id), "-5.00"]).unwrap();
        }
        let expected = "id,posted\r\n'-x,-5.00\r\n'@y,-5.00\r\n'=1+1,-5.00\r\n'+z,-5.00\r\n\"a,b\",-5.00\r\n\"say \"\"so\"\"\",-5.00\r\n\
                        \"two\r\nlines\",-5.00\r\nplain,-5.00\r\n";
        assert_eq!(table.into_bytes().unwrap(), expected);
    }

    #[test]
    fn csv_is_sent_to_those_who_ask_for_it() {
        let accepts = |values: &[&str]| {
            let headers = values.iter().map(|value| (header::ACCEPT, value.parse().unwrap()));
            wants_csv(&headers.collect())
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
