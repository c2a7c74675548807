//! Requests to the API under test, as clients send them. Each answer is checked against the rules that hold for all answers, and against
//! the description of the API.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

use super::openapi::Description;

/// Longer than the time limit of any request.
const PATIENCE: Duration = Duration::from_secs(40);

pub const JSON: &str = "application/json";
pub const NDJSON: &str = "application/x-ndjson";

/// Shorter than the time after which routers close an idle connection, because they might close it while a request is sent on it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a request that was answered 503 is sent again, and after what pause.
const RESENT: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);

const TIMEOUT: &str = "x-request-timeout-ms";

/// An HTTP request of a test.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Bytes,
}

impl Call {
    /// A request with the media type of JSON. The body may be malformed.
    pub fn new(method: Method, path: &str, body: impl Into<Bytes>) -> Self {
        Self::bare(method, path, body).header("content-type", JSON)
    }

    /// A request without any header.
    pub fn bare(method: Method, path: &str, body: impl Into<Bytes>) -> Self {
        Self { method, path: path.to_owned(), headers: Vec::new(), body: body.into() }
    }

    pub fn get(path: &str) -> Self {
        Self::bare(Method::GET, path, Bytes::new())
    }

    pub fn post(path: &str, body: &Value) -> Self {
        Self::new(Method::POST, path, body.to_string())
    }

    pub fn patch(path: &str, body: &Value) -> Self {
        Self::new(Method::PATCH, path, body.to_string())
    }

    pub fn delete(path: &str) -> Self {
        Self::bare(Method::DELETE, path, Bytes::new())
    }

    pub fn header(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name, value.as_ref().to_owned()));
        self
    }

    pub fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name))
    }
}

/// An answer in JSON.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

/// An answer as text.
#[derive(Debug, Clone)]
pub struct TextReply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    /// The parts of an answer that the contract fixes, in one line. Examples are `201 posted`, `200 posted replayed`, `422
    /// insufficient_funds side=debit`, `400 invalid_amount at='/amount'` and `400 invalid_parameter at=?limit`.
    pub fn summary(&self) -> String {
        let text = |name: &str| self.body[name].as_str();
        let mut summary = self.status.to_string();
        for word in [text("code").or(text("status"))].into_iter().flatten() {
            summary += &format!(" {word}");
        }
        for name in ["side", "field"] {
            if let Some(value) = text(name) {
                summary += &format!(" {name}={value}");
            }
        }
        let errors = self.body["errors"].as_array().map_or(&[][..], Vec::as_slice);
        if let Some(first) = errors.iter().find(|error| error["code"] == self.body["code"]) {
            summary += &format!(" at={}", place(first));
        }
        if self.headers.get("idempotent-replayed").is_some_and(|value| value == "true") {
            summary += " replayed";
        }
        summary
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn expect(self, summary: &str) -> anyhow::Result<Self> {
        ensure!(self.summary() == summary, "expected {summary:?}, not {:?}: {}", self.summary(), self.body);
        Ok(self)
    }
}

fn place(error: &Value) -> String {
    let text = |name: &str| error[name].as_str();
    match (text("pointer"), text("parameter"), text("header")) {
        (Some(pointer), None, None) => format!("'{pointer}'"),
        (None, Some(parameter), None) => format!("?{parameter}"),
        (None, None, Some(header)) => format!("{header}:"),
        _ => format!("nowhere in {error}"),
    }
}

/// The API of all routers of a cluster.
#[derive(Debug)]
pub struct Api {
    http: Client<HttpConnector, Full<Bytes>>,
    routers: Vec<String>,
    next: AtomicUsize,
    description: Description,
}

impl Api {
    /// Connects to the routers and reads the description that they serve.
    pub async fn connect(routers: Vec<String>) -> anyhow::Result<Self> {
        let http = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .retry_canceled_requests(false)
            .build_http();
        let mut api = Self { http, routers, next: AtomicUsize::new(0), description: Description::default() };
        let reply = api.exchange(0, &Call::get("/openapi.json")).await?;
        ensure!(reply.status == 200, "expected the description of the API, not {}", reply.body);
        api.description = Description::new(reply.body);
        Ok(api)
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Sends a request through the routers in turn, so that no test depends on which router answers.
    pub async fn send(&self, call: Call) -> anyhow::Result<Reply> {
        self.send_to(self.next.fetch_add(1, Relaxed), call).await
    }

    /// Sends a request through one router. A request that was answered 503 was not executed. It is sent again a limited number of times, as
    /// clients should do, and each time is printed.
    pub async fn send_to(&self, router: usize, call: Call) -> anyhow::Result<Reply> {
        for _ in 0..RESENT {
            let reply = self.exchange_checked(router, &call).await?;
            if reply.status != 503 {
                return Ok(reply);
            }
            eprintln!("contract: {} {} was answered {}", call.method, call.path, reply.summary());
            tokio::time::sleep(PAUSE).await;
        }
        self.exchange_checked(router, &call).await
    }

    /// Sends a request once, even if the answer is 503.
    pub async fn send_once(&self, call: Call) -> anyhow::Result<Reply> {
        self.exchange_checked(self.next.fetch_add(1, Relaxed), &call).await
    }

    /// Sends a request and checks the rules that hold for all answers.
    async fn exchange_checked(&self, router: usize, call: &Call) -> anyhow::Result<Reply> {
        let told = || format!("{} {}", call.method, call.path);
        let reply = self.exchange(router, call).await.with_context(told)?;
        check_rules(call, &reply).with_context(told)?;
        self.description.check(call, &reply).with_context(told)?;
        Ok(reply)
    }

    /// Sends a request whose answer must have this [`Reply::summary`], and returns the answer.
    pub async fn expect(&self, call: Call, summary: &str) -> anyhow::Result<Reply> {
        let told = format!("{} {}", call.method, call.path);
        self.send(call).await?.expect(summary).context(told)
    }

    pub fn url(&self, router: usize) -> &str {
        &self.routers[router % self.routers.len()]
    }

    /// Sends a request whose answer is not JSON, and returns it as text.
    pub async fn text(&self, call: &Call) -> anyhow::Result<TextReply> {
        let (parts, bytes) = self.exchange_bytes(self.next.fetch_add(1, Relaxed), call).await?;
        Ok(TextReply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(bytes.to_vec()).context("the answer is not UTF-8")?,
        })
    }

