//! `/v1/accounts`: opening accounts, one or a batch, and reading one. [`change`] and [`list`] have their own files.

pub mod change;
pub mod list;

use std::{borrow::Cow, collections::BTreeMap};

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{Account, AccountId, AssetRegistry, Limit, Metadata, operation::CreateAccount};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;

use super::{
    Edge,
    access::Access,
    answer::{
        RESULT_BYTES, Results, Scale, json, json_with_capacity, made, metadata, nonsense, not_answered,
        path_of_account, replay,
    },
    body::{Sent, require_json},
    context::RequestDeadline,
    effect,
    json::{Node, Pointer, Reader, read_body, values},
    metrics,
    parameters::{AccountPath, NoParameters},
    problem::{Code, Problem},
    schemas,
};
use crate::core::{
    call::CallError,
    reply::{AccountReply, Located},
};

// === bodies ===

/// An account to open.
#[derive(ToSchema)]
#[schema(as = NewAccount)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct AccountBody {
    id: schemas::AccountId,
    asset: schemas::Asset,
    /// 0 unless given.
    overdraft: Option<schemas::Overdraft>,
    /// What credits may raise the balance to. None unless given.
    max_balance: Option<schemas::Ceiling>,
    metadata: Option<schemas::Metadata>,
}

const ACCOUNT_FIELDS: &[&str] = &["id", "asset", "overdraft", "max_balance", "metadata"];

/// Accounts to open, each on its own.
#[derive(ToSchema)]
#[schema(as = NewAccountBatch)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct AccountBatchBody {
    #[schema(min_items = 1, max_items = 10_000)]
    accounts: Vec<AccountBody>,
}

/// Reads one account to open.
pub fn read_account(text: &str, assets: &AssetRegistry) -> Result<CreateAccount, Problem> {
    read_body(text, assets, |reader, node| account(reader, node, Pointer::Root))
}

/// Reads a batch of accounts to open.
pub fn read_account_batch(text: &str, assets: &AssetRegistry) -> Result<Vec<CreateAccount>, Problem> {
    read_body(text, assets, |reader, node| {
        let batch = reader.object(node, Pointer::Root, &["accounts"])?;
        let items = reader.items(batch, "accounts");
        let mut accounts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            accounts.extend(account(reader, item, Pointer::Item(&batch.place_of("accounts"), index)));
        }
        Some(accounts)
    })
}

fn account(reader: &mut Reader<'_>, node: &Node<'_>, place: Pointer<'_>) -> Option<CreateAccount> {
    let object = reader.object(node, place, ACCOUNT_FIELDS)?;
    let id = reader.account_id(object, "id");
    let asset = reader.asset(object);
    let scale = asset.map(|(_, scale)| scale);
    let overdraft = reader.limit(object, "overdraft", scale, values::overdraft, true);
    let max_balance = reader.limit(object, "max_balance", scale, values::max_balance, true);
    let metadata = reader.metadata(object);
    Some(CreateAccount {
        ordered_by: None,
        id: id?,
        asset: asset?.0,
        overdraft: overdraft?.unwrap_or(Limit::ZERO),
        max_balance: max_balance?.unwrap_or(Limit::Unlimited),
        metadata: metadata?.unwrap_or_else(Metadata::empty),
    })
}

// === requests ===

/// The problem of a URL that names an account that does not exist.
pub fn no_such_account(id: &AccountId) -> Problem {
    Problem::new(Code::AccountNotFound, format!("there is no account {id}"))
}

/// Open an account.
///
/// Sent again it answers 200, `Idempotent-Replayed: true` and the account as it is now, whatever was changed since it was
/// opened. Content equal to what the account was opened with, or to what it is now, counts as sent again.
#[utoipa::path(
    post, path = "/v1/accounts", operation_id = "openAccount", tag = "accounts",
    request_body = AccountBody,
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
        read_account(payload.text()?, &edge.assets)?
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
    let view = |account| AccountView::new(account, &edge.assets);
    match reply? {
        AccountReply::Created(account) => Ok(made(StatusCode::CREATED, &view(account)?, &path_of_account(&id))),
        AccountReply::Replayed(account) => Ok(replay(&view(account)?)),
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
    request_body = AccountBatchBody,
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
        read_account_batch(payload.text()?, &edge.assets)?
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
    Ok(json_with_capacity(StatusCode::OK, &results, ids.len() * RESULT_BYTES))
}

