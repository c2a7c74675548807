//! The body that places a hold.

use std::borrow::Cow;

use ledger::{AccountId, AssetCode, Metadata, TransferId, operation::PlaceHold};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Rulebook,
    explain::{Explanation, IdSource, read_tree},
    fields, rules,
    tree::Node,
    typed,
};
use crate::http::{
    openapi::values,
    problem::{Code, Problem},
};

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
    fast().ok_or_else(|| match read_tree(text, "") {
        Ok(node) => {
            let mut explanation = Explanation::new(rulebook);
            examine(&mut explanation, &node, key.is_some());
            explanation.into_problem()
        }
        Err(problem) => problem,
    })
}

impl HoldBody<'_> {
    fn order(self, rulebook: &Rulebook, key: Option<&str>) -> Option<PlaceHold> {
        let amount = rules::positive_amount(&self.amount, rulebook.assets.scale(self.asset)?).ok()?;
        if self.debit == self.credit {
            return None;
        }
        Some(PlaceHold {
            id: match self.id {
                Some(id) => id,
                None => rules::derived_transfer_id(&self.debit, key?),
            },
            debit: self.debit,
            credit: self.credit,
            asset: self.asset,
            amount,
            expires_in_s: self.expires_in_s,
            metadata: self.metadata.unwrap_or_else(|| rulebook.no_metadata.clone()),
        })
    }
}

fn examine(explanation: &mut Explanation<'_>, node: &Node<'_>, key_given: bool) {
    let Some(members) = explanation.object(node, "", HOLD_FIELDS) else { return };
    explanation.transfer_id(members, IdSource::BodyOrKey { key_given });
    let debit = explanation.account_id(members, "debit");
    let credit = explanation.account_id(members, "credit");
    if debit.is_some() && debit == credit {
        explanation.add(Code::SameAccount, members.child("credit"), "debit and credit must be two accounts");
    }
    let scale = explanation.asset(members).map(|(_, scale)| scale);
    explanation.positive_amount(members, scale);
    explanation.expires_in_s(members);
    explanation.metadata(members);
}
