//! `/admin/shard-map`: the map in use, its reload, and the check of a new one. `/admin/handovers`: the requests that waited while slots
//! changed shards.

use std::{collections::HashMap, time::Duration};

use axum::{extract::State, response::Response};
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use shard_map::MapError;
use telemetry::clock::format_rfc3339;
use tokio::time::Instant;

use super::Admin;
use crate::{
    core::{
        handover::HandoverRecord,
        reply::ShardStatus,
        routing::{MapRefusal, MapStatus, Override, Reload, Routing},
    },
    http::{
        answer::json,
        parameters::NoParameters,
        problem::{Code, Problem},
    },
};

/// The map in use and its problems.
#[derive(Serialize)]
pub struct MapView {
    cluster: String,
    version: u64,
    source: String,
    loaded_at: String,
    /// The refusal of the newest offered map.
    refused: Option<RefusalView>,
    /// Slots whose requests go to another shard than the map says, because the shards say so.
    overrides: Vec<OverrideView>,
}

#[derive(Serialize)]
struct RefusalView {
    at: String,
    source: String,
    line: Option<usize>,
    reason: String,
}

#[derive(Serialize)]
struct OverrideView {
    slots: String,
    in_map: String,
    owner: String,
    epoch: i64,
}

#[derive(Serialize)]
struct FullMapView {
    #[serde(flatten)]
    map: MapView,
    shards: Vec<MappedShardView>,
    removed: Vec<RemovedShardView>,
}

/// A shard that the cluster had before. Its id and number are not given to another shard.
#[derive(Serialize)]
struct RemovedShardView {
    id: String,
    number: u16,
}

#[derive(Serialize)]
struct MappedShardView {
    id: String,
    number: u16,
    nodes: Vec<String>,
    /// The slots whose requests go to this shard, overrides included.
    slots: Vec<String>,
    slot_count: usize,
    /// The state that the node reports, or `unreachable`.
    health: String,
}

#[derive(Serialize)]
struct ReloadView {
    outcome: &'static str,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
}

#[derive(Serialize)]
struct CheckView {
    valid: bool,
    /// The version of the checked map; `null` if it was refused.
    version: Option<u64>,
    /// The version of the map in use.
    in_use: u64,
    problems: Vec<ProblemView>,
}

#[derive(Serialize)]
struct ProblemView {
    line: Option<usize>,
    reason: String,
}

/// Limit for the shards to report what they own, before a map is checked.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);

/// `GET /admin/shard-map`
pub async fn show(State(admin): State<Admin>, _: NoParameters) -> Response {
    let table = admin.core.routing.load();
    let health: HashMap<_, _> = admin.core.shard_status().await.into_iter().map(health_of).collect();
    let shards = table
        .shards()
        .map(|(index, shard)| {
            let slots = table.slots_of(index);
            MappedShardView {
                id: shard.id.clone(),
                number: shard.number,
                nodes: shard.nodes.clone(),
                slot_count: slots.iter().map(|range| usize::from(range.len())).sum(),
                slots: slots.iter().map(ToString::to_string).collect(),
                health: health.get(shard.id.as_str()).cloned().unwrap_or_else(|| "unknown".to_owned()),
            }
        })
        .collect();
    let removed = table.map().removed.iter();
    let removed = removed.map(|shard| RemovedShardView { id: shard.id.clone(), number: shard.number }).collect();
    json(StatusCode::OK, &FullMapView { map: MapView::new(&admin.core.routing), shards, removed })
}

fn health_of(status: ShardStatus) -> (String, String) {
    let health = status.status.map_or_else(|_| "unreachable".to_owned(), |status| status.state);
    (status.shard.to_string(), health)
}

