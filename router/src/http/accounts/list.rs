//! Listing accounts over all shards: page by page, as of a time, or as CSV. The last two are whole, and sent while they are read.

use axum::{extract::State, response::Response};
use bytes::Bytes;
use http::StatusCode;
use ledger::AccountPrefix;

use crate::http::{
    Edge,
    access::Access,
    context::RequestDeadline,
    csv_table::{self, CSV, Table},
    openapi::values,
    page,
    problem::Problem,
    query::Parameters,
    shares::Caller,
    streamed::{self, Part, PartDeadlines, Recipient},
    view::{
        self,
        account::AccountView,
        account_page::{AccountAtView, AccountCursor, AccountListView, AccountPageView, ClosingMembers},
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
        ("prefix" = inline(values::AccountPrefix), Query, description = "Only accounts whose ids begin so; `{tag}` is written `%7Btag%7D`."),
        ("at" = values::Time, Query, description = "All accounts as of this time, entries of that very microsecond included; without `limit` and `cursor`."),
        ("limit" = inline(values::PageSize), Query, description = "Accounts a page."),
        ("cursor" = inline(values::PageCursor), Query, description = "`next_cursor` of the page before, with the same `prefix`."),
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
    let prefix = page::prefix(&mut parameters).map(|prefix| access.read_prefix(prefix)).transpose()?;
    let at_us = page::instant(&mut parameters);
    let csv = recipient.csv;
    if csv || at_us.is_some() {
        recipient.needs_http_1_1()?;
        page::refuse_pages(&mut parameters, WHOLE);
    }
    let limit = page::limit(&mut parameters);
    let cursor =
        parameters.take_as("cursor", page::CURSOR_EXPECTED, |text| AccountCursor::parse(text, prefix.as_ref()?));
    parameters.finish()?;
    let prefix = prefix.unwrap_or_default();

    match at_us {
        Some(at_us) => {
            page::settled(at_us).await;
            whole_at(edge, recipient.caller, prefix, at_us, csv, deadline).await
        }
        None if csv => whole(edge, recipient.caller, prefix, deadline).await,
        None => {
            let after = cursor.map_or_else(String::new, |cursor| cursor.after);
            let found = edge.core.list_accounts(&prefix, &after, limit, deadline.0).await?;
            let view = AccountPageView::new(found, &prefix, &edge.rulebook.assets)?;
            Ok(view::json_with_capacity(StatusCode::OK, &view, view.data.len() * ACCOUNT_BYTES + 64))
        }
    }
}

/// Where a part of a whole list begins.
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
            let accounts =
                page.accounts.into_iter().map(|account| AccountAtView::new(account, &edge.rulebook.assets));
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
        table.line([
            &*csv_table::text(id),
            asset,
            posted,
            held,
            available,
            overdraft,
            &version,
            created_at,
            updated_at,
        ])?;
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
            let page = edge.core.list_accounts(&prefix, &begin.after, page::MAX_LIMIT, deadlines.next()).await?;
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
                } = AccountView::new(account, &edge.rulebook.assets)?;
                let metadata = view::metadata_cell(&metadata);
                let max_balance = max_balance.unwrap_or_default();
                table.line([
                    &*csv_table::text(&id),
                    &asset,
                    status,
                    &posted,
                    &held,
                    &available,
                    &overdraft,
                    &max_balance,
                    &version.to_string(),
                    &*csv_table::text(&shard),
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
