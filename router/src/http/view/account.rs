//! Accounts and balances.

use std::collections::BTreeMap;

use ledger::{Account, AssetRegistry};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;

use super::{Scale, limit, metadata, nonsense};
use crate::{http::problem::Problem, service::Located};

/// An account.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Account)]
pub struct AccountView {
    pub id: String,
    pub asset: String,
    /// `open`, `frozen` (no debits) or `closed`.
    pub status: &'static str,
    /// Credits minus debits.
    #[schema(example = "100.00")]
    pub posted: String,
    /// Reserved by open holds.
    pub held: String,
    /// posted − held + overdraft, or `unlimited`.
    pub available: String,
    /// How far below zero debits may go, or `unlimited`.
    pub overdraft: String,
    /// What credits may raise `posted` to; null for no limit.
    pub max_balance: Option<String>,
    /// Grows by one with each journal entry.
    pub version: i64,
    pub slot: u16,
    pub shard: String,
    pub metadata: BTreeMap<String, String>,
    pub created_at: String,
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
    pub account: String,
    pub asset: String,
    pub posted: String,
    pub held: String,
    pub available: String,
    /// The account's version then; 0 before it was opened.
    pub version: i64,
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
