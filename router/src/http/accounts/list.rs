//! Listing accounts over all shards.

use axum::{extract::State, response::Response};
use http::StatusCode;

use crate::http::{
    Edge,
    access::Access,
    context::RequestDeadline,
    openapi::values,
    page,
    problem::Problem,
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
    get, path = "/v1/accounts", operation_id = "listAccounts", tag = "accounts",
    params(
        ("prefix" = inline(values::AccountPrefix), Query, description = "Only accounts whose ids begin so; `{tag}` is written `%7Btag%7D`."),
        ("limit" = inline(values::PageSize), Query, description = "Accounts a page."),
        ("cursor" = inline(values::PageCursor), Query, description = "`next_cursor` of the page before, with the same `prefix`."),
    ),
    responses(
        (status = 200, description = "a page", body = AccountPageView),
    ),
)]
pub async fn list(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let limit = page::limit(&mut parameters);
    let prefix = page::prefix(&mut parameters).map(|prefix| access.read_prefix(prefix)).transpose()?;
    let cursor =
        parameters.take_as("cursor", page::CURSOR_EXPECTED, |text| AccountCursor::parse(text, prefix.as_ref()?));
    parameters.finish()?;
    let prefix = prefix.unwrap_or_default();

    let after = cursor.map_or_else(String::new, |cursor| cursor.after);
    let found = edge.router.list_accounts(&prefix, &after, limit, deadline.0).await?;
    let view = AccountPageView::new(found, &prefix, &edge.rulebook.assets)?;
    Ok(view::json_with_capacity(StatusCode::OK, &view, view.data.len() * ACCOUNT_BYTES + 64))
}
