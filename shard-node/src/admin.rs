//! The admin listener: health, metrics and what the lane is doing.

use axum::{Json, Router, http::StatusCode, routing::get};
use serde_json::json;
use telemetry::{admin, metrics::PrometheusHandle};

use crate::lane::{LaneHandle, LaneState};

/// `/readyz` is true while the lane can write; `/status` tells more.
pub fn routes(lane: LaneHandle, metrics: PrometheusHandle) -> Router {
    let status_of = lane.clone();
    admin::routes(telemetry::build_info!(), metrics)
        .route(
            "/readyz",
            get(async move || {
                let state = lane.status().state;
                let code = if state == LaneState::Serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                (code, format!("{}\n", state.as_str()))
            }),
        )
        .route(
            "/status",
            get(async move || {
                let lane = status_of.status();
                Json(json!({
                    "state": lane.state.as_str(),
                    "waiting_operations": lane.waiting,
                    "batches": lane.batches,
                    "operations": lane.operations,
                    "last_batch_operations": lane.last_batch,
                    "last_commit_us": u64::try_from(lane.last_commit.as_micros()).unwrap_or(u64::MAX),
                    "cached_accounts": lane.cached_accounts,
                    "next_position": lane.next_position.0,
                    "ownership_version": lane.ownership_version,
                    "slots_owned": lane.slots_owned,
                    "highest_epoch": lane.highest_epoch,
                    "last_error": lane.last_error,
                }))
            }),
        )
}
