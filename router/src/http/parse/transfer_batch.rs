//! The body that orders a batch of transfers.

use std::collections::HashSet;

use ledger::{Metadata, TransferId};
use serde::Deserialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Ref, RefOr, Schema},
};

use super::{
    Rulebook,
    explain::{Explanation, IdSource, child, explain},
    fields,
    transfer::{self, TransferBody},
    tree::Node,
    typed,
};
use crate::{
    core::reply::NewTransfer,
    http::{
        openapi::values,
        problem::{Code, Problem},
    },
};

/// A batch as ordered.
#[derive(Debug)]
pub struct TransferBatch {
    pub transfers: Vec<NewTransfer>,
    pub atomic: bool,
}

/// Transfers to make, one after another or all at once.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewTransferBatch)]
#[serde(deny_unknown_fields)]
pub struct TransferBatchBody<'a> {
    /// Each with its own id.
    #[serde(borrow, deserialize_with = "fields::items")]
    #[schema(value_type = Vec<BatchedTransfer>, min_items = 1, max_items = 10_000)]
    transfers: Vec<TransferBody<'a>>,
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
            object.properties.insert("id".to_owned(), Ref::from_schema_name(values::TransferId::name()).into());
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
pub fn transfer_batch(text: &str, rulebook: &Rulebook) -> Result<TransferBatch, Problem> {
    fast_batch(text, rulebook).ok_or_else(|| explain(text, rulebook, examine_batch))
}

fn fast_batch(text: &str, rulebook: &Rulebook) -> Option<TransferBatch> {
    let batch: TransferBatchBody<'_> = typed(text)?;
    let no_metadata = Metadata::empty();
    let mut transfers = Vec::with_capacity(batch.transfers.len());
    for fields in batch.transfers {
        transfers.push(fields.order(rulebook, None, &no_metadata)?);
    }
    ids_differ(&transfers).then_some(TransferBatch { transfers, atomic: batch.atomic })
}

pub(super) fn ids_differ(transfers: &[NewTransfer]) -> bool {
    // The ids are the client's: a fast hash, and a seed that the client does not know.
    let mut ids = HashSet::with_capacity_and_hasher(transfers.len(), foldhash::fast::RandomState::default());
    transfers.iter().all(|transfer| ids.insert(transfer.id))
}

fn examine_batch(explanation: &mut Explanation<'_>, node: &Node<'_>) {
    let Some(members) = explanation.object(node, "", BATCH_FIELDS) else { return };
    explanation.boolean(members, "atomic");
    let mut ids = HashSet::new();
    for (index, item) in explanation.items(members, "transfers").iter().enumerate() {
        examine_item(explanation, item, &format!("/transfers/{index}"), &mut ids);
    }
}

pub(super) fn examine_item(
    explanation: &mut Explanation<'_>,
    item: &Node<'_>,
    pointer: &str,
    ids: &mut HashSet<TransferId>,
) {
    if let Some(id) = transfer::examine(explanation, item, pointer, IdSource::Body)
        && !ids.insert(id)
    {
        explanation.add(Code::DuplicateId, child(pointer, "id"), format!("{} is in this batch already", id.0));
    }
}
