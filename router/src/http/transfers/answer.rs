//! One transfer, whatever it is for (a payment, a capture, a reversal), and what its client is answered.

use axum::response::Response;
use http::StatusCode;
use ledger::{
    Refusal, Refused,
    outcome::{TransferAnswer, TransferState},
};

use crate::{
    core::reply::{NewTransfer, TransferReply},
    http::{
        Edge,
        access::Access,
        context::RequestDeadline,
        effect, idempotency, path,
        problem::{Code, Problem},
        view::{self, transfer::TransferView},
    },
    trace,
};

/// Makes the transfer.
pub async fn carry_out(
    edge: &Edge,
    access: &Access,
    order: NewTransfer,
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    let marked = |problem: Problem| problem.with_transfer(order.id.0);
    let sent = order.clone();
    trace::names_transfer(order.id);
    let reply = edge
        .detached_call("transfer", deadline, |core| async move {
            let reply = core.transfer(sent, deadline.0).await;
            effect::transfer(&reply);
            reply
        })
        .await
        .map_err(marked)?;
    answer(edge, access, &order, reply).map_err(marked)
}

/// Says what would become of the transfer. An id in use is answered as the stored transfer is.
pub async fn try_out(
    edge: &Edge,
    access: &Access,
    order: &NewTransfer,
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    let marked = |problem: Problem| problem.with_transfer(order.id.0);
    let reply = edge.core.dry_run_transfer(order, deadline.0).await;
    match reply.map_err(|error| marked(error.into()))? {
        TransferReply::Done(answer) if !answer.replayed && matches!(answer.state, TransferState::Posted { .. }) => {
            let view = TransferView::tried(order, &answer, &edge.rulebook.assets)?.shown_to(access);
            Ok(view::json(StatusCode::OK, &view))
        }
        // Nothing is under way for this request: there is nothing to wait for.
        TransferReply::Pending(answer) => show(edge, access, order, &answer, StatusCode::OK),
        reply => answer(edge, access, order, reply).map_err(marked),
    }
}

fn answer(edge: &Edge, access: &Access, order: &NewTransfer, reply: TransferReply) -> Result<Response, Problem> {
    match reply {
        TransferReply::Done(answer) | TransferReply::Pending(answer) => match answer.state {
            TransferState::Rejected { refused, .. } => Err(Problem::refused(refused).replayed(answer.replayed)),
            TransferState::Posted { .. } if answer.replayed => show(edge, access, order, &answer, StatusCode::OK),
            TransferState::Posted { .. } => show(edge, access, order, &answer, StatusCode::CREATED),
            TransferState::Pending => show(edge, access, order, &answer, StatusCode::ACCEPTED),
        },
        TransferReply::Mismatch { field } => Err(idempotency::mismatch("transfer", field)),
        TransferReply::DebitNotFound => Err(Problem::refused(Refused::debit(Refusal::AccountNotFound))),
        TransferReply::HoldNotFound => Err(Problem::new(Code::HoldNotFound, "there is no such hold")),
        TransferReply::NotStored(refused) => Err(Problem::refused(refused)),
    }
}

fn show(
    edge: &Edge,
    access: &Access,
    order: &NewTransfer,
    answer: &TransferAnswer,
    status: StatusCode,
) -> Result<Response, Problem> {
    let view = TransferView::ordered(order, answer, &edge.rulebook.assets)?.shown_to(access);
    let mut response = match status {
        StatusCode::OK => view::json(status, &view),
        status => view::made(status, &view, &path::of_transfer(order.id, &order.debit)),
    };
    // One that is still under way, too: its first request began it.
    if answer.replayed {
        idempotency::mark_replayed(response.headers_mut());
    }
    Ok(response)
}
