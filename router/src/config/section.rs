//! The sections of the configuration file and their defaults.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use certificates::{CertificateError, Mutual, MutualFiles, TlsConfig};
use serde::{Deserialize, Serialize};

use crate::service::CoreConfig;

/// The public listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    /// More are answered 503 and closed.
    #[serde(default = "defaults::max_connections")]
    pub max_connections: usize,
    /// More are answered 503.
    #[serde(default = "defaults::max_requests_in_flight")]
    pub max_requests_in_flight: usize,
    /// From the first byte of a request's head (or from the connection's beginning) to the last.
    #[serde(default = "defaults::header_timeout_ms")]
    pub header_timeout_ms: u64,
    /// For the whole body.
    #[serde(default = "defaults::body_timeout_ms")]
    pub body_timeout_ms: u64,
    /// How long a connection may stay open between requests. Longer than the usual load balancer's 60 s, so that it is the
    /// balancer who closes.
    #[serde(default = "defaults::idle_timeout_ms")]
    pub idle_timeout_ms: u64,
    #[serde(default = "defaults::max_body_bytes")]
    pub max_body_bytes: usize,
    /// All bodies being read or worked on together; more are answered 503.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapConfig {
    /// Absolute, or relative to the configuration file's folder.
    pub path: PathBuf,
}

/// Who may call the API.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShardsConfig {
    pub queue_operations: usize,
    pub rpcs_in_flight: usize,
    pub max_batch_operations: usize,
    pub connect_timeout_ms: u64,
    pub breaker_failures: u32,
    pub breaker_open_ms: u64,
    /// With it, nodes are called with mutual TLS only, whatever the shard map says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<NodeTlsConfig>,
}

/// How this router and nodes know each other. The files are PEM: absolute, or relative to the configuration file's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Recovery of cross-shard transfers that nobody drives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SagaConfig {
    pub poll_interval_ms: u64,
    pub claim_limit: u32,
}

/// Admission.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
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

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
