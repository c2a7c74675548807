//! What belongs to one request: its id, its deadline, its name in the log, its target; and, on the way out, the body of its problem.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{FromRequestParts, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version, header, request::Parts};
use telemetry::traces::Recorder;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    metrics::known_method,
    problem::{Code, Problem},
};
use crate::trace::{self, Context};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TIMEOUT: &str = "X-Request-Timeout-Ms";

pub const MAX_REQUEST_ID_LEN: usize = 128;
pub const DEFAULT_TIMEOUT_MS: u64 = 5_000;
pub const MAX_TIMEOUT_MS: u64 = 30_000;

/// When the whole request must be answered, counted from its arrival.
#[derive(Debug, Clone, Copy)]
pub struct RequestDeadline(pub Instant);

/// Gives the request its id, deadline, name in the log and span, and renders what comes back as a problem. Without `recorder`, the request
/// has no span.
pub async fn around<F: Future<Output = Response>>(
    mut request: Request,
    recorder: Option<&'static Recorder>,
    answer: impl FnOnce(Request) -> F,
) -> Response {
    let arrived = Instant::now();
    let id = request_id(request.headers());
    let (span, traceparent) = trace::begin(recorder, known_method(request.method()), &request);
    let context = Arc::new(Context {
        id,
        method: request.method().clone(),
        uri: request.extensions().get::<AsSent>().map_or_else(|| request.uri().clone(), |sent| sent.0.clone()),
        traceparent,
        key: OnceLock::new(),
        needs_no_key: OnceLock::new(),
        transfer: OnceLock::new(),
        hold: OnceLock::new(),
        sent_again: OnceLock::new(),
    });
    let checked = one_host(&request).and_then(|()| timeout(request.headers()));
    let mut response = match checked {
        Ok(timeout) => {
            request.extensions_mut().insert(RequestDeadline(arrived + timeout));
            trace::within(Some(Arc::clone(&context)), answer(request)).await
        }
        Err(problem) => problem.into_response(),
    };
    let problem = response.extensions_mut().remove::<Problem>();
    if let Some(span) = span {
        let code = problem.as_ref().map(|problem| problem.code().as_str());
        trace::answered(span, &context, response.status(), code);
    }
    // Work that outlives its request still has the context.
    let Context { id, uri, .. } = Arc::unwrap_or_clone(context);
    if let Some(problem) = problem {
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

/// The id that the client sent, if it is short and printable, else a new one. Ids are written to logs.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_LEN).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match headers.get(REQUEST_ID).filter(usable) {
        Some(id) => id.clone(),
        None => new_request_id(),
    }
}

/// An id for a request that has no usable one.
pub fn new_request_id() -> HeaderValue {
    let mut text = Uuid::encode_buffer();
    let text: &str = Uuid::now_v7().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("none"))
}

/// HTTP/1.1 wants one `Host`, so that no proxy on the way takes the request for another server's (RFC 9112, section 3.2).
fn one_host(request: &Request) -> Result<(), Problem> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let is_right = match request.version() {
        Version::HTTP_11 => hosts == 1,
        _ => hosts <= 1,
    };
    if is_right {
        Ok(())
    } else {
        Err(Problem::new(
            Code::InvalidRequest,
            format!("a request may have only one Host header, and HTTP/1.1 requires one; this request has {hosts}"),
        ))
    }
}

/// The value of a header that has one value. Given twice with the same value it counts once.
///
/// # Errors
/// When it is given with two values: a proxy on the way may read the other one.
pub fn single<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.any(|other| Some(other) != first) {
        return Err(Problem::header(name, format!("the header {name} occurs more than once, with different values")));
    }
    Ok(first)
}

