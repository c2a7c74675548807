//! Ordering many transfers at once, as JSON or by lines. This is the hot path: strings are borrowed from the body, and results go straight into
//! the answer.
//!
//! The `status` of an item says what became of it: `posted`, `pending` and `rejected` are stored under its id and will be
//! answered again; `failed` had no effect and stored nothing, so the id is as free or as taken as before; `unknown` may
//! have taken effect: the same id sent again tells.

use std::{borrow::Cow, collections::HashSet};

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{AssetRegistry, Metadata, Refusal, Refused, Side, TransferId, outcome::TransferState};
use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Ref, RefOr, Schema},
};
use uuid::Uuid;

use super::{TransferBody, transfer};
use crate::{
    core::{
        call::CallError,
        reply::{AtomicReply, NewTransfer, TransferReply},
    },
    http::{
        Edge,
        access::Access,
        answer::{RESULT_BYTES, Results, json_with_capacity, not_answered},
        body::{MediaType, Sent, batch_media_type},
        context::RequestDeadline,
        effect,
        json::{MAX_BATCH_ITEMS, Node, Pointer, Reader, batch_too_large, read_body, values::IdSource},
        metrics,
        parameters::Parameters,
        problem::{Code, Problem, refusal_detail},
        schemas,
    },
};

// === bodies ===

/// A batch as ordered.
#[derive(Debug)]
pub struct TransferBatch {
    pub transfers: Vec<NewTransfer>,
    pub atomic: bool,
}

/// Transfers to make, one after another or all at once.
#[derive(ToSchema)]
#[schema(as = NewTransferBatch)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct TransferBatchBody {
    /// Each with its own id.
    #[schema(min_items = 1, max_items = 10_000)]
    transfers: Vec<BatchedTransfer>,
    /// All or nothing.
    #[serde(default)]
    atomic: bool,
}

/// A transfer of a batch, which needs its own id.
pub enum BatchedTransfer {}

impl PartialSchema for BatchedTransfer {
    fn schema() -> RefOr<Schema> {
        // Written out: an `allOf` that redefines `id` is more than generators of clients understand.
        let mut schema = TransferBody::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            object.properties.insert("id".to_owned(), Ref::from_schema_name(schemas::TransferId::name()).into());
            object.required.push("id".to_owned());
            object.description = Some("A transfer with its own id.".to_owned());
        }
        schema
    }
}

impl ToSchema for BatchedTransfer {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        TransferBody::schemas(schemas);
    }
}

const BATCH_FIELDS: &[&str] = &["transfers", "atomic"];

/// Reads a batch.
pub fn read_transfer_batch(text: &str, assets: &AssetRegistry) -> Result<TransferBatch, Problem> {
    read_body(text, assets, |reader, node| {
        let batch = reader.object(node, Pointer::Root, BATCH_FIELDS)?;
        let atomic = reader.boolean(batch, "atomic");
        let items = reader.items(batch, "transfers");
        let mut transfers = Items::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            transfers.read(reader, item, Pointer::Item(&batch.place_of("transfers"), index));
        }
        Some(TransferBatch { transfers: transfers.transfers, atomic: atomic?.unwrap_or(false) })
    })
}

/// Reads a batch as NDJSON: one JSON object a line. Blank lines are skipped; pointers begin with the index of the item, as if the lines were an
/// array.
pub fn read_transfer_lines(text: &str, assets: &AssetRegistry) -> Result<Vec<NewTransfer>, Problem> {
    let lines = || text.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty());
    if lines().nth(MAX_BATCH_ITEMS).is_some() {
        return Err(batch_too_large());
    }
    let mut reader = Reader::new(assets);
    let mut transfers = Items::with_capacity(0);
    for (index, line) in lines().enumerate() {
        let place = Pointer::Item(&Pointer::Root, index);
        if let Some(node) = reader.line(line, place) {
            transfers.read(&mut reader, &node, place);
        }
    }
    if lines().next().is_none() {
        reader.add(Code::InvalidJson, Pointer::Root, "a batch has at least one item");
    }
    reader.finish(Some(transfers.transfers))
}

