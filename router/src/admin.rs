//! The operators' listener: probes, metrics, and what this router knows of shards and pending transfers. It listens
//! on loopback unless configured otherwise. It moves no money, and answers while shards are down.

mod handovers;
mod probes;
mod sagas;
mod shard_map;
mod shards;

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use axum::{
    Router as Routes,
    extract::DefaultBodyLimit,
    middleware::from_fn,
    routing::{get, post},
};
use certificates::{Certificates, Mutual};
use ledger::AssetRegistry;

use crate::{
    http::{self, server::Connections},
    keyring::Keyring,
    routing::MAX_MAP_BYTES,
    service::Router,
};

/// The phase of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Starting = 0,
    Ready = 1,
    Draining = 2,
}

/// The admin API and what it needs. Clones share it.
#[derive(Clone)]
pub struct Admin {
    router: Router,
    keyring: Option<Keyring>,
    certificates: Option<Certificates>,
    /// The certificate of calls to nodes.
    node_tls: Option<Mutual>,
    /// The connections of the clients' listener.
    clients: Arc<Connections>,
    phase: Arc<AtomicU8>,
    /// The routes `/livez`, `/metrics` and `/version`, which every service has.
    plain: Routes,
    assets: Arc<AssetRegistry>,
}

impl Admin {
    pub fn new(
        router: Router,
        keyring: Option<Keyring>,
        certificates: Option<Certificates>,
        node_tls: Option<Mutual>,
        clients: Arc<Connections>,
        plain: Routes,
        assets: AssetRegistry,
    ) -> Self {
        Self {
            router,
            keyring,
            certificates,
            node_tls,
            clients,
            phase: Arc::new(AtomicU8::new(Phase::Starting as u8)),
            plain,
            assets: Arc::new(assets),
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Every route of this listener.
    pub fn routes(&self) -> Routes {
        let own = Routes::new()
            .route("/readyz", get(probes::ready))
            .route("/admin/shard-map", get(shard_map::show))
            .route("/admin/shard-map/reload", post(shard_map::reload))
            .route(
                "/admin/shard-map/check",
                post(shard_map::check).layer(DefaultBodyLimit::max(MAX_MAP_BYTES as usize)),
            )
            .route("/admin/sagas", get(sagas::list))
            .route("/admin/sagas/{id}/retry", post(sagas::retry))
            .route("/admin/shards", get(shards::list))
            .route("/admin/handovers", get(handovers::list))
            .with_state(self.clone());
        own.merge(self.plain.clone())
            .fallback(http::not_found)
            .method_not_allowed_fallback(http::method_not_allowed)
            .layer(from_fn(http::operator_layers))
    }
}