/// `POST /admin/shard-map/reload`
pub async fn reload(State(admin): State<Admin>, _: NoParameters) -> Result<Response, Problem> {
    let view = match admin.core.routing.reload().await {
        Ok(Reload::Unchanged { version }) => ReloadView { outcome: "unchanged", version, from: None },
        Ok(Reload::Replaced { from, to }) => ReloadView { outcome: "replaced", version: to, from: Some(from) },
        // The caller is the operator, so the reason may name the file and the line.
        Err(refused) => {
            return Err(Problem::new(Code::InvalidShardMap, format!("{refused}; the map in use stays in use")));
        }
    };
    Ok(json(StatusCode::OK, &view))
}

/// `POST /admin/shard-map/check`, with the map's text as body: what a reload would do with this map. The map is not
/// used.
pub async fn check(State(admin): State<Admin>, _: NoParameters, body: Bytes) -> Result<Response, Problem> {
    let refused = |reason: &dyn std::fmt::Display| Problem::new(Code::InvalidShardMap, reason.to_string());
    let text = String::from_utf8(body.into()).map_err(|error| refused(&error))?;
    // A map that follows a finished move is valid only by what the shards say, so ask them first.
    admin.core.refresh_ownership(Instant::now() + REFRESH_TIMEOUT).await;
    let routing = &admin.core.routing;
    let judgement = routing.check(text).await.map_err(|error| refused(&error))?;
    let (version, problems) = match judgement {
        Ok(version) => (Some(version), Vec::new()),
        Err(MapError { problems }) => (None, problems),
    };
    let problems = problems
        .into_iter()
        .map(|problem| ProblemView { line: problem.line, reason: problem.reason.to_string() })
        .collect();
    let in_use = routing.load().map().version;
    Ok(json(StatusCode::OK, &CheckView { valid: version.is_some(), version, in_use, problems }))
}

impl MapView {
    pub fn new(routing: &Routing) -> Self {
        let MapStatus { cluster, version, source, loaded_at_us, refusal, overrides } = routing.status();
        Self {
            cluster: cluster.to_string(),
            version,
            source,
            loaded_at: format_rfc3339(loaded_at_us),
            refused: refusal.map(|MapRefusal { at_us, source, line, reason }| RefusalView {
                at: format_rfc3339(at_us),
                source,
                line,
                reason,
            }),
            overrides: overrides
                .into_iter()
                .map(|Override { slots, in_map, owner, epoch }| OverrideView {
                    slots: slots.to_string(),
                    in_map,
                    owner,
                    epoch,
                })
                .collect(),
        }
    }
}

// === hand-overs ===

#[derive(Serialize)]
struct HandoversView {
    data: Vec<HandoverView>,
}

/// One hand-over of slots.
#[derive(Serialize)]
struct HandoverView {
    /// The shard that received the slots.
    shard: String,
    /// The epoch of the slots at this shard.
    epoch: i64,
    /// The slots for which operations waited.
    slots: Vec<String>,
    /// When the first operation began to wait.
    begun_at: String,
    begun_at_us: i64,
    /// Operations that waited.
    waited: u64,
    /// Operations that were sent again after the shard had received the slot.
    replayed: u64,
    /// Operations that were refused because too many waited, or because they had waited too long.
    refused: u64,
    /// The waits of the operations that were sent again: microseconds and number, to 1 %.
    waits: Vec<(u64, u64)>,
}

/// `GET /admin/handovers`, for `shardctl move report`.
pub async fn handovers(State(admin): State<Admin>, _: NoParameters) -> Response {
    let data = admin.core.handovers().into_iter().map(HandoverView::from).collect();
    json(StatusCode::OK, &HandoversView { data })
}

impl From<HandoverRecord> for HandoverView {
    fn from(record: HandoverRecord) -> Self {
        let HandoverRecord { shard, epoch, slots, begun_at_us, waited, replayed, refused, waits } = record;
        Self {
            shard: shard.to_string(),
            epoch,
            slots: slots.iter().map(ToString::to_string).collect(),
            begun_at: format_rfc3339(begun_at_us),
            begun_at_us,
            waited,
            replayed,
            refused,
            waits,
        }
    }
}
