//! A small HTTP client of the routers. Each request has one deadline, and no request is repeated unless the test repeats it.

mod gateway;
mod verdict;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use certificates::files;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use uuid::Uuid;

pub use gateway::Tally;
use gateway::{BEFORE_NEXT, Gateway, SHORTEST_TIMEOUT};
pub use verdict::Verdict;

/// The time limit of a request, unless a test sets another. It is the longest that a router allows, because a busy machine must not fail a
/// test.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The client waits this much longer than the router's time limit.
const PATIENCE: Duration = Duration::from_secs(2);
/// Shorter than the time after which routers close an idle connection, because they might close it while a request is sent on it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A client of any number of routers.
#[derive(Debug)]
pub struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    routers: Vec<String>,
    next: AtomicUsize,
    request_timeout: Duration,
    gateway: Option<Gateway>,
}

/// An answer of a router, of any status.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The reason why a request got no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer: {reason}")]
pub struct NoAnswer {
    /// True if the connection was never made, so that the request certainly had no effect.
    pub not_sent: bool,
    pub reason: String,
}

impl Client {
    /// A client that trusts no certificate authority.
    pub fn new(routers: Vec<String>) -> Self {
        Self::build(routers, RootCertStore::empty())
    }

    /// A client that trusts the authorities in a file.
    pub fn trusting(routers: Vec<String>, file: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(files::certificates(file, &files::read_file(file)?)?);
        Ok(Self::build(routers, roots))
    }

    fn build(routers: Vec<String>, roots: RootCertStore) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(Duration::from_secs(1)));
        connector.set_nodelay(true);
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the versions of TLS that are the default")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            // A test must see the outcome of its one request.
            .retry_canceled_requests(false)
            .build(connector);
        Self { http, routers, next: AtomicUsize::new(0), request_timeout: REQUEST_TIMEOUT, gateway: None }
    }

    /// Sets the time limit of each request.
    pub fn with_timeout(self, request_timeout: Duration) -> Self {
        Self { request_timeout, ..self }
    }

    /// A client behind an API gateway: a request whose connection breaks goes to the next router, until its deadline.
    pub fn behind_gateway(self) -> Self {
        Self { gateway: Some(Gateway::default()), ..self }
    }

    /// The answers that the clients behind the gateway got so far.
    pub fn tally(&self) -> Tally {
        self.gateway.as_ref().map(Gateway::tally).unwrap_or_default()
    }

    pub fn routers(&self) -> usize {
        self.routers.len()
    }

    /// The index of the next router, so that requests go to all routers in turn.
    pub fn next_router(&self) -> usize {
        self.next.fetch_add(1, Relaxed) % self.routers.len().max(1)
    }

    /// Sends one request to this router. A client behind a gateway sends it to the next router if the connection breaks.
    pub async fn call(
        &self,
        router: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, NoAnswer> {
        let url = |router: usize| format!("{}{path}", self.routers[router]);
        let Some(gateway) = &self.gateway else { return self.request(method, &url(router), body).await };
        let (begun, mut router) = (Instant::now(), router);
        loop {
            let left = self.request_timeout.saturating_sub(begun.elapsed()).max(SHORTEST_TIMEOUT);
            match self.send(&[], method.clone(), &url(router), body, left).await {
                Err(lost) if begun.elapsed() < self.request_timeout => gateway.moves_on(&lost),
                answer => {
                    gateway.ends(router, &answer, begun.elapsed());
                    return answer;
                }
            }
            tokio::time::sleep(BEFORE_NEXT).await;
            router = (router + 1) % self.routers.len();
        }
    }

    /// Sends one request to any URL, such as an admin listener's.
    pub async fn request(&self, method: Method, url: &str, body: Option<&Value>) -> Result<Answer, NoAnswer> {
        self.send(&[], method, url, body, self.request_timeout).await
    }

    /// [`Client::request`] with headers, each a name and a value.
    pub async fn request_with(
        &self,
        headers: &[(&str, &str)],
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Answer, NoAnswer> {
        self.send(headers, method, url, body, self.request_timeout).await
    }

    async fn send(
        &self,
        headers: &[(&str, &str)],
        method: Method,
        url: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<Answer, NoAnswer> {
        let lost = |not_sent, reason: String| NoAnswer { not_sent, reason };
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-request-timeout-ms", timeout.as_millis().to_string());
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value))
            .body(Full::new(body.map_or_else(Bytes::new, |body| body.to_string().into())))
            .map_err(|error| lost(true, error.to_string()))?;
        self.exchange_within(request, timeout).await
    }

    /// Sends a request unchanged, without the client's own headers.
    pub async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, NoAnswer> {
        self.exchange_within(request, self.request_timeout).await
    }

    async fn exchange_within(&self, request: Request<Full<Bytes>>, timeout: Duration) -> Result<Answer, NoAnswer> {
        let lost = |not_sent, reason: String| NoAnswer { not_sent, reason };
        let exchange = async {
            let response = self.http.request(request).await.map_err(|e| lost(e.is_connect(), with_causes(&e)))?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| lost(false, with_causes(&e)))?.to_bytes();
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        let patience = timeout + PATIENCE;
        tokio::time::timeout(patience, exchange)
            .await
            .unwrap_or_else(|_| Err(lost(false, format!("nothing within {patience:?}"))))
    }

    /// Sends a `GET` that must succeed, and returns the body.
    pub async fn get(&self, router: usize, path: &str) -> anyhow::Result<Value> {
        self.call(router, Method::GET, path, None).await?.success().with_context(|| format!("GET {path}"))
    }

    /// Sends a `POST` that must succeed, and returns the body.
    pub async fn post(&self, router: usize, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(router, Method::POST, path, Some(body)).await?.success().with_context(|| format!("POST {path}"))
    }
}

