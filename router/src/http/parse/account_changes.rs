//! The body that changes an account.

use std::borrow::Cow;

use ledger::{AccountStatus, Limit, Metadata};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Rulebook,
    explain::{Explanation, explain},
    fields,
    rules::{self, LimitRule},
    tree::Node,
    typed,
};
use crate::http::{
    openapi::values,
    problem::{Code, Problem},
};

/// What to change of an account; what is absent stays.
// The limits are text until the account's asset, and with it their scale, is known.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountChanges<'a> {
    #[serde(default, deserialize_with = "fields::status")]
    #[schema(value_type = values::AccountStatus, required = false)]
    pub status: Option<AccountStatus>,
    #[serde(borrow, default, deserialize_with = "fields::some_text")]
    #[schema(value_type = values::Overdraft, required = false)]
    overdraft: Option<Cow<'a, str>>,
    /// What credits may raise the balance to; null takes the limit away.
    #[serde(borrow, default, deserialize_with = "fields::present")]
    #[schema(value_type = Option<values::Ceiling>)]
    max_balance: Option<Option<Cow<'a, str>>>,
    /// Replaces what is there.
    #[serde(default, deserialize_with = "fields::metadata")]
    #[schema(value_type = Option<values::Metadata>)]
    pub metadata: Option<Metadata>,
}

const CHANGE_FIELDS: &[&str] = &["status", "overdraft", "max_balance", "metadata"];

/// Reads a change of an account.
pub fn account_changes<'a>(text: &'a str, rulebook: &Rulebook) -> Result<AccountChanges<'a>, Problem> {
    match typed::<AccountChanges<'a>>(text) {
        Some(changes) if changes.is_well_formed() => Ok(changes),
        _ => Err(explain(text, rulebook, examine_changes)),
    }
}

impl AccountChanges<'_> {
    pub fn has_limits(&self) -> bool {
        self.overdraft.is_some() || self.max_balance.is_some()
    }

    /// Overdraft and largest balance, now that the scale is known.
    pub fn limits(&self, scale: u32) -> Result<(Option<Limit>, Option<Limit>), Problem> {
        let read = |pointer, text: &str, rule: LimitRule| {
            rule(text, scale).map_err(|detail| Problem::body(Code::InvalidAmount, pointer, detail))
        };
        let overdraft = match &self.overdraft {
            None => None,
            Some(text) => Some(read("/overdraft", text, rules::overdraft)?),
        };
        let max_balance = match &self.max_balance {
            None => None,
            Some(None) => Some(Limit::Unlimited),
            Some(Some(text)) => Some(read("/max_balance", text, rules::max_balance)?),
        };
        Ok((overdraft, max_balance))
    }

    /// Whether it changes anything, with limits that some asset could have.
    fn is_well_formed(&self) -> bool {
        let changes_something = self.status.is_some() || self.has_limits() || self.metadata.is_some();
        let plausible = |text: &str, rule: LimitRule| rule(text, rules::written_scale(text)).is_ok();
        changes_something
            && self.overdraft.as_deref().is_none_or(|text| plausible(text, rules::overdraft))
            && self
                .max_balance
                .as_ref()
                .and_then(Option::as_deref)
                .is_none_or(|text| plausible(text, rules::max_balance))
    }
}

fn examine_changes(explanation: &mut Explanation<'_>, node: &Node<'_>) {
    let Some(members) = explanation.object(node, "", CHANGE_FIELDS) else { return };
    if members.is_empty() {
        let detail = format!("name at least one of {}", CHANGE_FIELDS.join(", "));
        explanation.add(Code::InvalidJson, String::new(), detail);
    }
    explanation.status(members);
    explanation.limit(members, "overdraft", None, rules::overdraft, false);
    explanation.limit(members, "max_balance", None, rules::max_balance, true);
    explanation.metadata(members);
}
