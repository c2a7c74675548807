//! The admin listener: health, metrics and the lane's status.

use std::sync::Arc;

use axum::{Json, Router, extract::Query, http::StatusCode, response::IntoResponse, routing::get};
use serde::{Deserialize, Serialize};
use serde_json::json;
use telemetry::{admin, metrics::Metrics};

use crate::{clock::NodeClock, gate::Gate, lane::LaneHandle, role::NodeRole};

#[derive(Deserialize)]
struct Verbosity {
    verbose: Option<String>,
}

/// `/readyz`: whether reads and writes work now, each separately.
#[derive(Serialize)]
struct Readiness {
    /// `ready`: both work. `degraded`: one works. `unready`: neither works.
    status: &'static str,
    reads: bool,
    writes: bool,
    #[serde(flatten)]
    causes: Option<Causes>,
}

#[derive(Serialize)]
struct Causes {
    /// `active`, or `following, N bookings behind`.
    role: String,
    reads_cause: Option<String>,
    writes_cause: Option<String>,
    /// Everything that disagrees, with remedies: what keeps the node from serving, and clocks beyond their bound.
    disagreements: Vec<identity::Disagreement>,
}

impl Readiness {
    fn of(gate: &Gate, clock: &NodeClock, role: &NodeRole, verbose: bool) -> Self {
        let (reads, writes) = (gate.reads(), gate.writes());
        let status = match (&reads, &writes) {
            (Ok(()), Ok(())) => "ready",
            (Err(_), Err(_)) => "unready",
            _ => "degraded",
        };
        let mut disagreements = gate.refusals();
        disagreements.extend(clock.disagreement());
        disagreements.extend(clock.others());
        Self {
            status,
            reads: reads.is_ok(),
            writes: writes.is_ok(),
            causes: verbose.then(|| Causes {
                role: role.now().to_string(),
                reads_cause: reads.err(),
                writes_cause: writes.err(),
                disagreements,
            }),
        }
    }

    /// 200 only when reads and writes work. A caller that needs only one of them reads the body.
    fn code(&self) -> StatusCode {
        if self.reads && self.writes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
}

/// The routes `/readyz`, with `?verbose` for the causes, and `/status`.
pub fn routes(gate: Gate, clock: Arc<NodeClock>, lane: LaneHandle, role: NodeRole, metrics: Metrics) -> Router {
    let role_of_status = role.clone();
    admin::routes(telemetry::build_info!(), metrics)
        .route(
            "/readyz",
            get(async move |Query(verbosity): Query<Verbosity>| {
                let verbose = verbosity.verbose.is_some_and(|value| value != "false");
                let readiness = Readiness::of(&gate, &clock, &role, verbose);
                (readiness.code(), Json(readiness)).into_response()
            }),
        )
        .route(
            "/status",
            get(async move || {
                let lane = lane.status();
                Json(json!({
                    "state": lane.state.as_str(),
                    "role": role_of_status.now().to_string(),
                    "waiting_operations": lane.waiting,
                    "batches": lane.batches,
                    "operations": lane.operations,
                    "last_batch_operations": lane.last_batch,
                    "last_commit_us": u64::try_from(lane.last_commit.as_micros()).unwrap_or(u64::MAX),
                    "cached_accounts": lane.cached_accounts,
                    "next_position": lane.next_position.0.to_string(),
                    "folded_position": lane.folded_position.0.to_string(),
                    "unfolded_bookings": lane.unfolded.bookings,
                    "unfolded_accounts": lane.unfolded.accounts,
                    "ownership_version": lane.ownership_version,
                    "slots_owned": lane.slots_owned,
                    "highest_epoch": lane.highest_epoch,
                    "last_error": lane.last_error,
                }))
            }),
        )
}
