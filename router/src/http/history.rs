//! Lists of an account's transfers and holds.
//!
//! No index leads from accounts, states or metadata to transfers, and no commit pays for one. What leads from an account to its transfers is
//! its journal (ADR 7): a list reads pages of entries, and the transfers of a page with one call for each shard of their debit accounts.
//! What is filtered out costs as much as what is answered, so a request looks at a bounded number of entries and answers with a cursor,
//! even if it has found nothing yet (ADR 18).

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
};

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{AccountId, EntryKind, TransferKey};
use serde::Serialize;
use utoipa::ToSchema;
use wire::convert::{BadMessage, account_id, id_from_wire};

use super::{
    Edge,
    access::Access,
    accounts::no_such_account,
    answer::{json_with_capacity, nonsense},
    context::RequestDeadline,
    entries::{Cursor, Statement},
    holds::view::HoldView,
    parameters::{self, Parameters},
    problem::{Code, Problem},
    schemas::{self, MAX_PAGE_SIZE},
    transfers::view::TransferView,
};

/// Entries that one request looks at.
const LOOKED_AT: u32 = 2_000;
/// Entries of its first page, at least.
const FIRST_LOOK: u32 = 50;
const TRANSFER_STATES: [&str; 4] = ["pending", "posted", "rejected", "reversed"];
const HOLD_STATES: [&str; 4] = ["held", "captured", "released", "expired"];

/// A page of an account's transfers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TransferPage)]
pub struct TransferPageView {
    pub data: Vec<TransferView>,
    /// Whether entries are left to look at. A page may have fewer transfers than `limit`, or none, and more may follow.
    pub has_more: bool,
    /// For the parameter `cursor`; null at the end.
    #[schema(required, min_length = 1)]
    pub next_cursor: Option<String>,
}

/// A page of an account's holds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HoldPage)]
pub struct HoldPageView {
    pub data: Vec<HoldView>,
    /// Whether entries are left to look at. A page may have fewer holds than `limit`, or none, and more may follow.
    pub has_more: bool,
    /// For the parameter `cursor`; null at the end.
    #[schema(required, min_length = 1)]
    pub next_cursor: Option<String>,
}

/// List an account's transfers, those that it paid and those that it received.
///
/// In the order of the account's entries, newest first unless `order=asc`; `from` and `to` are times of these entries. A request looks at
/// 2,000 entries at most: a page may have fewer than `limit` transfers and still be followed by more. Transfers that were refused before they
/// took money have no entry and are not listed.
#[utoipa::path(
    get, path = "/v1/transfers", operation_id = "listTransfers", tag = "transfers",
    params(
        ("account" = schemas::AccountId, Query, description = "Debit or credit account. Required."),
        ("status" = inline(schemas::ListedTransferStatus), Query, description = "Only those that are in this state now."),
        ("metadata" = inline(schemas::MetadataFilter), Query, description = "Only those whose metadata has this name, or this value under it."),
        ("from" = schemas::Time, Query, description = "Entries at this time or later."),
        ("to" = schemas::Time, Query, description = "Entries before this time."),
        ("order" = inline(schemas::PageOrder), Query, description = "Newest or oldest first."),
        ("limit" = inline(schemas::PageSize), Query, description = "Transfers a page."),
        ("cursor" = inline(schemas::PageCursor), Query, description = "`next_cursor` of the page before, with the same parameters."),
    ),
    responses(
        (status = 200, description = "a page", body = TransferPageView),
    ),
)]
pub async fn transfers(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let list = List::take(&mut parameters, "transfers", &TRANSFER_STATES);
    parameters.finish()?;
    let list = list.ok_or_else(Problem::internal)?;
    access.check_read(&list.statement.account, no_such_account)?;
    let (data, next) = list.read(&edge, &access, deadline).await?;
    let view =
        TransferPageView { data, has_more: next.is_some(), next_cursor: next.map(|next| list.cursor_text(next)) };
    Ok(json_with_capacity(StatusCode::OK, &view, view.data.len() * 512 + 64))
}

