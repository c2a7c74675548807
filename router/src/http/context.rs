//! What belongs to one request: its id, its deadline, its name in the log; and, on the way out, its problem's body.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use tokio::time::Instant;
use uuid::Uuid;

use super::problem::{Code, Problem};
use crate::trace::{self, Context, Traceparent};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");

pub const MAX_REQUEST_ID_LEN: usize = 128;
pub const DEFAULT_TIMEOUT_MS: u64 = 5_000;
pub const MAX_TIMEOUT_MS: u64 = 30_000;

/// When the whole request must be answered, counted from its arrival.
#[derive(Debug, Clone, Copy)]
pub struct RequestDeadline(pub Instant);

/// Gives the request its id, deadline and name in the log, and renders what comes back as a problem.
pub async fn around<F: Future<Output = Response>>(
    mut request: Request,
    answer: impl FnOnce(Request) -> F,
) -> Response {
    let arrived = Instant::now();
    let id = request_id(request.headers());
    let context = Arc::new(Context {
        id,
        method: request.method().clone(),
        uri: request.uri().clone(),
        traceparent: Traceparent::of(request.headers()),
    });
    let mut response = match timeout(request.headers()) {
        Ok(timeout) => {
            request.extensions_mut().insert(RequestDeadline(arrived + timeout));
            trace::within(Some(Arc::clone(&context)), answer(request)).await
        }
        Err(problem) => problem.into_response(),
    };
    // Work that outlives its request still has the context.
    let Context { id, uri, .. } = Arc::unwrap_or_clone(context);
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let body = problem.render(uri.path(), id.to_str().unwrap_or_default());
        response.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        *response.body_mut() = Body::from(body);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

impl<S: Send + Sync> FromRequestParts<S> for RequestDeadline {
    type Rejection = Problem;

    fn from_request_parts(parts: &mut Parts, _: &S) -> impl Future<Output = Result<Self, Problem>> + Send {
        std::future::ready(parts.extensions.get().copied().ok_or_else(|| {
            tracing::error!("a route is not under the context layer");
            Problem::internal()
        }))
    }
}

/// The client's id where it is short and printable, else a new one: ids end up in logs.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_LEN).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match headers.get(REQUEST_ID).filter(usable) {
        Some(id) => id.clone(),
        None => new_request_id(),
    }
}

/// For a request without a usable one.
pub fn new_request_id() -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    let text: &str = Uuid::now_v7().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("none"))
}

fn timeout(headers: &HeaderMap) -> Result<Duration, Problem> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(Duration::from_millis(DEFAULT_TIMEOUT_MS)) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse().ok()) {
        Some(ms @ 1..=MAX_TIMEOUT_MS) => Ok(Duration::from_millis(ms)),
        _ => Err(Problem::header(
            "X-Request-Timeout-Ms",
            format!("X-Request-Timeout-Ms is a number of milliseconds from 1 to {MAX_TIMEOUT_MS}"),
        )),
    }
}

/// Answers what no route matches.
pub async fn not_found() -> Problem {
    Problem::new(Code::NotFound, "no such path; /openapi.json lists what there is")
}

/// Answers a method that the path does not have. `Allow` names those it has.
pub async fn method_not_allowed() -> Problem {
    Problem::new(Code::MethodNotAllowed, "the header Allow names the methods of this path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn request_ids_are_taken_only_when_they_are_fit_to_be_logged() {
        assert_eq!(request_id(&headers(REQUEST_ID, "abc-1")), "abc-1");
        for bad in ["", "a b", &"x".repeat(129)] {
            assert_ne!(request_id(&headers(REQUEST_ID, bad)), bad);
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn the_timeout_is_bounded() {
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), Duration::from_secs(5));
        assert_eq!(timeout(&headers(TIMEOUT, "30000")).unwrap(), Duration::from_secs(30));
        for bad in ["", "0", "30001", "-1", "+5", "5s", "1e3", "99999999999999999999"] {
            assert_eq!(timeout(&headers(TIMEOUT, bad)).unwrap_err().code(), Code::InvalidParameter, "{bad:?}");
        }
    }
}
