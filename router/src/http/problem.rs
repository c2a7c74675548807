//! RFC 9457 problems: the one shape of every error this router answers, from whatever layer it comes.
//!
//! A handler or layer returns a [`Problem`]; it becomes a response without a body that carries the problem along, and
//! [`super::context`] (the outermost layer, which alone knows the request id) renders it.

mod code;

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use ledger::{Refused, Side};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::schemas;
use crate::core::call::CallError;
pub use code::{Code, Definition, Executed, refusal_detail};

/// The media type of every error.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// On answers that are the stored result of an earlier request.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Errors listed in one answer. A batch can have a hundred thousand.
pub const MAX_ERRORS: usize = 100;

/// An error as the client sees it. It has no internals of the router.
#[derive(Debug, Clone)]
pub struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    transfer_id: Option<Uuid>,
    hold_id: Option<Uuid>,
    side: Option<Side>,
    field: Option<String>,
    shard: Option<String>,
    retry_after_s: u64,
    replayed: bool,
    close: bool,
}

/// One thing wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The code this error alone would be answered with.
    pub code: Code,
    pub place: Place,
    pub detail: String,
}

/// Where in the request an error is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A JSON pointer into the body.
    Pointer(String),
    /// A query or path parameter.
    Parameter(String),
    Header(&'static str),
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            transfer_id: None,
            hold_id: None,
            side: None,
            field: None,
            shard: None,
            retry_after_s: 1,
            replayed: false,
            close: false,
        }))
    }

    /// A malformed request: the error that comes first in the documented precedence gives the code.
    pub fn malformed(errors: Vec<FieldError>) -> Self {
        let first = errors.iter().min_by_key(|error| error.code.precedence());
        let mut problem = match first {
            Some(error) => Self::new(error.code, error.detail.clone()),
            None => Self::new(Code::InvalidJson, "the request could not be understood"),
        };
        problem.0.errors = errors;
        problem
    }

    /// `pointer` is a JSON pointer into the body.
    pub fn body(code: Code, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::malformed(vec![FieldError { code, place: Place::Pointer(pointer.into()), detail: detail.into() }])
    }

    pub fn parameter(code: Code, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::malformed(vec![FieldError { code, place: Place::Parameter(name.into()), detail: detail.into() }])
    }

    pub fn header(name: &'static str, detail: impl Into<String>) -> Self {
        Self::malformed(vec![FieldError {
            code: Code::InvalidParameter,
            place: Place::Header(name),
            detail: detail.into(),
        }])
    }

    /// The ledger refused it.
    pub fn refused(refused: Refused) -> Self {
        let mut problem = Self::new(Code::Refused(refused.refusal), code::refusal_detail(refused));
        problem.0.side = refused.side;
        problem
    }

    /// Something is wrong with this router or a shard. The cause is for the log only.
    pub fn internal() -> Self {
        Self::new(Code::Internal, "an internal error; resend the same id to learn whether it took effect")
    }

    /// The id belongs to another order.
    pub fn mismatch(what: &str, field: &'static str) -> Self {
        let detail = format!("the id belongs to a {what} with another {field}");
        Self::new(Code::IdempotencyMismatch, detail).with_field(field)
    }

    pub fn with_transfer(mut self, id: Uuid) -> Self {
        self.0.transfer_id = Some(id);
        self
    }

    pub fn with_hold(mut self, id: Uuid) -> Self {
        self.0.hold_id = Some(id);
        self
    }

    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    pub fn with_side(mut self, side: Option<Side>) -> Self {
        self.0.side = side;
        self
    }

    pub fn with_shard(mut self, shard: impl Into<String>) -> Self {
        self.0.shard = Some(shard.into());
        self
    }

    /// Rounds up to seconds, so that a client that waits so long is let in.
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after_s = (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1);
        self
    }

    /// The answer is the stored one of an earlier request.
    pub fn replayed(mut self, replayed: bool) -> Self {
        self.0.replayed = replayed;
        self
    }

    /// The connection cannot be used any further: the rest of the body was not read.
    pub fn closing(mut self) -> Self {
        self.0.close = true;
        self
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    #[cfg(test)]
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }

    /// The body, as sent.
    pub fn render(&self, instance: &str, request_id: &str) -> Vec<u8> {
        let definition = self.0.code.definition();
        let body = ProblemBody {
            kind: format!("urn:shardledger:problem:{}", definition.code),
            title: definition.title,
            status: definition.status.as_u16(),
            detail: &self.0.detail,
            instance,
            code: definition.code,
            retryable: definition.retryable,
            executed: definition.executed,
            request_id,
            errors: self.0.errors.iter().map(FieldErrorBody::of).collect(),
            transfer_id: self.0.transfer_id,
            hold_id: self.0.hold_id,
            side: self.0.side.map(Side::as_str),
            field: self.0.field.as_deref(),
            shard: self.0.shard.as_deref(),
        };
        // Serialising strings, numbers and a list of them cannot fail; an empty body would still carry the status.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let definition = self.0.code.definition();
        let mut response = Response::new(axum::body::Body::empty());
        *response.status_mut() = definition.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if definition.status == http::StatusCode::TOO_MANY_REQUESTS
            || definition.status == http::StatusCode::SERVICE_UNAVAILABLE
        {
            headers.insert(header::RETRY_AFTER, self.0.retry_after_s.into());
        }
        if definition.status == http::StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.0.replayed {
            mark_replayed(headers);
        }
        if self.0.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Marks an answer as the stored result of an earlier request.
pub fn mark_replayed(headers: &mut HeaderMap) {
    headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
}

// === errors of the core ===

/// The code of an error of the core.
pub fn code_of(error: &CallError) -> Code {
    match error {
        CallError::Unavailable { .. }
        | CallError::Deadline { .. }
        | CallError::Unfinished { .. }
        | CallError::Deferred { .. } => Code::ShardUnavailable,
        CallError::Undetermined { .. } => Code::Undetermined,
        CallError::Overloaded { .. } => Code::Overloaded,
        CallError::ShuttingDown => Code::ShuttingDown,
        CallError::OutcomeUnknown { .. } => Code::OutcomeUnknown,
        CallError::Illegal { .. } | CallError::Internal { .. } => Code::Internal,
    }
}

/// The only place that makes problems of errors of the core.
impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let code = code_of(&error);
        match error {
            CallError::Unavailable { shard } => Self::new(code, "the shard cannot be reached").with_shard(&*shard),
            CallError::Deadline { shard } => {
                Self::new(code, "the deadline passed before the shard's turn came").with_shard(&*shard)
            }
            CallError::Unfinished { shard } => {
                let detail = "the sum as of this time did not end within the time of the request: many accounts have moved since. Send \
                              X-Request-Timeout-Ms (up to 30000), ask for narrower prefixes and add up, or read GET /v1/accounts?at=, \
                              which is sent part by part";
                Self::new(code, detail).with_shard(&*shard)
            }
            CallError::Overloaded { shard } => {
                Self::new(code, "too much is waiting for the shard").with_shard(&*shard)
            }
            CallError::Deferred { shard } => {
                Self::new(code, "a capture or transfer under way has to finish first and did not in time")
                    .with_shard(&*shard)
            }
            CallError::Undetermined { shard } => {
                let detail = "the answer depends on another transfer of the account that is under way to the shard named in `shard`: if \
                              that transfer is refused, its money comes back. Nothing was executed; send the same request again";
                Self::new(code, detail).with_shard(&*shard)
            }
            CallError::ShuttingDown => Self::new(code, "another router takes the request"),
            CallError::OutcomeUnknown { shard } => {
                Self::new(code, "resend the same id to learn whether it took effect").with_shard(&*shard)
            }
            CallError::Illegal { .. } | CallError::Internal { .. } => {
                tracing::error!(%error, "a request failed for a reason that must not be");
                Self::internal()
            }
        }
    }
}