impl Answer {
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("the answer is not JSON: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Checks the status of the answer.
    pub fn expect_status(&self, expected: u16) -> anyhow::Result<()> {
        ensure!(self.status == expected, "expected status {expected}, not {}: {}", self.status, self.text());
        Ok(())
    }

    pub fn is_replay(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }

    /// The `code` of a problem. Any other answer has an empty code.
    pub fn code(&self) -> String {
        let body = self.json().unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The code of a refusal, or the status of what was asked for: `captured`, `hold_expired` and so on. For a batch, the statuses of its
    /// items, without repetitions in a row.
    pub fn outcome(&self) -> String {
        let body = self.json().unwrap_or_default();
        if let Some(items) = body["results"].as_array() {
            let mut statuses: Vec<&str> = items.iter().filter_map(|item| item["status"].as_str()).collect();
            statuses.dedup();
            return statuses.join(", ");
        }
        body["code"].as_str().or(body["status"].as_str()).unwrap_or_default().to_owned()
    }

    fn success(&self) -> anyhow::Result<Value> {
        ensure!((200..300).contains(&self.status), "answered {}: {}", self.status, self.text());
        self.json()
    }
}

/// The text of an error with the texts of its causes, because the client's own text is only "client error (Connect)".
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The path of an account.
pub fn account_path(account: &str) -> String {
    format!("/v1/accounts/{}", escaped(account))
}

/// The path of a hold, or of an action on it such as `/capture`. An id names one hold of each debit account.
pub fn hold_path(id: Uuid, debit: &str, action: &str) -> String {
    format!("/v1/holds/{id}{action}?debit={}", escaped(debit))
}

/// The path of a transfer, or of an action on it such as `/reverse`.
pub fn transfer_path(id: Uuid, debit: &str, action: &str) -> String {
    format!("/v1/transfers/{id}{action}?debit={}", escaped(debit))
}

/// An account's id in a URL, where braces must be escaped.
pub fn escaped(account: &str) -> String {
    account.replace('{', "%7B").replace('}', "%7D")
}
