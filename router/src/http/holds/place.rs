//! Placing a hold.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{Refusal, Refused, outcome::HoldAnswer};

use crate::{
    core::reply::HoldReply,
    http::{
        Edge,
        access::Access,
        body::Sent,
        context::RequestDeadline,
        effect, idempotency, parse, path,
        problem::Problem,
        query::DryRunParameter,
        view::{self, hold::HoldView},
    },
    trace,
};

/// Place a hold: reserve an amount of the debit account for captures to come.
///
/// The credit side sees nothing of it. Without `id`, the header `Idempotency-Key` names it: the id is then derived from the
/// debit account and the key. With `dry_run=true` it answers what would become of the hold, and nothing is stored.
#[utoipa::path(
    post, path = "/v1/holds", operation_id = "createHold", tag = "holds",
    params(DryRunParameter),
    request_body = parse::HoldBody,
    responses(
        (status = 201, description = "held", body = HoldView),
        (status = 200, description = "held by an earlier request with this id, and shown as it was then; or, in a dry run, to be held", body = HoldView),
    ),
)]
pub async fn place(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    DryRunParameter { dry_run }: DryRunParameter,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    let mut order = idempotency::order(&edge, &headers, body, deadline, parse::hold).await?;
    order.ordered_by = access.ordered_by();
    access.check_order(&order)?;
    let marked = |problem: Problem| problem.with_hold(order.id.0);
    let reply = if dry_run {
        edge.core.dry_run_hold(&order, deadline.0).await.map_err(Problem::from)
    } else {
        let sent = order.clone();
        trace::names_hold(order.id);
        edge.detached_call("hold", deadline, |core| async move {
            let reply = core.place_hold(sent, deadline.0).await;
            effect::hold(&reply);
            reply
        })
        .await
    };
    let answer = reply.and_then(granted).map_err(marked)?;
    if dry_run && !answer.replayed {
        return Ok(view::json(
            StatusCode::OK,
            &HoldView::tried(&order, &answer, &edge.rulebook.assets)?.shown_to(&access),
        ));
    }
    let view = HoldView::placed(&order, &answer, &edge.rulebook.assets)?.shown_to(&access);
    Ok(match answer.replayed {
        true => view::replayed(&view),
        false => view::made(StatusCode::CREATED, &view, &path::of_hold(order.id, &order.debit)),
    })
}

/// The answer to a hold that was not refused.
fn granted(reply: HoldReply) -> Result<HoldAnswer, Problem> {
    match reply {
        HoldReply::Placed(HoldAnswer { refused: Some(refused), replayed, .. }) => {
            Err(Problem::refused(refused).replayed(replayed))
        }
        HoldReply::Placed(answer) => Ok(answer),
        HoldReply::Mismatch { field } => Err(idempotency::mismatch("hold", field)),
        HoldReply::DebitNotFound => Err(Problem::refused(Refused::debit(Refusal::AccountNotFound))),
    }
}