/// The items of a batch that are read.
struct Items {
    transfers: Vec<NewTransfer>,
    /// The ids are chosen by the client: a fast hash, with a seed that the client does not know.
    ids: HashSet<TransferId, foldhash::fast::RandomState>,
    no_metadata: Metadata,
}

impl Items {
    fn with_capacity(items: usize) -> Self {
        let ids = HashSet::with_capacity_and_hasher(items, foldhash::fast::RandomState::default());
        Self { transfers: Vec::with_capacity(items), ids, no_metadata: Metadata::empty() }
    }

    fn read(&mut self, reader: &mut Reader<'_>, node: &Node<'_>, place: Pointer<'_>) {
        let (id, transfer) = transfer(reader, node, place, IdSource::Body, &self.no_metadata);
        if let Some(id) = id
            && !self.ids.insert(id)
        {
            reader.add(
                Code::DuplicateId,
                Pointer::Member(&place, "id"),
                format!("{} is in this batch already", id.0),
            );
        }
        self.transfers.extend(transfer);
    }
}

// === requests ===

/// Order 1 to 10,000 transfers, with a result each.
///
/// They take effect as if one after another in request order, wherever the accounts live. With `atomic` all do or none:
/// then all accounts must live on one shard. The media type `application/x-ndjson` is accepted, too: one transfer a line, and
/// `atomic` as a query parameter.
#[utoipa::path(
    post, path = "/v1/transfers:batch", operation_id = "createTransfers", tag = "transfers",
    params(("atomic" = bool, Query, description = "For NDJSON only; JSON has it in the body.")),
    request_body = TransferBatchBody,
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
            MediaType::Json => read_transfer_batch(text, &edge.assets)?,
            MediaType::NdJson => {
                TransferBatch { transfers: read_transfer_lines(text, &edge.assets)?, atomic: atomic.unwrap_or(false) }
            }
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
    Ok(json_with_capacity(StatusCode::OK, &transfer_results(&ids, &replies), ids.len() * RESULT_BYTES))
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

// === answers ===

/// The answer to a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchResults)]
pub struct BatchResultsSchema {
    /// In the order of the request.
    pub results: Vec<TransferResult<'static>>,
}

/// What became of one transfer of a batch.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct TransferResult<'a> {
    #[schema(value_type = schemas::TransferId)]
    pub id: Uuid,
    #[schema(value_type = schemas::TransferResultStatus)]
    pub status: &'static str,
    /// The result is the stored one of an earlier request.
    pub replayed: bool,
    /// Why it is rejected or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub code: Option<&'static str>,
    /// Which account a refusal is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::Side, required = false)]
    pub side: Option<&'static str>,
    /// Which field differs from what is stored under the same id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub field: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub detail: Option<Cow<'a, str>>,
}

impl<'a> TransferResult<'a> {
    pub fn new(id: Uuid, reply: &'a Result<TransferReply, CallError>) -> Self {
        match reply {
            Ok(TransferReply::Done(answer) | TransferReply::Pending(answer)) => {
                let mut result = Self::plain(id, answer.state.as_str());
                result.replayed = answer.replayed;
                if let TransferState::Rejected { refused, .. } = answer.state {
                    result.refuse(refused);
                }
                result
            }
            Ok(TransferReply::Mismatch { field }) => {
                let definition = Code::IdempotencyMismatch.definition();
                Self {
                    code: Some(definition.code),
                    field: Some(Cow::Borrowed(field)),
                    detail: Some(Cow::Borrowed(definition.title)),
                    ..Self::plain(id, "failed")
                }
            }
            Ok(TransferReply::DebitNotFound) => {
                let mut result = Self::plain(id, "failed");
                result.refuse(Refused::debit(Refusal::AccountNotFound));
                result
            }
            Ok(TransferReply::HoldNotFound) => {
                let definition = Code::HoldNotFound.definition();
                let detail = Some(Cow::Borrowed(definition.title));
                Self { code: Some(definition.code), detail, ..Self::plain(id, "failed") }
            }
            Ok(TransferReply::NotStored(refused)) => {
                let mut result = Self::plain(id, "failed");
                result.refuse(*refused);
                result
            }
            Err(error) => {
                let (status, definition) = not_answered(error);
                let detail = Some(Cow::Borrowed(definition.title));
                Self { code: Some(definition.code), detail, ..Self::plain(id, status) }
            }
        }
    }