// === the body ===

/// `application/problem+json` (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// A URN that ends in the code.
    #[serde(rename = "type")]
    #[schema(pattern = "^urn:shardledger:problem:[a-z_]+$")]
    kind: String,
    /// The code in words.
    title: &'static str,
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong this time, for people.
    detail: &'a str,
    /// The path of the request.
    instance: &'a str,
    /// Stable, for programs.
    #[schema(pattern = "^[a-z_]+$")]
    code: &'static str,
    /// Sending the same request again may succeed, and is safe with the same id.
    retryable: bool,
    executed: Executed,
    /// The header `X-Request-Id` of the answer.
    request_id: &'a str,
    /// Everything wrong with a malformed request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldErrorBody<'a>>,
    /// The transfer it is about, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::TransferId, required = false)]
    transfer_id: Option<Uuid>,
    /// The hold it is about, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::TransferId, required = false)]
    hold_id: Option<Uuid>,
    /// Which account a refusal is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::Side, required = false)]
    side: Option<&'static str>,
    /// Which field differs from what is stored under the same id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<&'a str>,
    /// The shard that did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    shard: Option<&'a str>,
}

/// One thing wrong with a request, and where: in one of `pointer`, `parameter` and `header`.
#[derive(Serialize, ToSchema)]
#[schema(as = FieldError)]
struct FieldErrorBody<'a> {
    /// The code this error alone would be answered with.
    #[schema(value_type = String, pattern = "^[a-z_]+$")]
    code: Code,
    /// A JSON pointer into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pointer: Option<&'a str>,
    /// A query or path parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    parameter: Option<&'a str>,
    /// A header of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    header: Option<&'a str>,
    /// What is wrong, for people.
    detail: &'a str,
}

impl<'a> FieldErrorBody<'a> {
    fn of(error: &'a FieldError) -> Self {
        let FieldError { code, place, detail } = error;
        let mut body = Self { code: *code, pointer: None, parameter: None, header: None, detail };
        match place {
            Place::Pointer(pointer) => body.pointer = Some(pointer),
            Place::Parameter(name) => body.parameter = Some(name),
            Place::Header(name) => body.header = Some(name),
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up() {
        for (ms, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2)] {
            let problem = Problem::new(Code::RateLimited, "").with_retry_after(Duration::from_millis(ms));
            assert_eq!(problem.0.retry_after_s, seconds, "{ms}");
        }
    }
}