/// Read an account.
///
/// Its balances include every transfer that was answered before the request was sent, through whichever router.
#[utoipa::path(
    get, path = "/v1/accounts/{id}", operation_id = "getAccount", tag = "accounts",
    params(("id" = schemas::AccountId, Path, description = "The account.")),
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
    let account = edge.core.account(&id, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
    Ok(json(StatusCode::OK, &AccountView::new(account, &edge.assets)?))
}

// === answers ===

/// An account.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Account)]
pub struct AccountView {
    #[schema(value_type = schemas::AccountId)]
    pub id: String,
    #[schema(value_type = schemas::Asset)]
    pub asset: String,
    #[schema(value_type = schemas::AccountStatus)]
    pub status: &'static str,
    /// Credits minus debits.
    #[schema(value_type = schemas::Amount)]
    pub posted: String,
    /// Reserved by open holds.
    #[schema(value_type = schemas::Amount)]
    pub held: String,
    /// posted − held + overdraft, or `unlimited`.
    #[schema(value_type = schemas::Available)]
    pub available: String,
    #[schema(value_type = schemas::Overdraft)]
    pub overdraft: String,
    /// What credits may raise `posted` to; null for no limit.
    #[schema(value_type = Option<schemas::Ceiling>, required)]
    pub max_balance: Option<String>,
    /// Grows by one with each journal entry: the read-your-writes token.
    #[schema(minimum = 1)]
    pub version: i64,
    /// Where the id hashes to; the shard map says which shard has the slot.
    #[schema(maximum = 16383)]
    pub slot: u16,
    /// The shard that has the account now.
    pub shard: String,
    #[schema(value_type = schemas::Metadata)]
    pub metadata: BTreeMap<String, String>,
    #[schema(value_type = schemas::Time)]
    pub created_at: String,
    #[schema(value_type = schemas::Time)]
    pub updated_at: String,
}

impl AccountView {
    pub fn new(located: Located<wire::Account>, assets: &AssetRegistry) -> Result<Self, Problem> {
        let account = Account::try_from(located.value).map_err(nonsense)?;
        let scale = Scale::of(account.asset, assets)?;
        Ok(Self {
            asset: account.asset.to_string(),
            status: account.status.as_str(),
            posted: scale.amount(account.posted),
            held: scale.amount(account.held),
            available: scale.available(account.posted, account.held, account.overdraft),
            overdraft: scale.limit_or_unlimited(account.overdraft),
            max_balance: scale.limit_or_none(account.max_balance),
            version: account.version,
            slot: shard_map::slot_of(account.id.as_str()).index(),
            shard: located.shard.to_string(),
            metadata: metadata(account.metadata.as_str())?,
            created_at: format_rfc3339(account.created_at_us),
            updated_at: format_rfc3339(account.updated_at_us),
            id: account.id.to_string(),
        })
    }
}

/// The answer to a batch of accounts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountBatchResults)]
pub struct AccountBatchResultsSchema {
    /// In the order of the request.
    pub results: Vec<AccountResult<'static>>,
}

/// What became of one account of a batch.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct AccountResult<'a> {
    #[schema(value_type = schemas::AccountId)]
    pub id: Cow<'a, str>,
    #[schema(value_type = schemas::AccountResultStatus)]
    pub status: &'static str,
    /// The account was there: opened with equal content, or equal now.
    pub replayed: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub code: Option<&'static str>,
    /// Which field differs from the account that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub field: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub detail: Option<Cow<'a, str>>,
}

impl<'a> AccountResult<'a> {
    pub fn new(id: &'a str, reply: &'a Result<AccountReply, CallError>) -> Self {
        let plain =
            |status| Self { id: Cow::Borrowed(id), status, replayed: false, code: None, field: None, detail: None };
        match reply {
            Ok(AccountReply::Created(_)) => plain("created"),
            Ok(AccountReply::Replayed(_)) => Self { replayed: true, ..plain("created") },
            Ok(AccountReply::Conflict { field }) => {
                let definition = Code::AccountExists.definition();
                let detail = Some(Cow::Borrowed(definition.title));
                let field = Some(Cow::Borrowed(*field));
                Self { code: Some(definition.code), field, detail, ..plain("failed") }
            }
            Ok(AccountReply::Updated(_) | AccountReply::NotFound | AccountReply::Refused { .. }) => {
                tracing::error!(?reply, "opening an account was answered as something else");
                Self { code: Some(Code::Internal.as_str()), ..plain("unknown") }
            }
            Err(error) => {
                let (status, definition) = not_answered(error);
                let detail = Some(Cow::Borrowed(definition.title));
                Self { code: Some(definition.code), detail, ..plain(status) }
            }
        }
    }
}
