//! Changing an account's status, limits or metadata.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{AccountStatus, AssetRegistry, Limit, Metadata, operation::UpdateAccount};
use utoipa::ToSchema;

use super::{AccountView, no_such_account};
use crate::{
    core::{call::CallError, reply::AccountReply},
    http::{
        Edge,
        access::Access,
        answer::{Scale, json, nonsense},
        body::{Sent, require_json},
        context::RequestDeadline,
        effect,
        json::{
            Node, Pointer, read_body,
            values::{self, LimitRule},
        },
        parameters::{AccountPath, NoParameters},
        problem::{Code, Problem},
        schemas,
    },
};

/// What to change of an account; what is absent stays.
#[derive(ToSchema)]
#[schema(as = AccountChanges)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct AccountChangesBody {
    #[schema(required = false)]
    status: schemas::AccountStatus,
    #[schema(required = false)]
    overdraft: schemas::Overdraft,
    /// What credits may raise the balance to; null takes the limit away.
    max_balance: Option<schemas::Ceiling>,
    /// Replaces what is there.
    metadata: Option<schemas::Metadata>,
}

const CHANGE_FIELDS: &[&str] = &["status", "overdraft", "max_balance", "metadata"];

/// A change as it is read. The limits are text until the asset of the account, and with it their scale, is known.
#[derive(Debug)]
pub struct AccountChanges {
    status: Option<AccountStatus>,
    overdraft: Option<String>,
    /// Inner `None`: without a limit from now on.
    max_balance: Option<Option<String>>,
    pub metadata: Option<Metadata>,
}

impl AccountChanges {
    pub fn read(text: &str, assets: &AssetRegistry) -> Result<Self, Problem> {
        read_body(text, assets, |reader, node| {
            let object = reader.object(node, Pointer::Root, CHANGE_FIELDS)?;
            if object.is_empty() {
                let detail = format!("name at least one of {}", CHANGE_FIELDS.join(", "));
                reader.add(Code::InvalidJson, Pointer::Root, detail);
            }
            let status = reader.status(object);
            reader.limit(object, "overdraft", None, values::overdraft, false);
            reader.limit(object, "max_balance", None, values::max_balance, true);
            let metadata = reader.metadata(object);
            let text = |name| match object.get(name) {
                Some(Node::String(text)) => Some(text.clone().into_owned()),
                _ => None,
            };
            Some(Self {
                status: status?,
                overdraft: text("overdraft"),
                max_balance: object.get("max_balance").map(|_| text("max_balance")),
                metadata: metadata?,
            })
        })
    }

    fn has_limits(&self) -> bool {
        self.overdraft.is_some() || self.max_balance.is_some()
    }

    /// Overdraft and largest balance, now that the scale is known.
    pub fn limits(&self, scale: u32) -> Result<(Option<Limit>, Option<Limit>), Problem> {
        let read = |pointer, text: &str, rule: LimitRule| {
            rule(text, scale).map_err(|detail| Problem::body(Code::InvalidAmount, pointer, detail))
        };
        let overdraft = match &self.overdraft {
            None => None,
            Some(text) => Some(read("/overdraft", text, values::overdraft)?),
        };
        let max_balance = match &self.max_balance {
            None => None,
            Some(None) => Some(Limit::Unlimited),
            Some(Some(text)) => Some(read("/max_balance", text, values::max_balance)?),
        };
        Ok((overdraft, max_balance))
    }
}

/// Change an account.
///
/// `max_balance: null` takes the limit away; `metadata` replaces what is there.
#[utoipa::path(
    patch, path = "/v1/accounts/{id}", operation_id = "updateAccount", tag = "accounts",
    params(("id" = schemas::AccountId, Path, description = "The account.")),
    request_body = AccountChangesBody,
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
    let changes = {
        let payload = edge.bodies.read_single(body, deadline).await?;
        AccountChanges::read(payload.text()?, &edge.assets)?
    };
    let (overdraft, max_balance) = if changes.has_limits() {
        // Limits are amounts, and amounts need the asset's scale. The asset of an account never changes.
        let account = edge.core.account(&id, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
        let asset = wire::convert::asset(&account.value.asset).map_err(nonsense)?;
        changes.limits(Scale::of(asset, &edge.assets)?.digits())?
    } else {
        (None, None)
    };
    let update = UpdateAccount {
        id,
        status: changes.status,
        overdraft,
        max_balance,
        metadata: changes.metadata,
        ordered_by: access.ordered_by(),
    };
    carry_out(&edge, update, effect::account, deadline).await
}

/// Changes an account and answers with the account after the change. `log` writes the line of the effect.
pub async fn carry_out(
    edge: &Edge,
    update: UpdateAccount,
    log: fn(&str, Result<&AccountReply, &CallError>),
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    let id = update.id.clone();
    let reply = edge
        .detached_call("change account", deadline, |core| async move {
            let id = update.id.clone();
            let reply = core.update_account(update, deadline.0).await;
            log(id.as_str(), reply.as_ref());
            reply
        })
        .await?;
    match reply {
        AccountReply::Updated(account) => Ok(json(StatusCode::OK, &AccountView::new(account, &edge.assets)?)),
        AccountReply::NotFound => Err(no_such_account(&id)),
        AccountReply::Refused { refused, .. } => Err(Problem::refused(refused)),
        other @ (AccountReply::Created(_) | AccountReply::Replayed(_) | AccountReply::Conflict { .. }) => {
            tracing::error!(reply = ?other, "changing an account was answered as something else");
            Err(Problem::internal())
        }
    }
}
