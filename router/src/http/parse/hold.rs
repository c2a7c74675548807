//! The body that places a hold.

use std::borrow::Cow;

use ledger::{AccountId, AssetCode, Metadata, TransferId, operation::PlaceHold};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Rulebook,
    explain::{IdSource, explain},
    fields, rules, typed,
};
use crate::http::{openapi::values, problem::Problem};

/// A hold to place.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewHold)]
#[serde(deny_unknown_fields)]
pub struct HoldBody<'a> {
    /// The header `Idempotency-Key` may stand for it.
    #[serde(default, deserialize_with = "fields::transfer_id")]
    #[schema(value_type = Option<values::TransferId>)]
    id: Option<TransferId>,
    #[serde(deserialize_with = "fields::account_id")]
    #[schema(value_type = values::AccountId)]
    debit: AccountId,
    /// Whom captures pay. Nothing of this account is looked at before.
    #[serde(deserialize_with = "fields::account_id")]
    #[schema(value_type = values::AccountId)]
    credit: AccountId,
    #[serde(borrow)]
    #[schema(value_type = values::PositiveAmount)]
    amount: Cow<'a, str>,
    #[serde(deserialize_with = "fields::asset")]
    #[schema(value_type = values::Asset)]
    asset: AssetCode,
    /// Without it the hold stays until it is captured or released.
    #[serde(default, deserialize_with = "fields::expires_in_s")]
    #[schema(minimum = 1, maximum = 31_622_400)]
    expires_in_s: Option<u32>,
    /// Captures of the hold carry it too.
    #[serde(default, deserialize_with = "fields::metadata")]
    #[schema(value_type = Option<values::Metadata>)]
    metadata: Option<Metadata>,
}

const HOLD_FIELDS: &[&str] = &["id", "debit", "credit", "amount", "asset", "expires_in_s", "metadata"];

/// Reads a hold to place. Without an id of its own it takes the one derived from `key`.
pub fn hold(text: &str, rulebook: &Rulebook, key: Option<&str>) -> Result<PlaceHold, Problem> {
    let fast = || typed::<HoldBody<'_>>(text)?.order(rulebook, key);
    fast().ok_or_else(|| {
        explain(text, rulebook, |explanation, node| {
            let Some(members) = explanation.object(node, "", HOLD_FIELDS) else { return };
            explanation.terms(members, IdSource::body_or(key));
            explanation.expires_in_s(members);
            explanation.metadata(members);
        })
    })
}

impl HoldBody<'_> {
    fn order(self, rulebook: &Rulebook, key: Option<&str>) -> Option<PlaceHold> {
        if self.debit == self.credit {
            return None;
        }
        Some(PlaceHold {
            ordered_by: None,
            id: rules::id_or_derived(self.id, &self.debit, key)?,
            amount: rulebook.positive_amount(&self.amount, self.asset)?,
            debit: self.debit,
            credit: self.credit,
            asset: self.asset,
            expires_in_s: self.expires_in_s,
            metadata: self.metadata.unwrap_or_else(Metadata::empty),
        })
    }
}
