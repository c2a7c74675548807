//! `/v1/balances`

use axum::{extract::State, response::Response};
use http::StatusCode;

use super::{
    Edge,
    access::Access,
    context::RequestDeadline,
    csv_table::{self, Table},
    openapi::values,
    page,
    problem::Problem,
    query::Parameters,
    streamed::Recipient,
    view::{self, balances::BalancesView},
};

/// Read what accounts hold together, by asset, over all shards.
///
/// Each shard's part is as of one moment, the parts are not as of the same one: of a cross-shard transfer under way the sum
/// may have the debit and not yet the credit. A shard that does not answer in time is left out and named. With `at`, every part is as of
/// that time by the shard's clock. With `Accept: text/csv` the sums are a table, and a shard that does not answer is an error.
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
    if let Some(at_us) = at_us {
        page::settled(at_us).await;
    }
    let sums = edge.core.sum_balances(&prefix, at_us, deadline.0).await?;
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
