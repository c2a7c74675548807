//! `/readyz`: whether to send requests to this router. The status code reflects the process alone: a router that refuses new clients,
//! because each of its connections is in use, says so with a 503. An unreachable
//! shard does not make a router unready, because the other shards are served and every other router sees the same.
//! The body says at how many shards reads and writes work.

use axum::{extract::State, response::Response};
use certificates::CertificateStatus;
use http::StatusCode;
use serde::Serialize;
use telemetry::clock::{self, format_rfc3339};

use super::{Admin, Phase, shard_map::MapView, shards::ShardView};
use crate::{
    http::{Parameters, json, problem::Problem},
    keyring::{Keyring, KeyringStatus},
};

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
pub async fn ready(State(admin): State<Admin>, mut parameters: Parameters) -> Result<Response, Problem> {
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
            shard_map: MapView::new(admin.router.routing()),
            keys: admin.keyring.as_ref().map(KeysView::new),
            tls: admin.certificates.as_ref().map(|it| CertificateView::new(it.status())),
            node_tls: admin.node_tls.as_ref().map(|it| CertificateView::new(it.status())),
            degraded: admin
                .router
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
    let (reads, writes, shards) = admin.router.working();
    let share = |working: usize| match working {
        0 => "none",
        working if working == shards => "all",
        _ => "some",
    };
    Ok(json(code, &Readiness { status, reads: share(reads), writes: share(writes), details }))
}
