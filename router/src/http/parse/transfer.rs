//! The body that orders a transfer, alone or as an item of a batch.

use std::borrow::Cow;

use ledger::{AccountId, AssetCode, Metadata, TransferId, operation::Purpose};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Rulebook,
    explain::{Explanation, IdSource, explain},
    fields, rules,
    tree::Node,
    typed,
};
use crate::{
    core::reply::NewTransfer,
    http::{openapi::values, problem::Problem},
};

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

/// Reads one transfer. Without an id of its own it takes the one derived from `key`.
pub fn transfer(text: &str, rulebook: &Rulebook, key: Option<&str>) -> Result<NewTransfer, Problem> {
    let fast = || typed::<TransferBody<'_>>(text)?.order(rulebook, key, &Metadata::empty());
    fast().ok_or_else(|| {
        explain(text, rulebook, |explanation, node| {
            examine(explanation, node, "", IdSource::body_or(key));
        })
    })
}

impl TransferBody<'_> {
    /// `no_metadata` is what the items of one batch without metadata share. Were it shared by all requests, the workers
    /// would contend for its reference count.
    pub(super) fn order(self, rulebook: &Rulebook, key: Option<&str>, no_metadata: &Metadata) -> Option<NewTransfer> {
        if self.debit == self.credit {
            return None;
        }
        Some(NewTransfer {
            ordered_by: None,
            id: rules::id_or_derived(self.id, &self.debit, key)?,
            amount: rulebook.positive_amount(&self.amount, self.asset)?,
            debit: self.debit,
            credit: self.credit,
            asset: self.asset,
            metadata: self.metadata.unwrap_or_else(|| no_metadata.clone()),
            purpose: Purpose::Payment,
        })
    }
}

/// Its id, where that is a good one.
pub(super) fn examine(
    explanation: &mut Explanation<'_>,
    node: &Node<'_>,
    pointer: &str,
    source: IdSource,
) -> Option<TransferId> {
    let members = explanation.object(node, pointer, TRANSFER_FIELDS)?;
    let id = explanation.terms(members, source);
    explanation.metadata(members);
    id
}
