//! Releasing a hold.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::operation::ReleaseHold;

use super::to_act_on;
use crate::{
    core::reply::{FoundHold, ReleaseReply},
    http::{
        Edge,
        access::Access,
        body::Sent,
        context::RequestDeadline,
        effect, found,
        openapi::values,
        parse,
        path::IdPath,
        problem::Problem,
        query::DebitParameter,
        view::{self, hold::HoldView},
    },
    trace,
};

/// Release a hold: what remains of it is available again.
///
/// Sent again it answers the same and `Idempotent-Replayed: true`. It waits for a capture in flight. It needs no body; an empty JSON
/// object is accepted.
#[utoipa::path(
    post, path = "/v1/holds/{id}/release", operation_id = "releaseHold", tag = "holds",
    params(
        ("id" = values::TransferId, Path, description = "The hold."),
        DebitParameter,
    ),
    responses(
        (status = 200, description = "released, now or by an earlier request", body = HoldView),
    ),
)]
pub async fn release(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    {
        let payload = edge.bodies.read_optional(&headers, body, deadline).await?;
        parse::release(payload.text()?, &edge.rulebook)?;
    }
    let found = to_act_on(&edge, &access, id, debit.as_ref(), None, deadline).await?;
    access.check_release(id, &found)?;
    let release = ReleaseHold { key: found.key, ordered_by: access.ordered_by() };
    trace::names_hold(id);
    let marked = |problem: Problem| problem.with_hold(id.0);
    let reply = edge
        .detached_call("release", deadline, |core| async move {
            let reply = core.release_hold(release, deadline.0).await;
            effect::release(&reply);
            reply
        })
        .await
        .map_err(marked)?;
    match reply {
        ReleaseReply::Released { key, hold, replayed } => {
            let view = HoldView::stored(&key, &hold, &edge.rulebook.assets)?.shown_to(&access);
            Ok(if replayed { view::replayed(&view) } else { view::json(StatusCode::OK, &view) })
        }
        ReleaseReply::NotFound => Err(found::not_found::<FoundHold>(id)),
        ReleaseReply::Refused(refused) => Err(marked(Problem::refused(refused))),
    }
}
