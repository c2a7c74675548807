//! Listing accounts over all shards: page by page, as of a time, or as CSV. The last two are whole, and sent while they are read.

use std::fmt::Write as _;

use axum::{extract::State, response::Response};
use bytes::Bytes;
use http::StatusCode;
use ledger::{AccountId, AccountPrefix, AssetRegistry};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;

use super::AccountView;
use crate::{
    core::reply::AccountPage,
    http::{
        Edge,
        access::Access,
        admission::Caller,
        answer::{CSV, Scale, Table, json_with_capacity, limit, metadata_cell, nonsense, text_cell},
        context::RequestDeadline,
        parameters::{self, Parameters},
        problem::Problem,
        schemas::{self, MAX_PAGE_SIZE},
        streamed::{self, Part, PartDeadlines, Recipient},
    },
};

/// Bytes of an account in a page, roughly.
const ACCOUNT_BYTES: usize = 384;
/// Accounts of each shard in a part of a whole list.
const PART: u32 = 2_000;
const WHOLE: &str = "not in a request with at, or for CSV: the answer is whole";

/// List accounts in the order of their ids, byte by byte, over all shards.
///
/// Every account that was there when the first page was asked for is in exactly one page; one opened meanwhile is, if its
/// id comes after the pages already read. Each account is as of the moment its page was read.
///
/// With `at` the answer is not a page but all accounts that were open at that time, with what they held then. It is sent while it is read,
/// and `X-Request-Timeout-Ms` counts for each part. If a part fails, the connection breaks off before the end of the body.
///
/// With `Accept: text/csv` the answer is a table of all accounts, sent in the same way.
#[utoipa::path(
    get, path = "/v1/accounts", operation_id = "listAccounts", tag = "accounts",
    params(
        ("prefix" = inline(schemas::AccountPrefix), Query, description = "Only accounts whose ids begin so; `{tag}` is written `%7Btag%7D`."),
        ("at" = schemas::Time, Query, description = "All accounts as of this time, entries of that very microsecond included; without `limit` and `cursor`."),
        ("limit" = inline(schemas::PageSize), Query, description = "Accounts a page."),
        ("cursor" = inline(schemas::PageCursor), Query, description = "`next_cursor` of the page before, with the same `prefix`."),
    ),
    responses(
        (status = 200, description = "a page, or with `at` all accounts", body = AccountListView),
    ),
)]
pub async fn list(
    State(edge): State<Edge>,
    access: Access,
    recipient: Recipient,
    deadline: RequestDeadline,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let prefix = parameters::prefix(&mut parameters).map(|prefix| access.read_prefix(prefix)).transpose()?;
    let at_us = parameters::instant(&mut parameters);
    let csv = recipient.csv;
    if csv || at_us.is_some() {
        recipient.needs_http_1_1()?;
        parameters::refuse_pages(&mut parameters, WHOLE);
    }
    let limit = parameters::limit(&mut parameters);
    let cursor = parameters
        .take_as("cursor", parameters::CURSOR_EXPECTED, |text| AccountCursor::parse(text, prefix.as_ref()?));
    parameters.finish()?;
    let prefix = prefix.unwrap_or_default();

    match at_us {
        Some(at_us) => {
            parameters::settled(at_us).await;
            whole_at(edge, recipient.caller, prefix, at_us, csv, deadline).await
        }
        None if csv => whole(edge, recipient.caller, prefix, deadline).await,
        None => {
            let after = cursor.map_or_else(String::new, |cursor| cursor.after);
            let found = edge.core.list_accounts(&prefix, &after, limit, deadline.0).await?;
            let view = AccountPageView::new(found, &prefix, &edge.assets)?;
            Ok(json_with_capacity(StatusCode::OK, &view, view.data.len() * ACCOUNT_BYTES + 64))
        }
    }
}

/// The beginning of a part of a whole list.
#[derive(Default)]
struct Begin {
    /// After this id.
    after: String,
    /// Accounts before it.
    accounts: u64,
    is_later_part: bool,
}

const COLUMNS_AT: [&str; 9] =
    ["id", "asset", "posted", "held", "available", "overdraft", "version", "created_at", "updated_at"];

async fn whole_at(
    edge: Edge,
    caller: Caller,
    prefix: AccountPrefix,
    at_us: i64,
    csv: bool,
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    let deadlines = PartDeadlines::of(deadline);
    let reader = edge.clone();
    let read = move |begin: Begin| {
        let (edge, prefix) = (reader.clone(), prefix.clone());
        async move {
            let page = edge.core.list_accounts_at(&prefix, &begin.after, PART, at_us, deadlines.next()).await?;
            let accounts = page.accounts.into_iter().map(|account| AccountAtView::new(account, &edge.assets));
            let accounts = accounts.collect::<Result<Vec<_>, _>>()?;
            let count = begin.accounts + accounts.len() as u64;
            let bytes = match csv {
                true => table_at(&accounts, &begin)?,
                false => json_at(&accounts, &begin, page.next.is_none().then_some((at_us, count)))?,
            };
            let next = page.next.map(|after| Begin { after, accounts: count, is_later_part: true });
            Ok(Part { bytes, next })
        }
    };
    streamed::answer(&edge, caller, if csv { CSV } else { "application/json" }, Begin::default(), read).await
}