fn timeout(headers: &HeaderMap) -> Result<Duration, Problem> {
    let Some(value) = single(headers, TIMEOUT)? else { return Ok(Duration::from_millis(DEFAULT_TIMEOUT_MS)) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse().ok()) {
        Some(ms @ 1..=MAX_TIMEOUT_MS) => Ok(Duration::from_millis(ms)),
        _ => {
            Err(Problem::header(TIMEOUT, format!("{TIMEOUT} is a number of milliseconds from 1 to {MAX_TIMEOUT_MS}")))
        }
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

// === the target ===

/// The target of a request as the client sent it, where [`normalize`] has changed it.
#[derive(Debug, Clone)]
pub struct AsSent(pub Uri);

/// Replaces percent-encoded characters of a request's path that need no encoding: `/v1/%61ccounts` is `/v1/accounts` (RFC 3986, section 2.3).
pub fn normalize<B>(request: &mut http::Request<B>) {
    if !request.uri().path().contains('%') || has_stray_percent(request.uri().path()) {
        return;
    }
    let as_sent = request.uri().clone();
    normalize_uri(request.uri_mut());
    if *request.uri() != as_sent {
        request.extensions_mut().insert(AsSent(as_sent));
    }
}

fn normalize_uri(uri: &mut Uri) {
    let path = decode_unreserved(uri.path());
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = std::mem::take(uri).into_parts();
    // The path has become shorter and holds no character that it did not hold before, encoded or not.
    parts.path_and_query = text.parse().ok();
    if let Ok(normalized) = Uri::from_parts(parts) {
        *uri = normalized;
    }
}

/// Whether a percent sign stands before something else than two hexadecimal digits. What is left of such a path after decoding could be
/// decoded once more.
fn has_stray_percent(path: &str) -> bool {
    let is_encoded =
        |rest: &str| rest.get(..2).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    path.split('%').skip(1).any(|rest| !is_encoded(rest))
}

fn decode_unreserved(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let byte = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
            Some(byte) => {
                decoded.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            None => {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    decoded + rest
}

#[cfg(test)]
mod tests {
    use http::header::IntoHeaderName;

    use super::*;

    fn headers(name: impl IntoHeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
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
    fn one_host_is_wanted() {
        let request = |version: Version, hosts: &[&'static str]| {
            let mut request = http::Request::builder().version(version);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            one_host(&request.body(Body::empty()).unwrap()).is_ok()
        };
        assert!(request(Version::HTTP_11, &["a"]));
        assert!(!request(Version::HTTP_11, &[]) && !request(Version::HTTP_11, &["a", "a"]));
        assert!(request(Version::HTTP_10, &[]) && request(Version::HTTP_2, &[]));
        assert!(!request(Version::HTTP_10, &["a", "b"]));
    }

    #[test]
    fn a_header_with_two_values_is_refused() {
        let mut twice = headers(TIMEOUT, "100");
        twice.append(TIMEOUT, HeaderValue::from_static("100"));
        assert_eq!(timeout(&twice).unwrap(), Duration::from_millis(100));
        twice.append(TIMEOUT, HeaderValue::from_static("200"));
        assert_eq!(timeout(&twice).unwrap_err().code(), Code::InvalidParameter);
    }

    #[test]
    fn the_timeout_is_bounded() {
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), Duration::from_secs(5));
        assert_eq!(timeout(&headers(TIMEOUT, "30000")).unwrap(), Duration::from_secs(30));
        for bad in ["", "0", "30001", "-1", "+5", "5s", "1e3", "99999999999999999999"] {
            assert_eq!(timeout(&headers(TIMEOUT, bad)).unwrap_err().code(), Code::InvalidParameter, "{bad:?}");
        }
    }

    #[test]
    fn what_needs_no_encoding_is_decoded_and_nothing_else() {
        for (given, normal) in [
            ("/v1/%61ccounts/%61%4Cice", "/v1/accounts/aLice"),
            ("/v1/accounts?x=%61", "/v1/accounts?x=%61"),
            ("/v1/accounts/%7Bshop%7D%3aa%2Db?debit=%7B", "/v1/accounts/%7Bshop%7D%3aa-b?debit=%7B"),
            ("/v1/accounts/a%2Fb%252E%00", "/v1/accounts/a%2Fb%252E%00"),
            ("/%", "/%"),
            ("/%6", "/%6"),
            ("/%zz", "/%zz"),
            ("/v1/accounts/%%361", "/v1/accounts/%%361"),
        ] {
            let mut request = http::Request::builder().uri(given).body(()).unwrap();
            normalize(&mut request);
            assert_eq!(request.uri().to_string(), normal, "{given}");
            let as_sent = request.extensions().get::<AsSent>().map(|sent| sent.0.to_string());
            assert_eq!(as_sent.as_deref(), (given != normal).then_some(given));
        }
    }
}
