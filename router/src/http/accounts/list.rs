//! Listing accounts over all shards.

use axum::{extract::State, response::Response};
use http::StatusCode;

use crate::http::{
    Edge,
    context::RequestDeadline,
    page,
    problem::{Problem, ProblemBody},
    query::Parameters,
    view::{
        self,
        account_page::{AccountCursor, AccountPageView},
    },
};

/// Bytes of an account in a page, roughly.
const ACCOUNT_BYTES: usize = 384;

/// List accounts in the order of their ids, byte by byte, over all shards.
///
/// Every account that was there when the first page was asked for is in exactly one page; one opened meanwhile is, if its
/// id comes after the pages already read. Each account is as of the moment its page was read.
#[utoipa::path(
    get, path = "/v1/accounts", tag = "accounts",
    params(
        ("prefix" = Option<String>, Query, max_length = 128, description = "only ids that begin so; `{tag}` is written %7Btag%7D"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "accounts a page; 50 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before, with the same `prefix`"),
    ),
    responses(
        (status = 200, description = "a page", body = AccountPageView),
        (status = 400, description = "`invalid_parameter`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "a shard is out of reach: a list without its accounts would look complete", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn list(
    State(edge): State<Edge>,
    deadline: RequestDeadline,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let limit = page::limit(&mut parameters);
    let prefix = page::prefix(&mut parameters);
    let cursor =
        parameters.take_as("cursor", page::CURSOR_EXPECTED, |text| AccountCursor::parse(text, prefix.as_ref()?));
    parameters.finish()?;
    let prefix = prefix.unwrap_or_default();

    let after = cursor.map_or_else(String::new, |cursor| cursor.after);
    let found = edge.router.list_accounts(&prefix, &after, limit, deadline.0).await?;
    let view = AccountPageView::new(found, &prefix, &edge.rulebook.assets)?;
    Ok(view::json_with_capacity(StatusCode::OK, &view, view.data.len() * ACCOUNT_BYTES + 64))
}