fn table_at(accounts: &[AccountAtView], begin: &Begin) -> Result<Bytes, Problem> {
    let mut table = Table::new();
    if !begin.is_later_part {
        table.line(COLUMNS_AT)?;
    }
    for account in accounts {
        let AccountAtView { id, asset, posted, held, available, overdraft, version, created_at, updated_at } =
            account;
        let version = version.to_string();
        table.line([&*text_cell(id), asset, posted, held, available, overdraft, &version, created_at, updated_at])?;
    }
    table.into_bytes()
}

/// A part of the object that [`AccountListView`] describes. `end`: the time and the number of accounts, after the last part.
fn json_at(accounts: &[AccountAtView], begin: &Begin, end: Option<(i64, u64)>) -> Result<Bytes, Problem> {
    let unwritten = |reason| {
        tracing::error!(%reason, "an answer could not be written");
        Problem::internal()
    };
    let mut text = Vec::with_capacity(accounts.len() * ACCOUNT_BYTES + 64);
    if !begin.is_later_part {
        text.extend_from_slice(b"{\"data\":[");
    }
    for (index, account) in accounts.iter().enumerate() {
        if index > 0 || begin.accounts > 0 {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, account).map_err(unwritten)?;
    }
    if let Some((at_us, accounts)) = end {
        text.extend_from_slice(b"],");
        let closing = serde_json::to_vec(&ClosingMembers::new(at_us, accounts)).map_err(unwritten)?;
        // Without the brace that opens it: the object was opened by the first part.
        text.extend_from_slice(closing.get(1..).unwrap_or_default());
    }
    Ok(text.into())
}

const COLUMNS: [&str; 13] = [
    "id",
    "asset",
    "status",
    "posted",
    "held",
    "available",
    "overdraft",
    "max_balance",
    "version",
    "shard",
    "metadata",
    "created_at",
    "updated_at",
];

/// All accounts as they are when their part is read, as CSV.
async fn whole(
    edge: Edge,
    caller: Caller,
    prefix: AccountPrefix,
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    let deadlines = PartDeadlines::of(deadline);
    let reader = edge.clone();
    let read = move |begin: Begin| {
        let (edge, prefix) = (reader.clone(), prefix.clone());
        async move {
            let page = edge.core.list_accounts(&prefix, &begin.after, MAX_PAGE_SIZE, deadlines.next()).await?;
            let after = page.accounts.last().filter(|_| page.has_more).map(|last| last.value.id.clone());
            let mut table = Table::new();
            if !begin.is_later_part {
                table.line(COLUMNS)?;
            }
            for account in page.accounts {
                let AccountView {
                    id,
                    asset,
                    status,
                    posted,
                    held,
                    available,
                    overdraft,
                    max_balance,
                    version,
                    shard,
                    metadata,
                    created_at,
                    updated_at,
                    ..
                } = AccountView::new(account, &edge.assets)?;
                let metadata = metadata_cell(&metadata);
                let max_balance = max_balance.unwrap_or_default();
                table.line([
                    &*text_cell(&id),
                    &asset,
                    status,
                    &posted,
                    &held,
                    &available,
                    &overdraft,
                    &max_balance,
                    &version.to_string(),
                    &*text_cell(&shard),
                    &metadata,
                    &created_at,
                    &updated_at,
                ])?;
            }
            let next = after.map(|after| Begin { after, is_later_part: true, ..Begin::default() });
            Ok(Part { bytes: table.into_bytes()?, next })
        }
    };
    streamed::answer(&edge, caller, CSV, Begin::default(), read).await
}

// === answers ===

/// A page of accounts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountPage)]
pub struct AccountPageView {
    pub data: Vec<AccountView>,
    pub has_more: bool,
    /// For the parameter `cursor`, with the same `prefix`; null at the end.
    #[schema(required, min_length = 1)]
    pub next_cursor: Option<String>,
}

/// What an account held at a time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountAt)]
pub struct AccountAtView {
    #[schema(value_type = schemas::AccountId)]
    pub id: String,
    #[schema(value_type = schemas::Asset)]
    pub asset: String,
    #[schema(value_type = schemas::Amount)]
    pub posted: String,
    #[schema(value_type = schemas::Amount)]
    pub held: String,
    #[schema(value_type = schemas::Available)]
    pub available: String,
    /// In force then.
    #[schema(value_type = schemas::Overdraft)]
    pub overdraft: String,
    /// Of its newest entry then.
    #[schema(minimum = 1)]
    pub version: i64,
    #[schema(value_type = schemas::Time)]
    pub created_at: String,
    /// When its newest entry then was written.
    #[schema(value_type = schemas::Time)]
    pub updated_at: String,
}