    async fn exchange(&self, router: usize, call: &Call) -> anyhow::Result<Reply> {
        let (parts, bytes) = self.exchange_bytes(router, call).await?;
        let body = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} and a body that is not JSON: {:?}", parts.status, String::from_utf8_lossy(&bytes))
        })?;
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    async fn exchange_bytes(&self, router: usize, call: &Call) -> anyhow::Result<(http::response::Parts, Bytes)> {
        let mut request = Request::builder().method(&call.method).uri(format!("{}{}", self.url(router), call.path));
        for (name, value) in &call.headers {
            request = request.header(*name, value.as_slice());
        }
        // The time limit is long, because a busy machine must not fail a test. A test of time limits sets its own.
        if !call.headers.iter().any(|(name, _)| *name == TIMEOUT) {
            request = request.header(TIMEOUT, "30000");
        }
        let request = request.body(Full::new(call.body.clone()))?;
        let exchange = async {
            let (parts, body) = self.http.request(request).await?.into_parts();
            Ok((parts, body.collect().await?.to_bytes()))
        };
        tokio::time::timeout(PATIENCE, exchange).await.with_context(|| format!("no answer within {PATIENCE:?}"))?
    }
}

/// The members that every problem has.
const PROBLEM_MEMBERS: [&str; 9] =
    ["type", "title", "status", "detail", "instance", "code", "retryable", "executed", "request_id"];
/// Statuses after which the same request may succeed later.
const RETRYABLE: [u16; 5] = [408, 429, 500, 503, 504];
/// Statuses after which a write may have been executed.
const UNKNOWN: [u16; 2] = [500, 504];

fn check_rules(call: &Call, reply: &Reply) -> anyhow::Result<()> {
    ensure!(!reply.header("x-request-id").is_empty(), "the answer has no X-Request-Id");
    if reply.status < 400 {
        ensure!(reply.header("content-type") == "application/json", "the answer is not JSON: {:?}", reply.headers);
        return Ok(());
    }
    problem(call, reply).map_err(|reason| reason.context(reply.body.to_string()))
}

fn problem(call: &Call, reply: &Reply) -> anyhow::Result<()> {
    let (status, body) = (reply.status, &reply.body);
    ensure!(reply.header("content-type") == "application/problem+json", "it is not a problem: {:?}", reply.headers);
    for member in PROBLEM_MEMBERS {
        ensure!(!body[member].is_null(), "the problem has no {member}");
    }
    let code = body["code"].as_str().unwrap_or_default();
    ensure!(body["type"].as_str().is_some_and(|kind| kind.ends_with(&format!(":{code}"))), "the type lacks the code");
    ensure!(body["status"] == status, "the status in the body is not that of the answer, {status}");
    ensure!(body["request_id"] == reply.header("x-request-id"), "the body has another request id");
    let (path, _) = call.path.split_once('?').unwrap_or((&call.path, ""));
    ensure!(body["instance"] == path, "the instance is not the path of the request, {path}");
    ensure!(body["retryable"] == RETRYABLE.contains(&status), "retryable is wrong for {status}");
    let executed = if UNKNOWN.contains(&status) { json!("unknown") } else { json!(false) };
    ensure!(body["executed"] == executed, "expected executed to be {executed}");
    ensure!(
        [429, 503].contains(&status) == reply.headers.contains_key("retry-after"),
        "Retry-After is for 429 and 503"
    );
    ensure!(status != 500, "the router answered an internal error");
    if status == 400 {
        let errors = body["errors"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(!errors.is_empty(), "the answer to a malformed request lists no errors");
        for error in errors {
            let places = ["pointer", "parameter", "header"].into_iter().filter(|place| error[*place].is_string());
            ensure!(places.count() == 1, "an error must name exactly one place: {error}");
            ensure!(error["code"].is_string() && error["detail"].is_string(), "code or detail is missing: {error}");
            ensure!(is_pointer(&error["pointer"]), "the pointer is not a JSON pointer (RFC 6901): {error}");
        }
    }
    Ok(())
}

fn is_pointer(place: &Value) -> bool {
    place.as_str().is_none_or(|pointer| pointer.is_empty() || pointer.starts_with('/'))
}
