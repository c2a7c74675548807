//! Ordering many transfers at once: the hot path. Parsing borrows from the body, results go straight into the answer.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{Refusal, Refused};

use crate::{
    core::{
        call::CallError,
        reply::{AtomicReply, TransferReply},
    },
    http::{
        Edge,
        access::Access,
        body::{MediaType, Sent, batch_media_type},
        context::RequestDeadline,
        effect, metrics, parse,
        parse::TransferBatch,
        problem::Problem,
        query::Parameters,
        view::{
            self,
            batch::{BatchResultsSchema, RESULT_BYTES, ids, transfer_results},
        },
    },
};

/// Order 1 to 10,000 transfers, with a result each.
///
/// They take effect as if one after another in request order, wherever the accounts live. With `atomic` all do or none:
/// then all accounts must live on one shard. The media type `application/x-ndjson` is accepted, too: one transfer a line, and
/// `atomic` as a query parameter.
#[utoipa::path(
    post, path = "/v1/transfers:batch", operation_id = "createTransfers", tag = "transfers",
    params(("atomic" = bool, Query, description = "For NDJSON only; JSON has it in the body.")),
    request_body = parse::TransferBatchBody,
    responses(
        (status = 200, description = "a result each, in request order", body = BatchResultsSchema),
    ),
)]
pub async fn order_batch(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    mut parameters: Parameters,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    let media_type = batch_media_type(&headers)?;
    let atomic = match media_type {
        MediaType::Json => None,
        MediaType::NdJson => parameters.take_as("atomic", "true or false", |text| text.parse::<bool>().ok()),
    };
    parameters.finish()?;
    let mut batch = {
        let payload = edge.bodies.read_batch(body, deadline).await?;
        let text = payload.text()?;
        match media_type {
            MediaType::Json => parse::transfer_batch(text, &edge.rulebook)?,
            MediaType::NdJson => TransferBatch {
                transfers: parse::transfer_lines(text, &edge.rulebook)?,
                atomic: atomic.unwrap_or(false),
            },
        }
    };
    access.check_orders(&batch.transfers, |index| match media_type {
        MediaType::Json => format!("/transfers/{index}"),
        MediaType::NdJson => format!("/{index}"),
    })?;
    let ordered_by = access.ordered_by();
    if ordered_by.is_some() {
        batch.transfers.iter_mut().for_each(|transfer| transfer.ordered_by.clone_from(&ordered_by));
    }
    metrics::record_batch(batch.transfers.len());
    let ids = ids(&batch.transfers);
    let replies = if batch.atomic {
        order_atomic(&edge, batch, deadline).await?
    } else {
        let named = ids.clone();
        edge.detached("transfer batch", deadline, |core| async move {
            let replies = core.transfer_batch(batch.transfers, deadline.0).await;
            effect::transfers(&named, &replies);
            replies
        })
        .await?
    };
    if replies.len() != ids.len() {
        tracing::error!(orders = ids.len(), replies = replies.len(), "a batch was not answered item by item");
        return Err(Problem::internal());
    }
    Ok(view::json_with_capacity(StatusCode::OK, &transfer_results(&ids, &replies), ids.len() * RESULT_BYTES))
}

/// An atomic batch has one outcome, so an error of the core is the answer to the whole of it.
async fn order_atomic(
    edge: &Edge,
    batch: TransferBatch,
    deadline: RequestDeadline,
) -> Result<Vec<Result<TransferReply, CallError>>, Problem> {
    let named = ids(&batch.transfers);
    let reply = edge
        .detached_call("atomic transfers", deadline, |core| async move {
            let reply = core.transfer_atomic(batch.transfers, deadline.0).await;
            effect::atomic(&named, &reply);
            reply
        })
        .await?;
    match reply {
        AtomicReply::Stored(items) | AtomicReply::Failed { items, .. } => Ok(items.into_iter().map(Ok).collect()),
        AtomicReply::CrossShard => Err(Problem::refused(Refused::whole(Refusal::AtomicCrossShard))),
    }
}
