//! The operators' listener: probes, metrics, and what this router knows of shards and pending transfers. It listens
//! on loopback unless configured otherwise. It moves no money, and answers while shards are down.

mod sagas;
mod shard_map;
mod shards;

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use axum::{
    Router as Routes,
    extract::{DefaultBodyLimit, State},
    middleware::from_fn,
    response::Response,
    routing::{get, post},
};
use certificates::{CertificateStatus, Certificates, Mutual};
use http::StatusCode;
use ledger::AssetRegistry;
use serde::Serialize;
use telemetry::clock::{self, format_rfc3339};

use self::{shard_map::MapView, shards::ShardView};
use crate::{
    core::{Core, routing::MAX_MAP_BYTES},
    http::{self as edge, answer::json, parameters::Parameters, problem::Problem, server::Connections},
    keyring::{Keyring, KeyringStatus},
};

/// The phase of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Starting = 0,
    Ready = 1,
    Draining = 2,
}

/// The listener of operators and what its handlers need. Clones share it.
#[derive(Clone)]
pub struct Admin {
    core: Arc<Core>,
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
        core: Arc<Core>,
        keyring: Option<Keyring>,
        certificates: Option<Certificates>,
        node_tls: Option<Mutual>,
        clients: Arc<Connections>,
        plain: Routes,
        assets: AssetRegistry,
    ) -> Self {
        Self {
            core,
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
            .route("/readyz", get(ready))
            .route("/admin/shard-map", get(shard_map::show))
            .route("/admin/shard-map/reload", post(shard_map::reload))
            .route(
                "/admin/shard-map/check",
                post(shard_map::check).layer(DefaultBodyLimit::max(MAX_MAP_BYTES as usize)),
            )
            .route("/admin/sagas", get(sagas::list))
            .route("/admin/sagas/{id}/retry", post(sagas::retry))
            .route("/admin/shards", get(shards::list))
            .route("/admin/handovers", get(shard_map::handovers))
            .with_state(self.clone());
        own.merge(self.plain.clone())
            .fallback(edge::not_found)
            .method_not_allowed_fallback(edge::method_not_allowed)
            .layer(from_fn(edge::operator_layers))
    }
}

// === readiness ===
//
// The status code reflects the process alone: a router that refuses new clients, because each of its connections is in use, answers 503. An
// unreachable shard does not make a router unready, because the other shards are served and every other router sees the same. The body says at
// how many shards reads and writes work.

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    /// At how many shards each works, by the last heartbeats: `all`, `some` or `none`.
    reads: &'static str,
    writes: &'static str,
    #[serde(flatten)]
    details: Option<Details>,
}

#[derive(Serialize)]
struct Details {
    shard_map: MapView,
    /// `null`: requests need no key.
    keys: Option<KeysView>,
    /// `null`: the public listener takes plain HTTP.
    tls: Option<CertificateView>,
    /// `null`: nodes are called without TLS.
    node_tls: Option<CertificateView>,
    /// Shards that are unreachable or say that they do not serve.
    degraded: Vec<ShardView>,
}

#[derive(Serialize)]
struct KeysView {
    file: String,
    keys: usize,
    loaded_at: String,
    /// Why the newest file was refused. The keys in use stay in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl KeysView {
    fn new(keyring: &Keyring) -> Self {
        let KeyringStatus { file, keys, loaded_at_us, refusal } = keyring.status();
        Self { file: file.display().to_string(), keys, loaded_at: format_rfc3339(loaded_at_us), refused: refusal }
    }
}

#[derive(Serialize)]
struct CertificateView {
    certificate: String,
    loaded_at: String,
    expires_at: String,
    /// Seconds until the certificate in use expires; negative once it has.
    expires_in_s: i64,
    /// Why the newest files were refused. The certificate in use stays in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl CertificateView {
    fn new(status: CertificateStatus) -> Self {
        let CertificateStatus { certificate, loaded_at_us, expires_at_s, refusal } = status;
        Self {
            certificate: certificate.display().to_string(),
            loaded_at: format_rfc3339(loaded_at_us),
            expires_at: format_rfc3339(expires_at_s.saturating_mul(1_000_000)),
            expires_in_s: expires_at_s - clock::now_us() / 1_000_000,
            refused: refusal,
        }
    }
}

/// `GET /readyz`; `?verbose` adds the map's state and the degraded shards.
async fn ready(State(admin): State<Admin>, mut parameters: Parameters) -> Result<Response, Problem> {
    let verbose = parameters
        .take_as("verbose", "nothing, true or false", |text| match text {
            "" | "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
        .unwrap_or(false);
    parameters.finish()?;
    let details = match verbose {
        false => None,
        true => Some(Details {
            shard_map: MapView::new(&admin.core.routing),
            keys: admin.keyring.as_ref().map(KeysView::new),
            tls: admin.certificates.as_ref().map(|it| CertificateView::new(it.status())),
            node_tls: admin.node_tls.as_ref().map(|it| CertificateView::new(it.status())),
            degraded: admin
                .core
                .shard_status()
                .await
                .into_iter()
                .map(ShardView::new)
                .filter(ShardView::is_degraded)
                .collect(),
        }),
    };
    let (code, status) = match admin.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Ready if admin.clients.are_full() => (StatusCode::SERVICE_UNAVAILABLE, "no free connection"),
        Phase::Ready => (StatusCode::OK, "ready"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let (reads, writes, shards) = admin.core.working();
    let share = |working: usize| match working {
        0 => "none",
        working if working == shards => "all",
        _ => "some",
    };
    Ok(json(code, &Readiness { status, reads: share(reads), writes: share(writes), details }))
}
