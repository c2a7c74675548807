//! Changing an account's status, limits or metadata.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::operation::UpdateAccount;

use super::no_such_account;
use crate::{
    core::reply::AccountReply,
    http::{
        Edge,
        access::Access,
        body::{Sent, require_json},
        context::RequestDeadline,
        effect,
        openapi::values,
        parse,
        path::AccountPath,
        problem::Problem,
        query::NoParameters,
        view::{self, Scale, account::AccountView, nonsense},
    },
};

/// Change an account.
///
/// `max_balance: null` takes the limit away; `metadata` replaces what is there.
#[utoipa::path(
    patch, path = "/v1/accounts/{id}", operation_id = "updateAccount", tag = "accounts",
    params(("id" = values::AccountId, Path, description = "The account.")),
    request_body = parse::AccountChanges,
    responses(
        (status = 200, description = "the account after the change", body = AccountView),
    ),
)]
pub async fn change(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    _: NoParameters,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    require_json(&headers)?;
    access.check_change(&id, no_such_account)?;
    let payload = edge.bodies.read_single(body, deadline).await?;
    let changes = parse::account_changes(payload.text()?, &edge.rulebook)?;
    let (overdraft, max_balance) = if changes.has_limits() {
        // Limits are amounts, and amounts need the asset's scale. The asset of an account never changes.
        let account = edge.core.account(&id, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
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
        ordered_by: access.ordered_by(),
    };
    let reply = edge
        .detached_call("change account", deadline, |core| async move {
            let id = update.id.clone();
            let reply = core.update_account(update, deadline.0).await;
            effect::account(id.as_str(), reply.as_ref());
            reply
        })
        .await?;
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
