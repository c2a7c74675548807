//! The sections of the configuration file with their defaults, and the settings that the core takes from them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use certificates::{CertificateError, Mutual, MutualFiles, TlsConfig};
use identity::AssetScales;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The public listener: the HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port of the API. Beyond loopback it needs keys and a certificate, or settings that permit to go without.
    pub listen: SocketAddr,
    /// Connections at once. More are answered 503 and closed. Connections of one address that have sent no request may be half of them.
    #[serde(default = "defaults::max_connections")]
    pub max_connections: usize,
    /// Requests at once. More are answered 503.
    #[serde(default = "defaults::max_requests_in_flight")]
    pub max_requests_in_flight: usize,
    /// Limit from the first byte of a request's head (or from the connection's beginning) to the last.
    #[serde(default = "defaults::header_timeout_ms")]
    pub header_timeout_ms: u64,
    /// Limit for the whole body of a request.
    #[serde(default = "defaults::body_timeout_ms")]
    pub body_timeout_ms: u64,
    /// How long a connection may stay open between requests. Longer than the usual load balancer's 60 s, so that it is the
    /// balancer who closes.
    #[serde(default = "defaults::idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    /// The largest body of a request. Larger ones are answered 413. At most half of the largest internal message.
    #[serde(default = "defaults::max_body_bytes")]
    pub max_body_bytes: usize,
    /// All bodies being read or worked on together; more are answered 503. One key may have half of them, and at least one body; more are answered 429. At least `http.max_body_bytes`, and less than 4 GiB.
    #[serde(default = "defaults::max_buffered_bytes")]
    pub max_buffered_bytes: usize,
    /// How long requests in flight may go on after SIGTERM.
    #[serde(default = "defaults::drain_timeout_ms")]
    pub drain_timeout_ms: u64,
    /// With it, the listener takes HTTPS only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

/// The listener for operators; loopback unless there is a reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port of health, metrics and `/admin/…`.
    pub listen: SocketAddr,
}

/// The shard map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MapConfig {
    /// The file: absolute, or relative to the configuration file's folder.
    pub path: PathBuf,
}

/// Who may call the API.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// The file of keys: absolute, or relative to the configuration file's folder. Without it, requests need no key.
    pub path: Option<PathBuf>,
    /// Permits `http.listen` to be another address than loopback without keys.
    pub allow_unauthenticated: bool,
    /// Permits keys to arrive without TLS at another address than loopback, for a proxy in front that ends TLS.
    pub allow_plaintext: bool,
}

/// What each shard gets of this router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShardsConfig {
    /// Operations that may wait for one shard; more are refused as `overloaded`.
    pub queue_operations: usize,
    /// Execute calls to one shard at once (ADR 4).
    pub rpcs_in_flight: usize,
    /// Operations in one Execute call.
    pub max_batch_operations: usize,
    /// Limit for a connection to a node.
    pub connect_timeout_ms: u64,
    /// Connection-class failures in a row after which the router calls a shard no more for a while.
    pub breaker_failures: u32,
    /// How long that lasts before a single probe.
    pub breaker_open_ms: u64,
    /// With it, nodes are called with mutual TLS only, whatever the shard map says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<NodeTlsConfig>,
}

/// How this router and nodes know each other. The files are PEM: absolute, or relative to the configuration file's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeTlsConfig {
    /// The certificate with which this router calls nodes, and after it those between it and the authority that nodes trust.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities of nodes' certificates.
    pub authority: PathBuf,
    /// Names of which a node's certificate must have one, besides the host in its address. Empty: the host is enough.
    #[serde(default)]
    pub nodes: Vec<String>,
}

