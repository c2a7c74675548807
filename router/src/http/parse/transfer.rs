//! Bodies that order transfers: one, or a batch.

use std::{borrow::Cow, collections::HashSet};

use ledger::{AccountId, AssetCode, Metadata, TransferId, operation::Purpose};
use serde::Deserialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{AllOfBuilder, ArrayBuilder, ObjectBuilder, Ref, RefOr, Schema},
};

use super::{
    MAX_BATCH_ITEMS, Rulebook,
    explain::{Explanation, IdSource, child, read_tree},
    fields, rules,
    tree::Node,
    typed,
};
use crate::{
    http::{
        openapi::values,
        problem::{Code, Problem},
    },
    service::NewTransfer,
};

/// A batch as ordered.
#[derive(Debug)]
pub struct TransferBatch {
    pub transfers: Vec<NewTransfer>,
    pub atomic: bool,
}

/// A transfer to make.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewTransfer)]
#[serde(deny_unknown_fields)]
pub struct TransferBody<'a> {
    /// The header `Idempotency-Key` may stand for it.
    #[serde(default, deserialize_with = "fields::transfer_id")]
    #[schema(value_type = Option<values::TransferId>)]
    id: Option<TransferId>,
    #[serde(deserialize_with = "fields::account_id")]
    #[schema(value_type = values::AccountId)]
    debit: AccountId,
    #[serde(deserialize_with = "fields::account_id")]
    #[schema(value_type = values::AccountId)]
    credit: AccountId,
    #[serde(borrow)]
    #[schema(value_type = values::PositiveAmount)]
    amount: Cow<'a, str>,
    #[serde(deserialize_with = "fields::asset")]
    #[schema(value_type = values::Asset)]
    asset: AssetCode,
    #[serde(default, deserialize_with = "fields::metadata")]
    #[schema(value_type = Option<values::Metadata>)]
    metadata: Option<Metadata>,
}

const TRANSFER_FIELDS: &[&str] = &["id", "debit", "credit", "amount", "asset", "metadata"];

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
        let with_id = ObjectBuilder::new().property("id", values::TransferId::schema()).required("id");
        let reference = Ref::from_schema_name(TransferBody::name());
        AllOfBuilder::new().item(reference).item(with_id).description(Some("A transfer with its own id.")).into()
    }
}

impl ToSchema for BatchedTransfer {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((TransferBody::name().into_owned(), TransferBody::schema()));
        TransferBody::schemas(schemas);
    }
}

/// A batch as NDJSON: what is described is the sequence of its lines, as OpenAPI has it for such media types.
pub enum TransferLines {}

impl PartialSchema for TransferLines {
    fn schema() -> RefOr<Schema> {
        let lines = ArrayBuilder::new().items(Ref::from_schema_name(BatchedTransfer::name()));
        let lines = lines.min_items(Some(1)).max_items(Some(MAX_BATCH_ITEMS));
        lines.description(Some("One transfer a line, each with its own id.")).into()
    }
}

impl ToSchema for TransferLines {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((BatchedTransfer::name().into_owned(), BatchedTransfer::schema()));
        BatchedTransfer::schemas(schemas);
    }
}

const BATCH_FIELDS: &[&str] = &["transfers", "atomic"];

/// Reads one transfer. Without an id of its own it takes the one derived from `key`.
pub fn transfer(text: &str, rulebook: &Rulebook, key: Option<&str>) -> Result<NewTransfer, Problem> {
    match typed::<TransferBody<'_>>(text).and_then(|fields| fields.order(rulebook, key)) {
        Some(transfer) => Ok(transfer),
        None => Err(explain_transfer(text, rulebook, key)),
    }
}

/// Reads a batch.
pub fn transfer_batch(text: &str, rulebook: &Rulebook) -> Result<TransferBatch, Problem> {
    match fast_batch(text, rulebook) {
        Some(batch) => Ok(batch),
        None => Err(explain_batch(text, rulebook).unwrap_or_else(|problem| problem)),
    }
}

fn fast_batch(text: &str, rulebook: &Rulebook) -> Option<TransferBatch> {
    let batch: TransferBatchBody<'_> = typed(text)?;
    let mut transfers = Vec::with_capacity(batch.transfers.len());
    for fields in batch.transfers {
        transfers.push(fields.order(rulebook, None)?);
    }
    ids_differ(&transfers).then_some(TransferBatch { transfers, atomic: batch.atomic })
}

pub(super) fn ids_differ(transfers: &[NewTransfer]) -> bool {
    let mut ids = HashSet::with_capacity(transfers.len());
    transfers.iter().all(|transfer| ids.insert(transfer.id))
}

impl TransferBody<'_> {
    pub(super) fn order(self, rulebook: &Rulebook, key: Option<&str>) -> Option<NewTransfer> {
        let amount = rules::positive_amount(&self.amount, rulebook.assets.scale(self.asset)?).ok()?;
        if self.debit == self.credit {
            return None;
        }
        Some(NewTransfer {
            id: match self.id {
                Some(id) => id,
                None => rules::derived_transfer_id(&self.debit, key?),
            },
            debit: self.debit,
            credit: self.credit,
            asset: self.asset,
            amount,
            metadata: self.metadata.unwrap_or_else(|| rulebook.no_metadata.clone()),
            purpose: Purpose::Payment,
        })
    }
}

fn explain_transfer(text: &str, rulebook: &Rulebook, key: Option<&str>) -> Problem {
    match read_tree(text, "") {
        Ok(node) => {
            let mut explanation = Explanation::new(rulebook);
            examine(&mut explanation, &node, "", IdSource::BodyOrKey { key_given: key.is_some() });
            explanation.into_problem()
        }
        Err(problem) => problem,
    }
}

/// `Ok` and `Err` both hold the answer; `Err` cuts the examination short.
fn explain_batch(text: &str, rulebook: &Rulebook) -> Result<Problem, Problem> {
    let node = read_tree(text, "")?;
    let mut explanation = Explanation::new(rulebook);
    if let Some(members) = explanation.object(&node, "", BATCH_FIELDS) {
        explanation.boolean(members, "atomic");
        let mut ids = HashSet::new();
        for (index, item) in explanation.items(members, "transfers")?.iter().enumerate() {
            let pointer = format!("/transfers/{index}");
            examine_item(&mut explanation, item, &pointer, &mut ids);
        }
    }
    Ok(explanation.into_problem())
}

pub(super) fn examine_item(
    explanation: &mut Explanation<'_>,
    item: &Node<'_>,
    pointer: &str,
    ids: &mut HashSet<TransferId>,
) {
    if let Some(id) = examine(explanation, item, pointer, IdSource::Body)
        && !ids.insert(id)
    {
        explanation.add(Code::DuplicateId, child(pointer, "id"), format!("{} is in this batch already", id.0));
    }
}

fn examine(
    explanation: &mut Explanation<'_>,
    node: &Node<'_>,
    pointer: &str,
    source: IdSource,
) -> Option<TransferId> {
    let members = explanation.object(node, pointer, TRANSFER_FIELDS)?;
    let id = explanation.transfer_id(members, source);
    let debit = explanation.account_id(members, "debit");
    let credit = explanation.account_id(members, "credit");
    if debit.is_some() && debit == credit {
        explanation.add(Code::SameAccount, members.child("credit"), "debit and credit must be two accounts");
    }
    let scale = explanation.asset(members).map(|(_, scale)| scale);
    explanation.positive_amount(members, scale);
    explanation.metadata(members);
    id
}
