//! `/v1/balances`

use axum::{extract::State, response::Response};
use http::StatusCode;

use super::{
    Edge,
    access::Access,
    context::RequestDeadline,
    openapi::values,
    page,
    problem::Problem,
    query::Parameters,
    view::{self, balances::BalancesView},
};

/// Read what accounts hold together, by asset, over all shards.
///
/// Each shard's part is as of one moment, the parts are not as of the same one: of a cross-shard transfer under way the sum
/// may have the debit and not yet the credit. A shard that does not answer in time is left out and named.
#[utoipa::path(
    get, path = "/v1/balances", operation_id = "sumBalances", tag = "accounts",
    params(
        ("prefix" = inline(values::AccountPrefix), Query, description = "Only accounts whose ids begin so; `{tag}` is written `%7Btag%7D`."),
    ),
    responses(
        (status = 200, description = "the sums", body = BalancesView),
    ),
)]
pub async fn sum(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let prefix = page::prefix(&mut parameters);
    parameters.finish()?;
    let prefix = access.read_prefix(prefix.unwrap_or_default())?;
    let sums = edge.router.sum_balances(&prefix, deadline.0).await?;
    Ok(view::json(StatusCode::OK, &BalancesView::new(sums, &edge.rulebook.assets)?))
}