impl NodeTlsConfig {
    /// Relative paths begin at `folder` from now on.
    pub fn begin_at(&mut self, folder: &Path) {
        for path in [&mut self.certificate, &mut self.key, &mut self.authority] {
            *path = folder.join(&path);
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the key is not the key of the certificate.
    pub fn open(&self) -> Result<Mutual, CertificateError> {
        let Self { certificate, key, authority, nodes } = self.clone();
        Mutual::open(&MutualFiles { certificate, key, authority }, Vec::new(), nodes)
    }
}

/// Recovery of cross-shard transfers that no router drives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SagaConfig {
    /// How often each shard is asked for transfers that no router drives.
    pub poll_interval_ms: u64,
    /// Transfers taken over for each answer.
    pub claim_limit: u32,
}

/// Admission of requests, over all clients.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Requests of all clients together; 0: no limit.
    pub requests_per_second: u32,
    /// How many may come at once; 0: one second's worth.
    pub burst: u32,
}

mod defaults {
    pub fn max_connections() -> usize {
        4096
    }
    pub fn max_requests_in_flight() -> usize {
        8192
    }
    pub fn header_timeout_ms() -> u64 {
        10_000
    }
    pub fn body_timeout_ms() -> u64 {
        10_000
    }
    pub fn idle_timeout_ms() -> u64 {
        75_000
    }
    pub fn max_body_bytes() -> usize {
        16 * 1024 * 1024
    }
    pub fn max_buffered_bytes() -> usize {
        256 * 1024 * 1024
    }
    pub fn drain_timeout_ms() -> u64 {
        20_000
    }
}

impl Default for ShardsConfig {
    fn default() -> Self {
        let core = CoreConfig::default();
        Self {
            queue_operations: core.queue_operations,
            rpcs_in_flight: core.rpcs_in_flight,
            max_batch_operations: core.max_batch_operations,
            connect_timeout_ms: milliseconds(core.connect_timeout),
            breaker_failures: core.breaker_failures,
            breaker_open_ms: milliseconds(core.breaker_open),
            tls: None,
        }
    }
}

impl Default for SagaConfig {
    fn default() -> Self {
        let core = CoreConfig::default();
        Self { poll_interval_ms: milliseconds(core.saga_poll_interval), claim_limit: core.saga_claim_limit }
    }
}

// === the core ===

/// The settings of the core: bounds and times of everything between the edge and the shards.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// The name by which nodes refer to this router in messages.
    pub name: String,
    /// Every asset that this router declares, with its scale.
    pub assets: AssetScales,
    /// Operations that may wait for one shard; more are refused as overloaded.
    pub queue_operations: usize,
    /// Requests that may wait for one shard, where there are others; further ones are refused as overloaded before they reserve anything. A
    /// shard that does not answer then leaves the rest of the router to the others. A part of a large batch counts as a request.
    pub waiting_requests: usize,
    /// Execute calls to one shard at once.
    pub rpcs_in_flight: usize,
    /// Operations in one Execute call.
    pub max_batch_operations: usize,
    pub connect_timeout: Duration,
    /// The certificate with which this router calls nodes; `None`: without TLS.
    pub tls: Option<Mutual>,
    /// Connection-class failures in a row that open a shard's breaker.
    pub breaker_failures: u32,
    /// How long it stays open before a single probe.
    pub breaker_open: Duration,
    /// How often each shard is asked for sagas without a driver.
    pub saga_poll_interval: Duration,
    /// Sagas taken over per poll.
    pub saga_claim_limit: u32,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            name: "router".to_owned(),
            assets: AssetScales::new(),
            queue_operations: 32_768,
            waiting_requests: 2_048,
            // One is decided while the next is on its way. Measured with single transfers on 64 connections, four make
            // the calls half as large and cost router, node and database a fifth more CPU per transfer.
            rpcs_in_flight: 2,
            max_batch_operations: 8_192,
            connect_timeout: Duration::from_millis(1_000),
            tls: None,
            breaker_failures: 3,
            breaker_open: Duration::from_millis(500),
            saga_poll_interval: Duration::from_millis(1_000),
            saga_claim_limit: 256,
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
