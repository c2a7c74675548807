//! `GET /admin/handovers`: the requests that waited in this router while slots changed shards, for `shardctl move report`.

use axum::{extract::State, response::Response};
use http::StatusCode;
use serde::Serialize;
use telemetry::clock::format_rfc3339;

use super::Admin;
use crate::{
    http::{NoParameters, json},
    service::handover::Record,
};

#[derive(Serialize)]
struct HandoversView {
    data: Vec<HandoverView>,
}

/// One hand-over.
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
    /// Those that were sent again after the shard had received the slot.
    replayed: u64,
    /// Those that were refused: too many waited, or they had waited too long.
    refused: u64,
    /// The waits of the operations that were sent again: microseconds and number, to 1 %.
    waits: Vec<(u64, u64)>,
}

pub async fn list(State(admin): State<Admin>, _: NoParameters) -> Response {
    let data = admin.router.handovers().into_iter().map(HandoverView::from).collect();
    json(StatusCode::OK, &HandoversView { data })
}

impl From<Record> for HandoverView {
    fn from(record: Record) -> Self {
        let Record { shard, epoch, slots, begun_at_us, waited, replayed, refused, waits } = record;
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
