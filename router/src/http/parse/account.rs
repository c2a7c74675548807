//! Bodies that open or change accounts.

use std::borrow::Cow;

use ledger::{AccountId, AccountStatus, AssetCode, Limit, Metadata, operation::CreateAccount};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Rulebook,
    explain::{Explanation, child, read_tree},
    fields, rules,
    tree::Node,
    typed,
};
use crate::http::{
    openapi::values,
    problem::{Code, FieldError, Place, Problem},
};

/// An account to open.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewAccount)]
#[serde(deny_unknown_fields)]
pub struct AccountBody<'a> {
    #[serde(deserialize_with = "fields::account_id")]
    #[schema(value_type = values::AccountId)]
    id: AccountId,
    #[serde(deserialize_with = "fields::asset")]
    #[schema(value_type = values::Asset)]
    asset: AssetCode,
    /// 0 unless given.
    #[serde(borrow, default)]
    #[schema(value_type = Option<values::Overdraft>)]
    overdraft: Option<Cow<'a, str>>,
    /// What credits may raise the balance to. None unless given.
    #[serde(borrow, default)]
    #[schema(value_type = Option<values::Ceiling>)]
    max_balance: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "fields::metadata")]
    #[schema(value_type = Option<values::Metadata>)]
    metadata: Option<Metadata>,
}

const ACCOUNT_FIELDS: &[&str] = &["id", "asset", "overdraft", "max_balance", "metadata"];

/// Accounts to open, each on its own.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewAccountBatch)]
#[serde(deny_unknown_fields)]
pub struct AccountBatchBody<'a> {
    #[serde(borrow, deserialize_with = "fields::items")]
    #[schema(min_items = 1, max_items = 10_000)]
    accounts: Vec<AccountBody<'a>>,
}

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

/// Reads one account to open.
pub fn account(text: &str, rulebook: &Rulebook) -> Result<CreateAccount, Problem> {
    let fast = || typed::<AccountBody<'_>>(text)?.order(rulebook);
    fast().ok_or_else(|| match read_tree(text, "") {
        Ok(node) => {
            let mut explanation = Explanation::new(rulebook);
            examine(&mut explanation, &node, "");
            explanation.into_problem()
        }
        Err(problem) => problem,
    })
}

/// Reads a batch of accounts to open.
pub fn account_batch(text: &str, rulebook: &Rulebook) -> Result<Vec<CreateAccount>, Problem> {
    let fast = || {
        let batch: AccountBatchBody<'_> = typed(text)?;
        batch.accounts.into_iter().map(|fields| fields.order(rulebook)).collect::<Option<Vec<_>>>()
    };
    fast().ok_or_else(|| explain_batch(text, rulebook).unwrap_or_else(|problem| problem))
}

/// Reads a change of an account.
pub fn account_changes<'a>(text: &'a str, rulebook: &Rulebook) -> Result<AccountChanges<'a>, Problem> {
    match typed::<AccountChanges<'a>>(text) {
        Some(changes) if changes.is_well_formed() => Ok(changes),
        _ => Err(explain_changes(text, rulebook)),
    }
}

impl AccountBody<'_> {
    fn order(self, rulebook: &Rulebook) -> Option<CreateAccount> {
        let scale = rulebook.assets.scale(self.asset)?;
        Some(CreateAccount {
            id: self.id,
            asset: self.asset,
            overdraft: match self.overdraft {
                None => Limit::ZERO,
                Some(text) => rules::overdraft(&text, scale).ok()?,
            },
            max_balance: match self.max_balance {
                None => Limit::Unlimited,
                Some(text) => rules::max_balance(&text, scale).ok()?,
            },
            metadata: self.metadata.unwrap_or_else(|| rulebook.no_metadata.clone()),
        })
    }
}

impl AccountChanges<'_> {
    pub fn has_limits(&self) -> bool {
        self.overdraft.is_some() || self.max_balance.is_some()
    }

    /// Overdraft and largest balance, now that the scale is known.
    pub fn limits(&self, scale: u32) -> Result<(Option<Limit>, Option<Limit>), Problem> {
        let refused = |field: &str, detail: String| {
            let place = Place::Pointer(child("", field));
            Problem::malformed(vec![FieldError { code: Code::InvalidAmount, place, detail }])
        };
        let overdraft = match &self.overdraft {
            None => None,
            Some(text) => Some(rules::overdraft(text, scale).map_err(|detail| refused("overdraft", detail))?),
        };
        let max_balance = match &self.max_balance {
            None => None,
            Some(None) => Some(Limit::Unlimited),
            Some(Some(text)) => {
                Some(rules::max_balance(text, scale).map_err(|detail| refused("max_balance", detail))?)
            }
        };
        Ok((overdraft, max_balance))
    }

    /// Whether it changes anything, with limits that some asset could have.
    fn is_well_formed(&self) -> bool {
        let changes_something = self.status.is_some() || self.has_limits() || self.metadata.is_some();
        let plausible =
            |text: &str, rule: fn(&str, u32) -> Result<Limit, String>| rule(text, rules::written_scale(text)).is_ok();
        changes_something
            && self.overdraft.as_deref().is_none_or(|text| plausible(text, rules::overdraft))
            && self
                .max_balance
                .as_ref()
                .and_then(Option::as_deref)
                .is_none_or(|text| plausible(text, rules::max_balance))
    }
}

fn explain_batch(text: &str, rulebook: &Rulebook) -> Result<Problem, Problem> {
    let node = read_tree(text, "")?;
    let mut explanation = Explanation::new(rulebook);
    if let Some(members) = explanation.object(&node, "", &["accounts"]) {
        for (index, item) in explanation.items(members, "accounts")?.iter().enumerate() {
            examine(&mut explanation, item, &format!("/accounts/{index}"));
        }
    }
    Ok(explanation.into_problem())
}

fn examine(explanation: &mut Explanation<'_>, node: &Node<'_>, pointer: &str) {
    let Some(members) = explanation.object(node, pointer, ACCOUNT_FIELDS) else { return };
    explanation.account_id(members, "id");
    let scale = explanation.asset(members).map(|(_, scale)| scale);
    explanation.limit(members, "overdraft", scale, rules::overdraft, true);
    explanation.limit(members, "max_balance", scale, rules::max_balance, true);
    explanation.metadata(members);
}

fn explain_changes(text: &str, rulebook: &Rulebook) -> Problem {
    let node = match read_tree(text, "") {
        Ok(node) => node,
        Err(problem) => return problem,
    };
    let mut explanation = Explanation::new(rulebook);
    if let Some(members) = explanation.object(&node, "", CHANGE_FIELDS) {
        if members.is_empty() {
            explanation.add(
                Code::InvalidJson,
                String::new(),
                format!("name at least one of {}", CHANGE_FIELDS.join(", ")),
            );
        }
        explanation.status(members);
        explanation.limit(members, "overdraft", None, rules::overdraft, false);
        explanation.limit(members, "max_balance", None, rules::max_balance, true);
        explanation.metadata(members);
    }
    explanation.into_problem()
}