/// All accounts as of a time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountsAt)]
#[allow(dead_code, reason = "it describes an answer that is written part by part")]
pub struct AccountsAtView {
    pub data: Vec<AccountAtView>,
    /// The time that was asked for; the time of the request where that one is still to come.
    #[schema(value_type = schemas::Time)]
    pub at: String,
    /// How many accounts `data` has.
    pub accounts: u64,
}

/// The members of [`AccountsAtView`] after `data`. An answer that has them is whole.
#[derive(Debug, Serialize)]
pub struct ClosingMembers {
    pub at: String,
    pub accounts: u64,
}

/// A page of accounts as they are, or all accounts as of a time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountList)]
#[serde(untagged)]
#[allow(dead_code, reason = "it describes two answers")]
pub enum AccountListView {
    Page(AccountPageView),
    At(AccountsAtView),
}

impl ClosingMembers {
    pub fn new(at_us: i64, accounts: u64) -> Self {
        Self { at: format_rfc3339(at_us), accounts }
    }
}

impl AccountAtView {
    pub fn new(account: wire::AccountAt, assets: &AssetRegistry) -> Result<Self, Problem> {
        let asset = wire::convert::asset(&account.asset).map_err(nonsense)?;
        let scale = Scale::of(asset, assets)?;
        let overdraft = limit(account.overdraft, "account_at.overdraft")?;
        Ok(Self {
            id: account.id,
            asset: account.asset,
            posted: scale.amount(account.posted),
            held: scale.amount(account.held),
            available: scale.available(account.posted, account.held, overdraft),
            overdraft: scale.limit_or_unlimited(overdraft),
            version: account.version,
            created_at: format_rfc3339(account.created_at_us),
            updated_at: format_rfc3339(account.updated_at_us),
        })
    }
}

impl AccountPageView {
    pub fn new(page: AccountPage, prefix: &AccountPrefix, assets: &AssetRegistry) -> Result<Self, Problem> {
        let last = page.accounts.last().filter(|_| page.has_more);
        let next_cursor = last.map(|last| AccountCursor { after: last.value.id.clone() }.text(prefix));
        let data =
            page.accounts.into_iter().map(|account| AccountView::new(account, assets)).collect::<Result<_, _>>()?;
        Ok(Self { data, has_more: page.has_more, next_cursor })
    }
}

/// Where a page ended: the last id, and how much of it is the prefix that was asked for. Opaque to clients, so that it may
/// change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountCursor {
    pub after: String,
}

impl AccountCursor {
    const PREFIX: &str = "a";
    /// Digits of the length of the prefix, in hexadecimal.
    const LENGTH_DIGITS: usize = 2;

    /// `None`: the text is no cursor, or one of another prefix.
    pub fn parse(text: &str, prefix: &AccountPrefix) -> Option<Self> {
        let (length, id) = text.strip_prefix(Self::PREFIX)?.split_at_checked(Self::LENGTH_DIGITS)?;
        if length != Self::length_of(prefix) {
            return None;
        }
        let id = AccountId::client(&from_hex(id)?).ok()?;
        prefix.begins(id.as_str()).then(|| Self { after: id.as_str().to_owned() })
    }

    fn text(&self, prefix: &AccountPrefix) -> String {
        let mut text = format!("{}{}", Self::PREFIX, Self::length_of(prefix));
        for byte in self.after.bytes() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn length_of(prefix: &AccountPrefix) -> String {
        format!("{:0width$x}", prefix.as_str().len(), width = Self::LENGTH_DIGITS)
    }
}

/// Hexadecimal digits, because the braces of ids would have to be escaped in a URL.
fn from_hex(text: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let bytes =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<Vec<u8>>>()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> AccountPrefix {
        AccountPrefix::new(text).unwrap()
    }

    #[test]
    fn cursors_come_back_with_their_prefix_and_no_other() {
        let long = "x".repeat(128);
        for (begin, id) in [("", "alice"), ("a", "alice"), ("{u1}:", "{u1}:wallet"), (&long, &long)] {
            let cursor = AccountCursor { after: id.to_owned() };
            let text = cursor.text(&prefix(begin));
            assert_eq!(AccountCursor::parse(&text, &prefix(begin)), Some(cursor), "{text}");
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{text}");
            for other in ["al", "alicf", "b", "{u1}:w", "@"] {
                assert_eq!(AccountCursor::parse(&text, &prefix(other)), None, "{text} under {other}");
            }
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let good = AccountCursor { after: "alice".to_owned() }.text(&prefix(""));
        for bad in
            ["", "a", "a0", "a00", "a000", "v1", "a00zz", "a00á", "aá", "a00ff", "a0040", &good[..good.len() - 1]]
        {
            assert_eq!(AccountCursor::parse(bad, &prefix("")), None, "{bad:?}");
        }
    }
}
