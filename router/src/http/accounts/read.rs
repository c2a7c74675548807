//! Reading accounts, their journals and their balances at a time.

use axum::{extract::State, response::Response};
use http::StatusCode;
use telemetry::clock;

use super::no_such_account;
use crate::http::{
    Edge,
    access::Access,
    context::RequestDeadline,
    openapi::values,
    page,
    path::AccountPath,
    problem::Problem,
    query::{NoParameters, Parameters},
    view::{
        self,
        account::{AccountView, BalanceView},
        entry::{Cursor, EntryPageView, Statement},
    },
};

const TIME_EXPECTED: &str = "a time in RFC 3339, such as 2026-01-31T12:00:00Z (a + in an offset is %2B)";

/// Read an account.
///
/// Its balances include every transfer that was answered before the request was sent, through whichever router.
#[utoipa::path(
    get, path = "/v1/accounts/{id}", operation_id = "getAccount", tag = "accounts",
    params(("id" = values::AccountId, Path, description = "The account.")),
    responses(
        (status = 200, description = "the account", body = AccountView),
    ),
)]
pub async fn show(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    _: NoParameters,
) -> Result<Response, Problem> {
    access.check_read(&id, no_such_account)?;
    let account = edge.router.account(&id, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
    Ok(view::json(StatusCode::OK, &AccountView::new(account, &edge.rulebook.assets)?))
}

/// Read an account's journal.
///
/// Newest first unless `order=asc`. Entries never change, so a page that was read stays as it is.
#[utoipa::path(
    get, path = "/v1/accounts/{id}/entries", operation_id = "listEntries", tag = "accounts",
    params(
        ("id" = values::AccountId, Path, description = "The account."),
        ("limit" = inline(values::PageSize), Query, description = "Entries a page."),
        ("cursor" = inline(values::PageCursor), Query, description = "`next_cursor` of the page before."),
        ("order" = inline(values::PageOrder), Query, description = "Newest or oldest first."),
        ("from" = values::Time, Query, description = "Entries at this time or later."),
        ("to" = values::Time, Query, description = "Entries before this time."),
    ),
    responses(
        (status = 200, description = "a page", body = EntryPageView),
    ),
)]
pub async fn entries(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let limit = page::limit(&mut parameters);
    let ascending = parameters.take_as("order", "desc or asc", |text| match text {
        "asc" => Some(true),
        "desc" => Some(false),
        _ => None,
    });
    let from_us = parameters.take_as("from", TIME_EXPECTED, positive_time);
    let to_us = parameters.take_as("to", TIME_EXPECTED, positive_time);
    let statement = Statement {
        account: id,
        ascending: ascending.unwrap_or(false),
        from_us: from_us.unwrap_or(0),
        to_us: to_us.unwrap_or(0),
    };
    let expected = "next_cursor of the page before, of the same account, order and window";
    let cursor = parameters.take_as("cursor", expected, |text| Cursor::parse(text, &statement));
    parameters.finish()?;

    access.check_read(&statement.account, no_such_account)?;
    let request = wire::ListEntriesRequest {
        account: statement.account.to_string(),
        limit,
        ascending: statement.ascending,
        after_version: cursor.map_or(0, |cursor| cursor.0),
        from_us: statement.from_us,
        to_us: statement.to_us,
    };
    let page = edge.router.entries(request, deadline.0).await?.ok_or_else(|| no_such_account(&statement.account))?;
    let view = EntryPageView::new(page, &statement, &edge.rulebook.assets, &access)?;
    Ok(view::json_with_capacity(StatusCode::OK, &view, view.data.len() * 256 + 64))
}

/// Read what an account held at a time.
///
/// At present, unless `at` says when.
#[utoipa::path(
    get, path = "/v1/accounts/{id}/balance", operation_id = "getBalance", tag = "accounts",
    params(
        ("id" = values::AccountId, Path, description = "The account."),
        ("at" = values::Time, Query, description = "The entries of that very microsecond are included; now unless given."),
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
    let at_us = parameters.take_as("at", TIME_EXPECTED, clock::parse_rfc3339);
    parameters.finish()?;
    access.check_read(&id, no_such_account)?;
    // Now is whatever there is: by this machine's clock, what was written a moment ago may be yet to come.
    let until_us = at_us.unwrap_or(i64::MAX);
    let balance = edge.router.balance_at(&id, until_us, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
    let at_us = at_us.unwrap_or_else(clock::now_us);
    Ok(view::json(StatusCode::OK, &BalanceView::new(id.as_str(), at_us, &balance, &edge.rulebook.assets)?))
}

/// Times before 1970 are before everything this ledger can know; 0 means "open" on the wire.
fn positive_time(text: &str) -> Option<i64> {
    clock::parse_rfc3339(text).map(|us| us.max(1))
}
