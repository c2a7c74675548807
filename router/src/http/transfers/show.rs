//! Reading a transfer by its id.

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
    view::{self, transfer::TransferView},
};

/// Read a transfer, with its steps where it crosses shards and what was reversed of it.
///
/// An id belongs to its debit account. With `debit` only that account's shard is asked; without it all are, and two
/// transfers under one id are `ambiguous_id`.
#[utoipa::path(
    get, path = "/v1/transfers/{id}", operation_id = "getTransfer", tag = "transfers",
    params(
        ("id" = values::TransferId, Path, description = "The transfer."),
        DebitParameter,
    ),
    responses(
        (status = 200, description = "the transfer", body = TransferView),
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
        .find_transfer(id, debit.as_ref(), |found| access.may_read_transfer(found), deadline.0)
        .await
        .map_err(|error| Problem::from(error).with_transfer(id.0))?;
    let found = found::to_show(id, found)?;
    let view = TransferView::stored(found, &edge.rulebook.assets)?.shown_to(&access);
    Ok(view::json(StatusCode::OK, &view))
}
