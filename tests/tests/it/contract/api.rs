//! The API under test: any request, as a client might send it, and every answer held to what the contract says of all.

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
use serde_json::Value;

use super::{openapi::Description, rules};

/// Longer than any request may take.
const PATIENCE: Duration = Duration::from_secs(40);

pub const JSON: &str = "application/json";
pub const NDJSON: &str = "application/x-ndjson";

/// Well before the routers close a connection at rest, which they might do as a request is being sent on it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often, and after what time, something is sent again.
const RESENT: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);

const TIMEOUT: &str = "x-request-timeout-ms";

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Bytes,
}

impl Call {
    /// With a body of JSON, well-formed or not.
    pub fn new(method: Method, path: &str, body: impl Into<Bytes>) -> Self {
        Self::bare(method, path, body).header("content-type", JSON)
    }

    /// Without any header.
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

    pub fn header(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name, value.as_ref().to_owned()));
        self
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

/// What came back, as text.
#[derive(Debug, Clone)]
pub struct TextReply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    /// What the contract fixes of an answer, in a line: `201 posted`, `200 posted replayed`,
    /// `422 insufficient_funds side=debit`, `400 invalid_amount at=/amount`, `400 invalid_parameter at=?limit`.
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

/// All routers of a cluster.
#[derive(Debug)]
pub struct Api {
    http: Client<HttpConnector, Full<Bytes>>,
    routers: Vec<String>,
    next: AtomicUsize,
    description: Description,
}

impl Api {
    /// Reads what the routers say of themselves.
    pub async fn connect(routers: Vec<String>) -> anyhow::Result<Self> {
        let http = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .retry_canceled_requests(false)
            .build_http();
        let mut api = Self { http, routers, next: AtomicUsize::new(0), description: Description::default() };
        let reply = api.exchange(0, &Call::get("/openapi.json")).await?;
        ensure!(reply.status == 200, "no description: {}", reply.body);
        api.description = Description::new(reply.body);
        Ok(api)
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Through the routers in turn, so that nothing said here depends on which one was asked.
    pub async fn send(&self, call: Call) -> anyhow::Result<Reply> {
        self.send_to(self.next.fetch_add(1, Relaxed), call).await
    }

    /// Through one of them. As any client should, it sends again what a machine too busy to take it did not execute; not for
    /// ever, and not in silence.
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

    /// Once, come what may.
    pub async fn send_once(&self, call: Call) -> anyhow::Result<Reply> {
        self.exchange_checked(self.next.fetch_add(1, Relaxed), &call).await
    }

    /// Whatever is answered keeps the rules of all answers.
    async fn exchange_checked(&self, router: usize, call: &Call) -> anyhow::Result<Reply> {
        let told = || format!("{} {}", call.method, call.path);
        let reply = self.exchange(router, call).await.with_context(told)?;
        rules::check(call, &reply).with_context(told)?;
        self.description.check(call, &reply).with_context(told)?;
        Ok(reply)
    }

    /// Must be answered so; gives the answer.
    pub async fn expect(&self, call: Call, summary: &str) -> anyhow::Result<Reply> {
        let told = format!("{} {}", call.method, call.path);
        self.send(call).await?.expect(summary).context(told)
    }

    pub fn url(&self, router: usize) -> &str {
        &self.routers[router % self.routers.len()]
    }

    /// An answer that is a text other than JSON.
    pub async fn text(&self, call: &Call) -> anyhow::Result<TextReply> {
        let (parts, bytes) = self.exchange_bytes(self.next.fetch_add(1, Relaxed), call).await?;
        Ok(TextReply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(bytes.to_vec()).context("the answer is no UTF-8")?,
        })
    }

    async fn exchange(&self, router: usize, call: &Call) -> anyhow::Result<Reply> {
        let (parts, bytes) = self.exchange_bytes(router, call).await?;
        let body = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} and no JSON: {:?}", parts.status, String::from_utf8_lossy(&bytes)))?;
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    async fn exchange_bytes(&self, router: usize, call: &Call) -> anyhow::Result<(http::response::Parts, Bytes)> {
        let mut request = Request::builder().method(&call.method).uri(format!("{}{}", self.url(router), call.path));
        for (name, value) in &call.headers {
            request = request.header(*name, value.as_slice());
        }
        // A busy machine is nobody's fault: what is to be answered in time says so.
        if !call.headers.iter().any(|(name, _)| *name == TIMEOUT) {
            request = request.header(TIMEOUT, "30000");
        }
        let request = request.body(Full::new(call.body.clone()))?;
        let exchange = async {
            let (parts, body) = self.http.request(request).await?.into_parts();
            Ok((parts, body.collect().await?.to_bytes()))
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no answer")?
    }
}
