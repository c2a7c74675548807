//! Ordering one transfer.

use axum::{extract::State, response::Response};

use super::answer::{carry_out, try_out};
use crate::http::{
    Edge, access::Access, body::Sent, context::RequestDeadline, idempotency, parse, problem::Problem,
    query::DryRunParameter, view::transfer::TransferView,
};

/// Order a transfer.
///
/// Without `id`, the header `Idempotency-Key` names it: the id is then derived from the debit account and the key. With
/// `dry_run=true` it answers what would become of the transfer: nothing is stored and the id stays free.
#[utoipa::path(
    post, path = "/v1/transfers", operation_id = "createTransfer", tag = "transfers",
    params(DryRunParameter),
    request_body = parse::TransferBody,
    responses(
        (status = 201, description = "posted", body = TransferView),
        (status = 200, description = "posted by an earlier request with this id; or, in a dry run, to be posted", body = TransferView),
        (status = 202, description = "the deadline passed while the transfer is under way; `Location` tells where to look", body = TransferView),
    ),
)]
pub async fn order(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    DryRunParameter { dry_run }: DryRunParameter,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    let mut transfer = idempotency::order(&edge, &headers, body, deadline, parse::transfer).await?;
    transfer.ordered_by = access.ordered_by();
    access.check_order(&transfer)?;
    if dry_run {
        try_out(&edge, &access, &transfer, deadline).await
    } else {
        carry_out(&edge, &access, transfer, deadline).await
    }
}
