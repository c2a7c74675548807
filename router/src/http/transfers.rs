//! `/v1/transfers`: ordering and reading one transfer. [`batch`] orders many, [`reversal`] gives one back, [`view`] is how a transfer is shown.

pub mod batch;
pub mod reversal;
pub mod view;

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{
    AssetRegistry, Metadata, Refusal, Refused, TransferId,
    operation::Purpose,
    outcome::{TransferAnswer, TransferState},
};
use utoipa::ToSchema;

use self::view::TransferView;
use super::{
    Edge,
    access::Access,
    answer::{json, made, path_of_transfer},
    body::Sent,
    context::RequestDeadline,
    effect,
    json::{Node, Pointer, Reader, read_body, values::IdSource},
    parameters::{DebitParameter, DryRunParameter, IdPath},
    problem::{Code, Problem, mark_replayed},
    schemas, stored,
};
use crate::{
    core::reply::{NewTransfer, TransferReply},
    trace,
};

// === the body ===

/// A transfer to make.
#[derive(ToSchema)]
#[schema(as = NewTransfer)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct TransferBody {
    /// The header `Idempotency-Key` may stand for it.
    id: Option<schemas::TransferId>,
    debit: schemas::AccountId,
    credit: schemas::AccountId,
    amount: schemas::PositiveAmount,
    asset: schemas::Asset,
    metadata: Option<schemas::Metadata>,
}

const TRANSFER_FIELDS: &[&str] = &["id", "debit", "credit", "amount", "asset", "metadata"];

/// Reads one transfer. Without an id of its own it takes the one derived from `key`.
pub fn read_transfer(text: &str, assets: &AssetRegistry, key: Option<&str>) -> Result<NewTransfer, Problem> {
    read_body(text, assets, |reader, node| {
        transfer(reader, node, Pointer::Root, IdSource::BodyOrKey(key), &Metadata::empty()).1
    })
}

/// Returns the id also if another member is wrong. Items of one batch without metadata share `no_metadata`; if all requests shared it, the workers
/// would contend for its reference count.
fn transfer(
    reader: &mut Reader<'_>,
    node: &Node<'_>,
    place: Pointer<'_>,
    source: IdSource<'_>,
    no_metadata: &Metadata,
) -> (Option<TransferId>, Option<NewTransfer>) {
    let Some(object) = reader.object(node, place, TRANSFER_FIELDS) else { return (None, None) };
    let (id, terms) = reader.terms(object, source);
    let metadata = reader.metadata(object);
    let transfer = terms.zip(metadata).map(|(terms, metadata)| NewTransfer {
        ordered_by: None,
        id: terms.id,
        debit: terms.debit,
        credit: terms.credit,
        asset: terms.asset,
        amount: terms.amount,
        metadata: metadata.unwrap_or_else(|| no_metadata.clone()),
        purpose: Purpose::Payment,
    });
    (id, transfer)
}

// === requests ===

/// Order a transfer.
///
/// Without `id`, the header `Idempotency-Key` names it: the id is then derived from the debit account and the key. With
/// `dry_run=true` it answers what would become of the transfer: nothing is stored and the id stays free.
#[utoipa::path(
    post, path = "/v1/transfers", operation_id = "createTransfer", tag = "transfers",
    params(DryRunParameter),
    request_body = TransferBody,
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
    sent: Sent,
) -> Result<Response, Problem> {
    let mut transfer = sent.order(&edge, deadline, read_transfer).await?;
    transfer.ordered_by = access.ordered_by();
    access.check_order(&transfer)?;
    if dry_run {
        try_out(&edge, &access, &transfer, deadline).await
    } else {
        carry_out(&edge, &access, transfer, deadline).await
    }
}

/// Makes a transfer, whatever it is for: a payment, a capture or a reversal.
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

/// Answers what would become of the transfer. An id in use is answered as the stored transfer is.
async fn try_out(
    edge: &Edge,
    access: &Access,
    order: &NewTransfer,
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    let marked = |problem: Problem| problem.with_transfer(order.id.0);
    let reply = edge.core.dry_run_transfer(order, deadline.0).await;
    match reply.map_err(|error| marked(error.into()))? {
        TransferReply::Done(answer) if !answer.replayed && matches!(answer.state, TransferState::Posted { .. }) => {
            let view = TransferView::tried(order, &answer, &edge.assets)?.shown_to(access);
            Ok(json(StatusCode::OK, &view))
        }
        // A dry run has nothing under way that its client could wait for.
        TransferReply::Pending(answer) => answer_with(edge, access, order, &answer, StatusCode::OK),
        reply => answer(edge, access, order, reply).map_err(marked),
    }
}

fn answer(edge: &Edge, access: &Access, order: &NewTransfer, reply: TransferReply) -> Result<Response, Problem> {
    match reply {
        TransferReply::Done(answer) | TransferReply::Pending(answer) => match answer.state {
            TransferState::Rejected { refused, .. } => Err(Problem::refused(refused).replayed(answer.replayed)),
            TransferState::Posted { .. } if answer.replayed => {
                answer_with(edge, access, order, &answer, StatusCode::OK)
            }
            TransferState::Posted { .. } => answer_with(edge, access, order, &answer, StatusCode::CREATED),
            TransferState::Pending => answer_with(edge, access, order, &answer, StatusCode::ACCEPTED),
        },
        TransferReply::Mismatch { field } => Err(Problem::mismatch("transfer", field)),
        TransferReply::DebitNotFound => Err(Problem::refused(Refused::debit(Refusal::AccountNotFound))),
        TransferReply::HoldNotFound => Err(Problem::new(Code::HoldNotFound, "there is no such hold")),
        TransferReply::NotStored(refused) => Err(Problem::refused(refused)),
    }
}

fn answer_with(
    edge: &Edge,
    access: &Access,
    order: &NewTransfer,
    answer: &TransferAnswer,
    status: StatusCode,
) -> Result<Response, Problem> {
    let view = TransferView::ordered(order, answer, &edge.assets)?.shown_to(access);
    let mut response = match status {
        StatusCode::OK => json(status, &view),
        status => made(status, &view, &path_of_transfer(order.id, &order.debit)),
    };
    // Also a transfer that is still under way: an earlier request began it.
    if answer.replayed {
        mark_replayed(response.headers_mut());
    }
    Ok(response)
}

/// Read a transfer, with its steps where it crosses shards and what was reversed of it.
///
/// An id belongs to its debit account. With `debit` only that account's shard is asked; without it all are, and two
/// transfers under one id are `ambiguous_id`.
#[utoipa::path(
    get, path = "/v1/transfers/{id}", operation_id = "getTransfer", tag = "transfers",
    params(
        ("id" = schemas::TransferId, Path, description = "The transfer."),
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
    let found = stored::to_show(id, found)?;
    let view = TransferView::stored(found, &edge.assets)?.shown_to(&access);
    Ok(json(StatusCode::OK, &view))
}
