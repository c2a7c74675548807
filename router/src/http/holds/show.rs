//! Reading a hold by its id.

use axum::{extract::State, response::Response};
use http::StatusCode;

use crate::http::{
    Edge,
    access::Access,
    context::RequestDeadline,
    found,
    openapi::values,
    path::IdPath,
    problem::Problem,
    query::DebitParameter,
    view::{self, hold::HoldView},
};

/// Read a hold.
///
/// An id belongs to its debit account. With `debit` only that account's shard is asked; without it all are, and two holds
/// under one id are `ambiguous_id`.
#[utoipa::path(
    get, path = "/v1/holds/{id}", operation_id = "getHold", tag = "holds",
    params(
        ("id" = values::TransferId, Path, description = "The hold."),
        DebitParameter,
    ),
    responses(
        (status = 200, description = "the hold", body = HoldView),
    ),
)]
pub async fn show(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
) -> Result<Response, Problem> {
    let found = edge
        .core
        .find_hold(id, debit.as_ref(), deadline.0)
        .await
        .map_err(|error| Problem::from(error).with_hold(id.0))?;
    let found = found::to_show(id, access.readable(found))?;
    Ok(view::json(StatusCode::OK, &HoldView::stored(&found.key, &found.hold, &edge.rulebook.assets)?))
}
