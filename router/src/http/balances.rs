//! What accounts hold: sums over all shards (`/v1/balances`), and one account at a time (`/v1/accounts/{id}/balance`).

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::AssetRegistry;
use serde::Serialize;
use telemetry::clock::{self, format_rfc3339};
use utoipa::ToSchema;

use super::{
    Edge,
    access::Access,
    accounts::no_such_account,
    admission::{Caller, Exhausted, Shares, Taken},
    answer::{Scale, Table, json, limit, nonsense, table},
    context::RequestDeadline,
    metrics::{RefusalReason, count_refused},
    parameters::{self, AccountPath, Parameters},
    problem::{Code, Problem},
    schemas,
    streamed::Recipient,
};
use crate::core::reply::BalanceSums;

// === sums ===

/// Sums as of a time that one router reads, or that wait for their turn. Few of them run at once, in the order in which they came.
pub const SUMS_AT_ONCE: usize = 64;
/// How many of them one key may have. Each may take 30 s, and with more, one key would have all the turns.
const OF_KEY: usize = 1;
/// How many of them one address may have that needs no key. Behind a gateway, every client has its address.
const OF_ADDRESS: usize = 6;

/// Read what accounts hold together, by asset, over all shards.
///
/// Each shard's part is as of one moment, the parts are not as of the same one: of a cross-shard transfer under way the sum
/// may have the debit and not yet the credit. A shard that does not answer in time is left out and named. With `at`, every part is as of
/// that time by the shard's clock, and a key may have one such request at a time. With `Accept: text/csv` the sums are a table, and a shard that does not answer is an error.
#[utoipa::path(
    get, path = "/v1/balances", operation_id = "sumBalances", tag = "accounts",
    params(
        ("prefix" = inline(schemas::AccountPrefix), Query, description = "Only accounts whose ids begin so; `{tag}` is written `%7Btag%7D`."),
        ("at" = schemas::Time, Query, description = "The entries of that very microsecond are included; now unless given."),
    ),
    responses(
        (status = 200, description = "the sums", body = BalancesView),
    ),
)]
pub async fn sum(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    recipient: Recipient,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let prefix = parameters::prefix(&mut parameters);
    let at_us = parameters::instant(&mut parameters);
    parameters.finish()?;
    let prefix = access.read_prefix(prefix.unwrap_or_default())?;
    let _turn = match at_us {
        Some(at_us) => {
            let turn = turn(&edge.sums_at, recipient.caller.clone())?;
            parameters::settled(at_us).await;
            Some(turn)
        }
        None => None,
    };
    let sums = edge.core.sum_balances(&prefix, at_us, deadline.0).await?;
    if !recipient.csv {
        return Ok(json(StatusCode::OK, &BalancesView::new(sums, at_us, &edge.assets)?));
    }
    if let Some(error) = sums.incomplete() {
        return Err(error.into());
    }
    let mut lines = Table::new();
    lines.line(["asset", "posted", "held", "accounts"])?;
    for sum in BalancesView::new(sums, at_us, &edge.assets)?.data {
        lines.line([sum.asset, sum.posted, sum.held, sum.accounts.to_string()])?;
    }
    table(lines)
}

/// Admits a sum as of a time, which is counted for as long as the result lives.
fn turn(sums: &Shares, caller: Caller) -> Result<Taken, Problem> {
    let share = match caller {
        Caller::Key(_) => OF_KEY,
        Caller::Address(_) => OF_ADDRESS,
    };
    sums.take(caller, share, 1).map_err(|exhausted| match exhausted {
        Exhausted::Share => {
            count_refused(RefusalReason::CallerSums);
            let detail = format!(
                "a router reads at most {share} sums as of a time at once for one caller; wait for the answer first"
            );
            Problem::new(Code::RateLimited, detail)
        }
        Exhausted::All => {
            count_refused(RefusalReason::InFlight);
            Problem::new(Code::Overloaded, "too many sums as of a time are waiting")
        }
    })
}

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
    #[schema(value_type = schemas::Time, required = false)]
    pub at: Option<String>,
}

/// What the accounts of one asset hold together.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AssetBalance)]
pub struct AssetBalanceView {
    #[schema(value_type = schemas::Asset)]
    pub asset: String,
    #[schema(value_type = schemas::Amount)]
    pub posted: String,
    /// Reserved by open holds.
    #[schema(value_type = schemas::Amount)]
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

// === one account at a time ===

/// Read what an account held at a time.
///
/// At present, unless `at` says when.
#[utoipa::path(
    get, path = "/v1/accounts/{id}/balance", operation_id = "getBalance", tag = "accounts",
    params(
        ("id" = schemas::AccountId, Path, description = "The account."),
        ("at" = schemas::Time, Query, description = "The entries of that very microsecond are included; now unless given."),
    ),
    responses(
        (status = 200, description = "the balance then; version 0 before the account was opened", body = BalanceView),
    ),
)]
pub async fn balance(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let at_us = parameters.take_as("at", parameters::TIME_EXPECTED, clock::parse_rfc3339);
    parameters.finish()?;
    access.check_read(&id, no_such_account)?;
    // Without `at`, every entry counts: by the clock of this machine, an entry of a moment ago may be in the future.
    let until_us = at_us.unwrap_or(i64::MAX);
    let balance = edge.core.balance_at(&id, until_us, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
    let at_us = at_us.unwrap_or_else(clock::now_us);
    Ok(json(StatusCode::OK, &BalanceView::new(id.as_str(), at_us, &balance, &edge.assets)?))
}

/// What an account held at some time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Balance)]
pub struct BalanceView {
    #[schema(value_type = schemas::AccountId)]
    pub account: String,
    #[schema(value_type = schemas::Asset)]
    pub asset: String,
    #[schema(value_type = schemas::Amount)]
    pub posted: String,
    #[schema(value_type = schemas::Amount)]
    pub held: String,
    #[schema(value_type = schemas::Available)]
    pub available: String,
    /// The account's version then; 0 before it was opened.
    #[schema(minimum = 0)]
    pub version: i64,
    /// The time asked for.
    #[schema(value_type = schemas::Time)]
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

#[cfg(test)]
mod tests {
    use ledger::KeyName;

    use super::*;
    use crate::core::reply::BalanceSum;

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

    #[test]
    fn one_key_has_one_sum_as_of_a_time_and_leaves_the_turns_to_others() {
        let sums = Shares::new(SUMS_AT_ONCE);
        let key = |name: &str| Caller::Key(KeyName::new(name).unwrap());
        let code = |result: Result<Taken, Problem>| result.map_err(|problem| problem.code());
        let first = turn(&sums, key("one")).unwrap();
        assert_eq!(code(turn(&sums, key("one"))).unwrap_err(), Code::RateLimited);
        assert!(turn(&sums, key("two")).is_ok());
        drop(first);
        assert!(turn(&sums, key("one")).is_ok(), "a turn is given back");
        let of_address: Vec<Taken> = (0..OF_ADDRESS).map(|_| turn(&sums, Caller::Address(None)).unwrap()).collect();
        assert_eq!(code(turn(&sums, Caller::Address(None))).unwrap_err(), Code::RateLimited);
        let others: Vec<Taken> =
            (of_address.len()..SUMS_AT_ONCE).map(|number| turn(&sums, key(&format!("k{number}"))).unwrap()).collect();
        assert_eq!(code(turn(&sums, key("last"))).unwrap_err(), Code::Overloaded);
        drop((of_address, others));
    }
}