/// List an account's holds.
///
/// In the order in which they were placed, newest first unless `order=asc`. A request looks at 2,000 entries of the account at most: a page may
/// have fewer than `limit` holds and still be followed by more. Holds that were refused have no entry and are not listed.
#[utoipa::path(
    get, path = "/v1/holds", operation_id = "listHolds", tag = "holds",
    params(
        ("account" = schemas::AccountId, Query, description = "The debit account. Required."),
        ("status" = inline(schemas::ListedHoldStatus), Query, description = "Only those that are in this state now."),
        ("metadata" = inline(schemas::MetadataFilter), Query, description = "Only those whose metadata has this name, or this value under it."),
        ("from" = schemas::Time, Query, description = "Placed at this time or later."),
        ("to" = schemas::Time, Query, description = "Placed before this time."),
        ("order" = inline(schemas::PageOrder), Query, description = "Newest or oldest first."),
        ("limit" = inline(schemas::PageSize), Query, description = "Holds a page."),
        ("cursor" = inline(schemas::PageCursor), Query, description = "`next_cursor` of the page before, with the same parameters."),
    ),
    responses(
        (status = 200, description = "a page", body = HoldPageView),
    ),
)]
pub async fn holds(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let list = List::take(&mut parameters, "holds", &HOLD_STATES);
    parameters.finish()?;
    let list = list.ok_or_else(Problem::internal)?;
    access.check_read(&list.statement.account, no_such_account)?;
    let (data, next) = list.read(&edge, &access, deadline).await?;
    let view = HoldPageView { data, has_more: next.is_some(), next_cursor: next.map(|next| list.cursor_text(next)) };
    Ok(json_with_capacity(StatusCode::OK, &view, view.data.len() * 512 + 64))
}

/// A list as a request asks for it.
struct List {
    statement: Statement,
    status: Option<&'static str>,
    /// Name, and value if it matters.
    metadata: Option<(String, Option<String>)>,
    limit: u32,
    after: Option<Cursor>,
    /// Tells lists apart.
    mark: String,
}

impl List {
    /// `None`: a parameter is wrong, which [`Parameters::finish`] answers.
    fn take(parameters: &mut Parameters, of: &str, states: &'static [&'static str]) -> Option<Self> {
        let account = match parameters.take("account").map(|text| AccountId::client(&text)) {
            Some(Ok(account)) => Some(account),
            Some(Err(reason)) => {
                parameters.refuse(Code::InvalidId, "account", &reason.to_string());
                None
            }
            None => {
                parameters.refuse(
                    Code::InvalidParameter,
                    "account",
                    "it is required: only an account leads to its history",
                );
                None
            }
        };
        let expected = states.join(", ");
        let status =
            parameters.take_as("status", &expected, |text| states.iter().copied().find(|state| *state == text));
        let metadata = parameters.take_as("metadata", "a name, or name=value", |text| {
            let (name, value) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
            (!name.is_empty()).then(|| (name.to_owned(), value))
        });
        let limit = parameters::limit(parameters);
        // All parameters are taken, also if the account is wrong, so that one answer names every mistake.
        let stand_in = account.clone().unwrap_or_else(AccountId::marker);
        let statement = Statement::take(parameters, stand_in);
        let mark = statement.mark_with(&format!(" {of} {status:?} {metadata:?}"));
        let after =
            parameters.take_as("cursor", parameters::CURSOR_EXPECTED, |text| Cursor::parse_marked(text, &mark));
        account.map(|_| Self { statement, status, metadata, limit, after, mark })
    }

    fn wants(&self, status: &str, metadata: &BTreeMap<String, String>) -> bool {
        let is_meant = |(name, value): &(String, Option<String>)| {
            metadata.get(name).is_some_and(|there| value.as_ref().is_none_or(|value| value == there))
        };
        self.status.is_none_or(|wanted| wanted == status) && self.metadata.as_ref().is_none_or(is_meant)
    }

    fn cursor_text(&self, version: i64) -> String {
        Cursor(version).text_marked(&self.mark)
    }

    /// Looks at entries until there are `limit` items, or [`LOOKED_AT`] entries. Returns the items and the version of the last entry that
    /// it looked at, unless there are no more.
    async fn read<T: Listed>(
        &self,
        edge: &Edge,
        access: &Access,
        deadline: RequestDeadline,
    ) -> Result<(Vec<T>, Option<i64>), Problem> {
        let account = &self.statement.account;
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let (mut items, mut after_version, mut left) =
            (Vec::new(), self.after.map_or(0, |cursor| cursor.0), LOOKED_AT);
        // Few entries where each of them may be an item, more with each page that was not enough.
        let is_filtered = self.status.is_some() || self.metadata.is_some();
        let mut looks_at = if is_filtered { MAX_PAGE_SIZE } else { self.limit.max(FIRST_LOOK) };
        loop {
            let request =
                wire::ListEntriesRequest { limit: left.min(looks_at), after_version, ..self.statement.request() };
            looks_at = looks_at.saturating_mul(2).min(MAX_PAGE_SIZE);
            let page = edge.core.entries(request, deadline.0).await?.ok_or_else(|| no_such_account(account))?;
            let causes = page.entries.iter().map(|entry| T::cause(entry, account));
            let causes = causes.collect::<Result<Vec<_>, _>>().map_err(nonsense)?;
            let keys: Vec<TransferKey> = causes.iter().flatten().cloned().collect();
            let mut found =
                if keys.is_empty() { HashMap::new() } else { T::fetch(edge, access, keys, deadline).await? };
            let looked_at = page.entries.len();
            for (index, (entry, cause)) in page.entries.iter().zip(causes).enumerate() {
                after_version = entry.version;
                let item = cause.and_then(|key| found.remove(&key));
                let Some(item) = item.filter(|item: &T| self.wants(item.status(), item.metadata())) else { continue };
                items.push(item);
                if items.len() == limit {
                    let is_last = index + 1 == looked_at && !page.has_more;
                    return Ok((items, (!is_last).then_some(after_version)));
                }
            }
            left = left.saturating_sub(u32::try_from(looked_at).unwrap_or(u32::MAX));
            if !page.has_more {
                return Ok((items, None));
            }
            if left == 0 || looked_at == 0 {
                return Ok((items, Some(after_version)));
            }
        }
    }
}