    fn plain(id: Uuid, status: &'static str) -> Self {
        Self { id, status, replayed: false, code: None, side: None, field: None, detail: None }
    }

    fn refuse(&mut self, refused: Refused) {
        self.code = Some(refused.refusal.as_str());
        self.side = refused.side.map(Side::as_str);
        self.detail = Some(Cow::Borrowed(refusal_detail(refused)));
    }
}

/// Results of transfers beside their orders' ids.
pub fn transfer_results<'a>(
    ids: &'a [Uuid],
    replies: &'a [Result<TransferReply, CallError>],
) -> Results<impl Iterator<Item = TransferResult<'a>> + Clone, TransferResult<'a>> {
    Results { results: ids.iter().zip(replies).map(|(id, reply)| TransferResult::new(*id, reply)) }
}

/// The ids of a batch, in order: the orders themselves go to the core.
pub fn ids(transfers: &[NewTransfer]) -> Vec<Uuid> {
    transfers.iter().map(|transfer| transfer.id.0).collect()
}

#[cfg(test)]
mod tests {
    use ledger::outcome::TransferAnswer;

    use super::*;

    fn answer(state: TransferState, replayed: bool) -> TransferAnswer {
        TransferAnswer {
            ordered_by: None,
            state,
            amount: 1,
            presumed: None,
            cross_shard: false,
            debit_after: None,
            created_at_us: 1,
            replayed,
        }
    }

    #[test]
    fn each_reply_has_its_words() {
        let unknown = CallError::OutcomeUnknown { shard: "s0".into() };
        let unavailable = CallError::Unavailable { shard: "s0".into() };
        let rejected = TransferState::Rejected { refused: Refused::debit(Refusal::InsufficientFunds), at_us: 2 };
        let replies = [
            (Ok(TransferReply::Done(answer(TransferState::Posted { at_us: 2 }, true))), "posted", None, true),
            (Ok(TransferReply::Done(answer(rejected, false))), "rejected", Some("insufficient_funds"), false),
            (Ok(TransferReply::Pending(answer(TransferState::Pending, false))), "pending", None, false),
            (Ok(TransferReply::Mismatch { field: "amount" }), "failed", Some("idempotency_mismatch"), false),
            (Ok(TransferReply::DebitNotFound), "failed", Some("account_not_found"), false),
            (
                Ok(TransferReply::NotStored(Refused::whole(Refusal::BatchFailed))),
                "failed",
                Some("batch_failed"),
                false,
            ),
            (Err(unknown), "unknown", Some("outcome_unknown"), false),
            (Err(unavailable), "failed", Some("shard_unavailable"), false),
        ];
        for (reply, status, code, replayed) in replies {
            let result = TransferResult::new(Uuid::from_u128(1), &reply);
            assert_eq!((result.status, result.code, result.replayed), (status, code, replayed));
        }
    }

    #[test]
    fn results_are_one_json_document() {
        let replies = [
            Ok(TransferReply::Done(answer(TransferState::Posted { at_us: 2 }, false))),
            Ok(TransferReply::Mismatch { field: "amount" }),
        ];
        let ids = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let text = serde_json::to_string(&transfer_results(&ids, &replies)).unwrap();
        assert!(text.starts_with(
            r#"{"results":[{"id":"00000000-0000-0000-0000-000000000001","status":"posted","replayed":false},{"#
        ));
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["results"][1]["field"], "amount");
    }
}
