//! Changing an account's status, limits or metadata.

use axum::{body::Body, extract::State, response::Response};
use http::{HeaderMap, StatusCode};
use ledger::operation::UpdateAccount;

use super::no_such_account;
use crate::{
    http::{
        Edge,
        body::require_json,
        context::RequestDeadline,
        parse,
        path::AccountPath,
        problem::{Problem, ProblemBody},
        query::NoParameters,
        view::{self, Scale, account::AccountView, nonsense},
    },
    service::AccountReply,
};

/// Change an account.
///
/// `max_balance: null` takes the limit away; `metadata` replaces what is there.
#[utoipa::path(
    patch, path = "/v1/accounts/{id}", tag = "accounts",
    params(("id" = String, Path, description = "account id")),
    request_body = parse::AccountChanges,
    responses(
        (status = 200, description = "the account after the change", body = AccountView),
        (status = 400, description = "malformed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "`account_not_found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`account_not_empty`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "the balance does not fit the new limit", body = ProblemBody, content_type = "application/problem+json"),
        (status = 504, description = "`outcome_unknown`: read the account to learn", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn change(
    State(edge): State<Edge>,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    _: NoParameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    require_json(&headers)?;
    let payload = edge.bodies.read_single(body, deadline).await?;
    let changes = parse::account_changes(payload.text()?, &edge.rulebook)?;
    let (overdraft, max_balance) = if changes.has_limits() {
        // Limits are amounts, and amounts need the asset's scale. The asset of an account never changes.
        let account = edge.router.account(&id, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
        let asset = wire::convert::asset(&account.value.asset).map_err(nonsense)?;
        changes.limits(Scale::of(asset, &edge.rulebook.assets)?.digits())?
    } else {
        (None, None)
    };
    let update = UpdateAccount {
        id: id.clone(),
        status: changes.status,
        overdraft,
        max_balance,
        metadata: changes.metadata.clone(),
    };
    let reply = edge
        .detached("change account", deadline, |router| async move { router.update_account(update, deadline.0).await })
        .await??;
    match reply {
        AccountReply::Updated(account) => {
            Ok(view::json(StatusCode::OK, &AccountView::new(account, &edge.rulebook.assets)?))
        }
        AccountReply::NotFound => Err(no_such_account(&id)),
        AccountReply::Refused { refused, .. } => Err(Problem::refused(refused)),
        other @ (AccountReply::Created(_) | AccountReply::Replayed(_) | AccountReply::Conflict { .. }) => {
            tracing::error!(reply = ?other, "changing an account was answered as something else");
            Err(Problem::internal())
        }
    }
}
