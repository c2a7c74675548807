//! Bodies that open accounts: one, or a batch.

use std::borrow::Cow;

use ledger::{AccountId, AssetCode, Limit, Metadata, operation::CreateAccount};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Rulebook,
    explain::{Explanation, explain},
    fields, rules,
    tree::Node,
    typed,
};
use crate::http::{openapi::values, problem::Problem};

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

/// Reads one account to open.
pub fn account(text: &str, rulebook: &Rulebook) -> Result<CreateAccount, Problem> {
    let fast = || typed::<AccountBody<'_>>(text)?.order(rulebook);
    fast().ok_or_else(|| explain(text, rulebook, |explanation, node| examine(explanation, node, "")))
}

/// Reads a batch of accounts to open.
pub fn account_batch(text: &str, rulebook: &Rulebook) -> Result<Vec<CreateAccount>, Problem> {
    let fast = || {
        let batch: AccountBatchBody<'_> = typed(text)?;
        batch.accounts.into_iter().map(|fields| fields.order(rulebook)).collect::<Option<Vec<_>>>()
    };
    fast().ok_or_else(|| explain(text, rulebook, examine_batch))
}

impl AccountBody<'_> {
    fn order(self, rulebook: &Rulebook) -> Option<CreateAccount> {
        let scale = rulebook.assets.scale(self.asset)?;
        Some(CreateAccount {
            ordered_by: None,
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
            metadata: self.metadata.unwrap_or_else(Metadata::empty),
        })
    }
}

fn examine_batch(explanation: &mut Explanation<'_>, node: &Node<'_>) {
    let Some(members) = explanation.object(node, "", &["accounts"]) else { return };
    for (index, item) in explanation.items(members, "accounts").iter().enumerate() {
        examine(explanation, item, &format!("/accounts/{index}"));
    }
}

fn examine(explanation: &mut Explanation<'_>, node: &Node<'_>, pointer: &str) {
    let Some(members) = explanation.object(node, pointer, ACCOUNT_FIELDS) else { return };
    explanation.account_id(members, "id");
    let scale = explanation.asset(members).map(|(_, scale)| scale);
    explanation.limit(members, "overdraft", scale, rules::overdraft, true);
    explanation.limit(members, "max_balance", scale, rules::max_balance, true);
    explanation.metadata(members);
}
