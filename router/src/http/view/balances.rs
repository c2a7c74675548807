//! Sums of balances.

use ledger::AssetRegistry;
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;

use super::{Scale, nonsense};
use crate::{
    http::{openapi::values, problem::Problem},
    service::BalanceSums,
};

/// What accounts hold together.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Balances)]
pub struct BalancesView {
    /// By asset code.
    pub data: Vec<AssetBalanceView>,
    /// Whether some shard did not answer in time, so that its accounts are missing.
    pub partial: bool,
    /// Those shards.
    pub missing_shards: Vec<String>,
    /// The time that the sums are as of, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = values::Time, required = false)]
    pub at: Option<String>,
}

/// What the accounts of one asset hold together.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AssetBalance)]
pub struct AssetBalanceView {
    #[schema(value_type = values::Asset)]
    pub asset: String,
    #[schema(value_type = values::Amount)]
    pub posted: String,
    /// Reserved by open holds.
    #[schema(value_type = values::Amount)]
    pub held: String,
    /// How many accounts.
    pub accounts: u64,
}

impl BalancesView {
    pub fn new(sums: BalanceSums, at_us: Option<i64>, assets: &AssetRegistry) -> Result<Self, Problem> {
        let mut data = Vec::with_capacity(sums.assets.len());
        for (asset, sum) in sums.assets {
            let code = wire::convert::asset(&asset).map_err(nonsense)?;
            let scale = Scale::of(code, assets)?;
            data.push(AssetBalanceView {
                asset,
                posted: scale.amount(sum.posted),
                held: scale.amount(sum.held),
                accounts: sum.accounts,
            });
        }
        let missing_shards: Vec<String> = sums.missing.iter().map(ToString::to_string).collect();
        Ok(Self { data, partial: !missing_shards.is_empty(), missing_shards, at: at_us.map(format_rfc3339) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{http::problem::Code, service::BalanceSum};

    fn sums(asset: &str) -> BalanceSums {
        let sum = BalanceSum { posted: 2 * i128::from(i64::MAX), held: -5, accounts: 3 };
        BalanceSums { assets: [(asset.to_owned(), sum)].into(), missing: vec!["s1".into()], late: None }
    }

    #[test]
    fn sums_are_amounts_and_what_is_missing_is_named() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        let view = BalancesView::new(sums("USD"), None, &assets).unwrap();
        assert_eq!(view.data[0].posted, "184467440737095516.14");
        assert_eq!(view.data[0].held, "-0.05");
        assert!(view.partial && view.missing_shards == ["s1"]);
    }

    #[test]
    fn an_asset_without_a_scale_here_is_an_error_of_ours() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        for asset in ["BTC", "not an asset"] {
            assert_eq!(BalancesView::new(sums(asset), None, &assets).unwrap_err().code(), Code::Internal);
        }
    }
}
