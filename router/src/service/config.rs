//! Settings of the core. The edge reads them from the configuration file and validates them.

use std::time::Duration;

use certificates::Mutual;
use identity::AssetScales;

/// Bounds and times of everything between the edge and the shards.
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
