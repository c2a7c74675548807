//! Opening accounts: one, or a batch.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;

use crate::{
    core::reply::AccountReply,
    http::{
        Edge,
        access::Access,
        body::{Sent, require_json},
        context::RequestDeadline,
        effect, metrics, parse, path,
        problem::{Code, Problem},
        query::NoParameters,
        view::{
            self,
            account::AccountView,
            batch::{AccountBatchResultsSchema, AccountResult, RESULT_BYTES, Results},
        },
    },
};

/// Open an account.
///
/// Sent again it answers 200, `Idempotent-Replayed: true` and the account as it is now, whatever was changed since it was
/// opened. Content equal to what the account was opened with, or to what it is now, counts as sent again.
#[utoipa::path(
    post, path = "/v1/accounts", operation_id = "openAccount", tag = "accounts",
    request_body = parse::AccountBody,
    responses(
        (status = 201, description = "opened", body = AccountView),
        (status = 200, description = "it was there: opened with equal content, or equal now", body = AccountView),
    ),
)]
pub async fn open(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    _: NoParameters,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    require_json(&headers)?;
    let mut account = {
        let payload = edge.bodies.read_single(body, deadline).await?;
        parse::account(payload.text()?, &edge.rulebook)?
    };
    access.check_openings([&account], |_| String::new())?;
    account.ordered_by = access.ordered_by();
    let id = account.id.clone();
    let mut replies = edge
        .detached("open account", deadline, |core| async move {
            let id = account.id.clone();
            let replies = core.create_accounts(vec![account], deadline.0).await;
            replies.iter().for_each(|reply| effect::account(id.as_str(), reply.as_ref()));
            replies
        })
        .await?;
    let reply = replies.pop().ok_or_else(|| {
        tracing::error!("no reply for an account to open");
        Problem::internal()
    })?;
    let view = |account| AccountView::new(account, &edge.rulebook.assets);
    match reply? {
        AccountReply::Created(account) => {
            Ok(view::made(StatusCode::CREATED, &view(account)?, &path::of_account(&id)))
        }
        AccountReply::Replayed(account) => Ok(view::replayed(&view(account)?)),
        AccountReply::Conflict { field } => {
            let detail = format!("the account {id} exists with another {field}");
            Err(Problem::new(Code::AccountExists, detail).with_field(field))
        }
        other @ (AccountReply::Updated(_) | AccountReply::NotFound | AccountReply::Refused { .. }) => {
            tracing::error!(reply = ?other, "opening an account was answered as something else");
            Err(Problem::internal())
        }
    }
}

/// Open up to 10,000 accounts, with a result each.
///
/// Accounts that are there are answered as `POST /v1/accounts` answers them; one that fails keeps no other from being opened.
#[utoipa::path(
    post, path = "/v1/accounts:batch", operation_id = "openAccounts", tag = "accounts",
    request_body = parse::AccountBatchBody,
    responses(
        (status = 200, description = "a result each, in request order", body = AccountBatchResultsSchema),
    ),
)]
pub async fn open_batch(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    _: NoParameters,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    require_json(&headers)?;
    let mut accounts = {
        let payload = edge.bodies.read_batch(body, deadline).await?;
        parse::account_batch(payload.text()?, &edge.rulebook)?
    };
    access.check_openings(&accounts, |index| format!("/accounts/{index}"))?;
    let ordered_by = access.ordered_by();
    if ordered_by.is_some() {
        accounts.iter_mut().for_each(|account| account.ordered_by.clone_from(&ordered_by));
    }
    metrics::record_batch(accounts.len());
    let ids: Vec<_> = accounts.iter().map(|account| account.id.clone()).collect();
    let named = ids.clone();
    let replies = edge
        .detached("open accounts", deadline, |core| async move {
            let replies = core.create_accounts(accounts, deadline.0).await;
            effect::accounts(named.iter().zip(&replies).map(|(id, reply)| (id.as_str(), reply.as_ref())));
            replies
        })
        .await?;
    let results =
        Results { results: ids.iter().zip(&replies).map(|(id, reply)| AccountResult::new(id.as_str(), reply)) };
    Ok(view::json_with_capacity(StatusCode::OK, &results, ids.len() * RESULT_BYTES).into_response())
}
