//! `/v1/balances`

use axum::{extract::State, response::Response};
use http::StatusCode;

use super::{
    Edge,
    access::Access,
    context::RequestDeadline,
    csv_table::{self, Table},
    metrics::{RefusalReason, count_refused},
    openapi::values,
    page,
    problem::{Code, Problem},
    query::Parameters,
    shares::{Caller, Exhausted, Shares, Taken},
    streamed::Recipient,
    view::{self, balances::BalancesView},
};

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
        ("prefix" = inline(values::AccountPrefix), Query, description = "Only accounts whose ids begin so; `{tag}` is written `%7Btag%7D`."),
        ("at" = values::Time, Query, description = "The entries of that very microsecond are included; now unless given."),
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
    let prefix = page::prefix(&mut parameters);
    let at_us = page::instant(&mut parameters);
    parameters.finish()?;
    let prefix = access.read_prefix(prefix.unwrap_or_default())?;
    let _turn = match at_us {
        Some(at_us) => {
            let turn = turn(&edge.sums_at, recipient.caller.clone())?;
            page::settled(at_us).await;
            Some(turn)
        }
        None => None,
    };
    let sums = edge.router.sum_balances(&prefix, at_us, deadline.0).await?;
    if !recipient.csv {
        return Ok(view::json(StatusCode::OK, &BalancesView::new(sums, at_us, &edge.rulebook.assets)?));
    }
    if let Some(error) = sums.incomplete() {
        return Err(error.into());
    }
    let mut table = Table::new();
    table.line(["asset", "posted", "held", "accounts"])?;
    for sum in BalancesView::new(sums, at_us, &edge.rulebook.assets)?.data {
        table.line([sum.asset, sum.posted, sum.held, sum.accounts.to_string()])?;
    }
    csv_table::answer(table)
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

#[cfg(test)]
mod tests {
    use ledger::KeyName;

    use super::*;

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
