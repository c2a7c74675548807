//! Capturing a hold, or part of it: a transfer that takes its amount from the hold.

use axum::{extract::State, response::Response};
use ledger::{HoldStatus, KeyName, operation::Purpose};

use super::to_act_on;
use crate::{
    core::reply::{FoundHold, NewTransfer},
    http::{
        Edge,
        access::Access,
        body::Sent,
        context::RequestDeadline,
        found, idempotency,
        openapi::values,
        parse,
        parse::FollowUp,
        path::IdPath,
        problem::Problem,
        query::DebitParameter,
        transfers,
        view::{Scale, transfer::TransferView},
    },
    trace,
};

/// Capture a hold: post a transfer of what it holds, or of part of it.
///
/// The capture is a transfer of the hold's debit account, with an id of its own. Without `amount` it takes all that remains.
/// `final: false` keeps the rest held for further captures. A refused capture leaves the hold as it was.
#[utoipa::path(
    post, path = "/v1/holds/{id}/capture", operation_id = "captureHold", tag = "holds",
    params(
        ("id" = values::TransferId, Path, description = "The hold."),
        DebitParameter,
    ),
    request_body = Option<parse::CaptureBody>,
    responses(
        (status = 201, description = "captured", body = TransferView),
        (status = 200, description = "captured by an earlier request with this id", body = TransferView),
        (status = 202, description = "the deadline passed while the capture is under way; `Location` tells where to look", body = TransferView),
    ),
)]
pub async fn capture(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    let wanted = idempotency::follow_up(&edge, &headers, body, deadline, parse::capture).await?;
    let hold = to_act_on(&edge, &access, id, debit.as_ref(), Some(&wanted), deadline).await?;
    // One that never held anything is kept for replays of its placing only.
    if matches!(hold.hold.status, HoldStatus::Rejected(_)) {
        return Err(found::not_found::<FoundHold>(id));
    }
    let order = order(&edge, &hold, &wanted, access.ordered_by())?;
    trace::names_hold(id);
    access.check_follow_up(id, &hold, (&order).into())?;
    transfers::carry_out(&edge, &access, order, deadline).await.map_err(|problem| problem.with_hold(id.0))
}

fn order(
    edge: &Edge,
    FoundHold { key, hold }: &FoundHold,
    wanted: &FollowUp,
    ordered_by: Option<KeyName>,
) -> Result<NewTransfer, Problem> {
    let amount = wanted.amount(Scale::of(hold.asset, &edge.rulebook.assets)?.digits())?;
    Ok(NewTransfer {
        id: wanted.id(&key.debit),
        debit: key.debit.clone(),
        credit: hold.credit.clone(),
        asset: hold.asset,
        // What remains is for the ledger to say, in the moment of the capture.
        amount: amount.unwrap_or(0),
        metadata: hold.metadata.clone(),
        purpose: Purpose::Capture { hold: key.id, whole: amount.is_none(), finalize: wanted.finalize },
        ordered_by,
    })
}
