//! Placing a hold.

use axum::{body::Body, extract::State, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ledger::{Refusal, Refused, operation::PlaceHold, outcome::HoldAnswer};

use crate::{
    http::{
        Edge,
        body::require_json,
        context::RequestDeadline,
        idempotency, parse,
        path::escaped,
        problem::{Code, Problem},
        query::DryRunParameter,
        view::{self, hold::HoldView},
    },
    service::HoldReply,
};

/// Place a hold: reserve an amount of the debit account for captures to come.
///
/// The credit side sees nothing of it. Without `id`, the header `Idempotency-Key` names it: the id is then derived from the
/// debit account and the key. With `dry_run=true` it answers what would become of the hold, and nothing is stored.
#[utoipa::path(
    post, path = "/v1/holds", operation_id = "createHold", tag = "holds",
    params(
        ("dry_run" = bool, Query, description = "Answer what would happen (status `would_post`, or the refusal), and store nothing."),
    ),
    request_body = parse::HoldBody,
    responses(
        (status = 201, description = "held", body = HoldView),
        (status = 200, description = "held by an earlier request with this id, and shown as it was then; or, in a dry run, to be held", body = HoldView),
    ),
)]
pub async fn place(
    State(edge): State<Edge>,
    deadline: RequestDeadline,
    DryRunParameter(dry_run): DryRunParameter,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    require_json(&headers)?;
    let key = idempotency::key(&headers)?;
    let order = {
        let payload = edge.bodies.read_single(body, deadline).await?;
        parse::hold(payload.text()?, &edge.rulebook, key)?
    };
    let marked = |problem: Problem| problem.with_hold(order.id.0);
    let reply = if dry_run {
        edge.router.dry_run_hold(&order, deadline.0).await
    } else {
        let sent = order.clone();
        edge.detached("hold", deadline, |router| async move { router.place_hold(sent, deadline.0).await })
            .await
            .map_err(marked)?
    };
    let answer = granted(reply.map_err(|error| marked(error.into()))?).map_err(marked)?;
    if dry_run && !answer.replayed {
        return Ok(view::json(StatusCode::OK, &HoldView::tried(&order, &answer, &edge.rulebook.assets)?));
    }
    show(&edge, &order, &answer)
}

/// The answer to a hold that was not refused.
fn granted(reply: HoldReply) -> Result<HoldAnswer, Problem> {
    match reply {
        HoldReply::Placed(HoldAnswer { refused: Some(refused), replayed, .. }) => {
            Err(Problem::refused(refused).replayed(replayed))
        }
        HoldReply::Placed(answer) => Ok(answer),
        HoldReply::Mismatch { field } => {
            let detail = format!("the id belongs to a hold with another {field}");
            Err(Problem::new(Code::IdempotencyMismatch, detail).with_field(field))
        }
        HoldReply::DebitNotFound => Err(Problem::refused(Refused::debit(Refusal::AccountNotFound))),
    }
}

fn show(edge: &Edge, order: &PlaceHold, answer: &HoldAnswer) -> Result<Response, Problem> {
    let view = HoldView::placed(order, answer, &edge.rulebook.assets)?;
    if answer.replayed {
        let mut response = view::json(StatusCode::OK, &view);
        idempotency::mark_replayed(response.headers_mut());
        return Ok(response);
    }
    let mut response = view::json(StatusCode::CREATED, &view);
    // With the debit account, so that it goes straight to its shard and is never ambiguous.
    let location = format!("/v1/holds/{}?debit={}", order.id.0, escaped(&order.debit));
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}
