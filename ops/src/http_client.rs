//! The HTTP client of the commands: JSON in, JSON out. It distinguishes two failures: no answer, and an answer that
//! is a problem.

use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{exit::Unreachable, trust};

/// Keeps connections open between requests. Cloning shares them.
#[derive(Clone)]
pub struct HttpClient {
    inner: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
    /// The value of `Authorization`, if [`KEY`] is set.
    key: Option<HeaderValue>,
}

/// An RFC 9457 problem. Every layer of a router answers errors in this form.
#[derive(Debug, Deserialize, thiserror::Error)]
#[error("{status} {code}: {}", detail.as_deref().unwrap_or(title))]
pub struct ApiProblem {
    pub status: u16,
    pub code: String,
    pub title: String,
    pub detail: Option<String>,
    /// `false`, or `"unknown"`.
    pub executed: Option<serde_json::Value>,
}

/// The answer to a batch of accounts or transfers: one result for each item, in the order of the items.
#[derive(Debug, Deserialize)]
pub struct BatchAnswer {
    pub results: Vec<ItemAnswer>,
}

/// The result of one item of a batch. The fields that only accounts or only transfers have are left out.
#[derive(Debug, Deserialize)]
pub struct ItemAnswer {
    pub id: String,
    pub status: Option<String>,
    #[serde(default)]
    pub replayed: bool,
    pub code: Option<String>,
    pub field: Option<String>,
    pub side: Option<String>,
    pub detail: Option<String>,
}

/// The context of an [`Unreachable`] if there was no connection, so that the request certainly had no effect.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("not sent")]
pub struct NotSent;

/// An answer whose status was neither success nor a problem.
#[derive(Debug, thiserror::Error)]
#[error("{url} answered {status}: {body}")]
pub struct UnexpectedAnswer {
    pub url: String,
    pub status: StatusCode,
    pub body: String,
}

/// The environment variable with the key that requests carry. An argument of a command would be visible to every user of the machine.
const KEY: &str = "SHARDLEDGER_KEY";

/// The value of `Authorization` for the key in the environment.
pub fn key() -> Option<HeaderValue> {
    let value = HeaderValue::try_from(format!("Bearer {}", std::env::var(KEY).ok()?.trim()));
    let mut value = value
        .inspect_err(|_| crate::output::note(&format!("{KEY} is ignored: its value is not a valid key")))
        .ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// How many characters of an unexpected body are printed.
const BODY_EXCERPT: usize = 200;

impl HttpClient {
    /// `timeout` bounds each request including its answer. Requests carry the key of the environment variable `SHARDLEDGER_KEY`, if it is set.
    pub fn new(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(timeout));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trust::https())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Self { inner: Client::builder(TokioExecutor::new()).build(connector), timeout, key: key() }
    }

    pub async fn get<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        self.json(Method::GET, url, Bytes::new()).await
    }

    pub async fn post<T: DeserializeOwned>(&self, url: &str, body: impl Into<Bytes>) -> anyhow::Result<T> {
        self.json(Method::POST, url, body.into()).await
    }

    /// Sends one request and returns the whole answer, with any status.
    pub async fn send(&self, method: Method, url: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        let unreachable = |reason: String| Unreachable { what: url.to_owned(), reason };
        let exchange = async {
            let response = self.inner.request(request).await.map_err(|error| {
                let reason = unreachable(with_causes(&error));
                if error.is_connect() { anyhow::Error::new(reason).context(NotSent) } else { reason.into() }
            })?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| unreachable(with_causes(&e)))?;
            Ok((status, body.to_bytes()))
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(unreachable(format!("no answer within {} ms", self.timeout.as_millis())).into()),
        }
    }

    /// Returns the routers that answer a GET of `path` with any status.
    ///
    /// # Errors
    /// No router answers. A wrong address is then reported before any work is done.
    pub async fn reachable_routers(&self, urls: &[String], path: &str) -> anyhow::Result<Vec<String>> {
        let mut routers = Vec::new();
        let mut unreachable = anyhow!("no router is named");
        for url in urls {
            match self.send(Method::GET, &format!("{url}{path}"), Bytes::new()).await {
                Ok(_) => routers.push(url.clone()),
                Err(error) => unreachable = error,
            }
        }
        if routers.is_empty() { Err(unreachable) } else { Ok(routers) }
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, url: &str, body: Bytes) -> anyhow::Result<T> {
        let (status, body) = self.send(method, url, body).await?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        Err(problem_of(url, status, &body))
    }
}

/// The error for an answer without success: the problem in its body, or [`UnexpectedAnswer`].
pub fn problem_of(url: &str, status: StatusCode, body: &[u8]) -> anyhow::Error {
    if let Ok(problem) = serde_json::from_slice::<ApiProblem>(body) {
        return problem.into();
    }
    let body = String::from_utf8_lossy(body).chars().take(BODY_EXCERPT).collect();
    UnexpectedAnswer { url: url.to_owned(), status, body }.into()
}

/// The message of a client's error says only "client error (Connect)"; the reason is in its source.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let reason = inner.to_string();
        // An error that only wraps another one has the same text.
        if !text.ends_with(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = inner.source();
    }
    text
}

/// Encodes text as one segment of a path or one value of a query.
pub fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn ids_with_hash_tags_survive_a_url() {
        assert_eq!(encoded("{user42}:wallet@x.y-z_1"), "%7Buser42%7D%3Awallet%40x.y-z_1");
        assert_eq!(encoded("a/b?c"), "a%2Fb%3Fc");
    }
}
