//! Accounts and balances.

use std::collections::BTreeMap;

use ledger::{Account, AssetRegistry};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;

use super::{Scale, limit, metadata, nonsense};
use crate::{
    core::reply::Located,
    http::{openapi::values, problem::Problem},
};

/// An account.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Account)]
pub struct AccountView {
    #[schema(value_type = values::AccountId)]
    pub id: String,
    #[schema(value_type = values::Asset)]
    pub asset: String,
    #[schema(value_type = values::AccountStatus)]
    pub status: &'static str,
    /// Credits minus debits.
    #[schema(value_type = values::Amount)]
    pub posted: String,
    /// Reserved by open holds.
    #[schema(value_type = values::Amount)]
    pub held: String,
    /// posted − held + overdraft, or `unlimited`.
    #[schema(value_type = values::Available)]
    pub available: String,
    #[schema(value_type = values::Overdraft)]
    pub overdraft: String,
    /// What credits may raise `posted` to; null for no limit.
    #[schema(value_type = Option<values::Ceiling>, required)]
    pub max_balance: Option<String>,
    /// Grows by one with each journal entry: the read-your-writes token.
    #[schema(minimum = 1)]
    pub version: i64,
    /// Where the id hashes to; the shard map says which shard has the slot.
    #[schema(maximum = 16383)]
    pub slot: u16,
    /// The shard that has the account now.
    pub shard: String,
    #[schema(value_type = values::Metadata)]
    pub metadata: BTreeMap<String, String>,
    #[schema(value_type = values::Time)]
    pub created_at: String,
    #[schema(value_type = values::Time)]
    pub updated_at: String,
}

impl AccountView {
    pub fn new(located: Located<wire::Account>, assets: &AssetRegistry) -> Result<Self, Problem> {
        let account = Account::try_from(located.value).map_err(nonsense)?;
        let scale = Scale::of(account.asset, assets)?;
        Ok(Self {
            asset: account.asset.to_string(),
            status: account.status.as_str(),
            posted: scale.amount(account.posted),
            held: scale.amount(account.held),
            available: scale.available(account.posted, account.held, account.overdraft),
            overdraft: scale.limit_or_unlimited(account.overdraft),
            max_balance: scale.limit_or_none(account.max_balance),
            version: account.version,
            slot: shard_map::slot_of(account.id.as_str()).index(),
            shard: located.shard.to_string(),
            metadata: metadata(account.metadata.as_str())?,
            created_at: format_rfc3339(account.created_at_us),
            updated_at: format_rfc3339(account.updated_at_us),
            id: account.id.to_string(),
        })
    }
}

/// What an account held at some time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Balance)]
pub struct BalanceView {
    #[schema(value_type = values::AccountId)]
    pub account: String,
    #[schema(value_type = values::Asset)]
    pub asset: String,
    #[schema(value_type = values::Amount)]
    pub posted: String,
    #[schema(value_type = values::Amount)]
    pub held: String,
    #[schema(value_type = values::Available)]
    pub available: String,
    /// The account's version then; 0 before it was opened.
    #[schema(minimum = 0)]
    pub version: i64,
    /// The time asked for.
    #[schema(value_type = values::Time)]
    pub at: String,
}

impl BalanceView {
    pub fn new(
        account: &str,
        at_us: i64,
        balance: &wire::BalanceAt,
        assets: &AssetRegistry,
    ) -> Result<Self, Problem> {
        let asset = wire::convert::asset(&balance.asset).map_err(nonsense)?;
        let scale = Scale::of(asset, assets)?;
        Ok(Self {
            account: account.to_owned(),
            asset: asset.to_string(),
            posted: scale.amount(balance.posted),
            held: scale.amount(balance.held),
            available: scale.available(balance.posted, balance.held, limit(balance.overdraft, "balance.overdraft")?),
            version: balance.version,
            at: format_rfc3339(at_us),
        })
    }
}