/// The items of a list: transfers or holds.
trait Listed: Sized + Send {
    /// The item that an entry of this account stands for. Every item of the list has one such entry in the account's journal.
    fn cause(entry: &wire::Entry, account: &AccountId) -> Result<Option<TransferKey>, BadMessage>;

    /// The items with these identities that the sender of the request may read.
    fn fetch(
        edge: &Edge,
        access: &Access,
        keys: Vec<TransferKey>,
        deadline: RequestDeadline,
    ) -> impl Future<Output = Result<HashMap<TransferKey, Self>, Problem>> + Send;

    fn status(&self) -> &'static str;
    fn metadata(&self) -> &BTreeMap<String, String>;
}

impl Listed for TransferView {
    fn cause(entry: &wire::Entry, account: &AccountId) -> Result<Option<TransferKey>, BadMessage> {
        let kind = u8::try_from(entry.kind).ok().and_then(EntryKind::from_code);
        if !matches!(kind, Some(EntryKind::Posted | EntryKind::Reserved | EntryKind::Captured)) {
            return Ok(None);
        }
        let debit = match entry.amount > 0 {
            true => account_id(&entry.counterparty, "entry.counterparty")?,
            false => account.clone(),
        };
        Ok(Some(TransferKey { id: id_from_wire(&entry.transfer_id)?, debit }))
    }

    async fn fetch(
        edge: &Edge,
        access: &Access,
        keys: Vec<TransferKey>,
        deadline: RequestDeadline,
    ) -> Result<HashMap<TransferKey, Self>, Problem> {
        let mut items = HashMap::new();
        for found in edge.core.transfers_of(keys, deadline.0).await? {
            if !access.may_read_transfer(&found.record) {
                continue;
            }
            let debit = account_id(&found.record.debit, "transfer.debit").map_err(nonsense)?;
            let view = Self::stored(found, &edge.assets)?.shown_to(access);
            items.insert(TransferKey { id: ledger::TransferId(view.id), debit }, view);
        }
        Ok(items)
    }

    fn status(&self) -> &'static str {
        self.status
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl Listed for HoldView {
    fn cause(entry: &wire::Entry, account: &AccountId) -> Result<Option<TransferKey>, BadMessage> {
        if entry.kind != u32::from(EntryKind::Held.code()) {
            return Ok(None);
        }
        Ok(Some(TransferKey { id: id_from_wire(&entry.transfer_id)?, debit: account.clone() }))
    }

    async fn fetch(
        edge: &Edge,
        access: &Access,
        keys: Vec<TransferKey>,
        deadline: RequestDeadline,
    ) -> Result<HashMap<TransferKey, Self>, Problem> {
        let mut items = HashMap::new();
        for found in edge.core.holds_of(keys, deadline.0).await? {
            let view = Self::stored(&found.key, &found.hold, &edge.assets)?.shown_to(access);
            items.insert(found.key, view);
        }
        Ok(items)
    }

    fn status(&self) -> &'static str {
        self.status
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}
