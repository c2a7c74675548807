//! Answers in JSON, and the ledger's values as the contract writes them: amounts as decimal strings in full scale, times as
//! RFC 3339.

pub mod account;
pub mod account_page;
pub mod balances;
pub mod batch;
pub mod entry;
pub mod hold;
pub mod transfer;

use std::collections::BTreeMap;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use ledger::{AssetCode, AssetRegistry, Limit, format_minor};
use serde::{Serialize, Serializer};
use wire::convert::BadMessage;

use super::{idempotency, parse::UNLIMITED, problem::Problem};

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

/// The answer to a request that was there before: the stored result.
pub fn replayed(value: &impl Serialize) -> Response {
    let mut response = json(StatusCode::OK, value);
    idempotency::mark_replayed(response.headers_mut());
    response
}

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

/// Metadata as a cell of CSV: its JSON text, which begins with a brace. A semicolon is escaped: many spreadsheets take it for the end of a
/// cell, also between quotes within one, and what follows could be a formula.
pub fn metadata_cell(metadata: &BTreeMap<String, String>) -> String {
    if metadata.is_empty() { String::new() } else { serde_json::json!(metadata).to_string().replace(';', "\\u003b") }
}

/// A shard sent what no shard should.
pub fn nonsense(reason: BadMessage) -> Problem {
    tracing::error!(%reason, "a shard sent a message that makes no sense");
    Problem::internal()
}

/// The limit of a message, which always has one.
pub fn limit(limit: Option<wire::Limit>, field: &'static str) -> Result<Limit, Problem> {
    limit.map(Limit::from).ok_or_else(|| nonsense(BadMessage::Missing(field)))
}
