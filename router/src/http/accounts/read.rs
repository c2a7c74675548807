//! Reading accounts, their journals and their balances at a time.

use std::collections::HashMap;

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{AccountId, TransferKey};
use telemetry::clock;
use tokio::time::Instant;
use wire::convert::{BadMessage, account_id, id_from_wire};

use super::no_such_account;
use crate::http::{
    Edge,
    access::Access,
    context::RequestDeadline,
    csv_table::{self, CSV, Table},
    history,
    openapi::values,
    page,
    path::AccountPath,
    problem::Problem,
    query::{NoParameters, Parameters},
    shares::Caller,
    streamed::{self, Part, PartDeadlines, Recipient},
    view::{
        self,
        account::{AccountView, BalanceView},
        entry::{Cursor, EntryPageView, Statement},
    },
};

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
    let account = edge.core.account(&id, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
    Ok(view::json(StatusCode::OK, &AccountView::new(account, &edge.rulebook.assets)?))
}

/// Read an account's journal.
///
/// Newest first unless `order=asc`. Entries never change, so a page that was read stays as it is. With `Accept: text/csv` the answer is a
/// table of all entries in the window, sent while it is read; `X-Request-Timeout-Ms` counts for each part, and if a part fails, the
/// connection breaks off before the end of the body.
#[utoipa::path(
    get, path = "/v1/accounts/{id}/entries", operation_id = "listEntries", tag = "accounts",
    params(
        ("id" = values::AccountId, Path, description = "The account."),
        ("limit" = inline(values::PageSize), Query, description = "Entries a page."),
        ("cursor" = inline(values::PageCursor), Query, description = "`next_cursor` of the page before."),
        ("order" = inline(values::PageOrder), Query, description = "Newest or oldest first."),
        ("from" = values::Time, Query, description = "Entries at this time or later."),
        ("to" = values::Time, Query, description = "Entries before this time."),
        ("include" = inline(values::Include), Query, description = "`metadata`: with that of the transfers and holds."),
    ),
    responses(
        (status = 200, description = "a page", body = EntryPageView),
    ),
)]
pub async fn entries(
    State(edge): State<Edge>,
    access: Access,
    recipient: Recipient,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let csv = recipient.csv;
    if csv {
        page::refuse_pages(&mut parameters, "not for CSV: the answer has the whole window");
    }
    let limit = page::limit(&mut parameters);
    let statement = history::statement(&mut parameters, id);
    let with_metadata = parameters.take_as("include", "metadata", |text| (text == "metadata").then_some(true));
    let expected = "next_cursor of the page before, of the same account, order and window";
    let cursor = parameters.take_as("cursor", expected, |text| Cursor::parse(text, &statement));
    parameters.finish()?;

    access.check_read(&statement.account, no_such_account)?;
    let request = wire::ListEntriesRequest {
        limit: if csv { page::MAX_LIMIT } else { limit },
        after_version: cursor.map_or(0, |cursor| cursor.0),
        with_metadata: with_metadata.unwrap_or(false),
        ..statement.request()
    };
    if csv {
        recipient.needs_http_1_1()?;
        return table(edge, access, recipient.caller, statement, request, deadline).await;
    }
    let page = page_of_entries(edge.clone(), statement.account.clone(), request, deadline.0).await?;
    let view = EntryPageView::new(page, &statement, &edge.rulebook.assets, &access)?;
    Ok(view::json_with_capacity(StatusCode::OK, &view, view.data.len() * 256 + 64))
}

/// A page, with the metadata that it is to have. That of a transfer from another shard is at the shard of its debit account, which is asked
/// once for the page.
async fn page_of_entries(
    edge: Edge,
    account: AccountId,
    request: wire::ListEntriesRequest,
    deadline: Instant,
) -> Result<wire::EntryPage, Problem> {
    let with_metadata = request.with_metadata;
    let missing = || no_such_account(&account);
    let mut page = edge.core.entries(request, deadline).await?.ok_or_else(missing)?;
    if !with_metadata {
        return Ok(page);
    }
    let lacks = |entry: &wire::Entry| entry.metadata.is_none() && !entry.transfer_id.is_empty();
    let keys = page.entries.iter().filter(|entry| lacks(entry)).map(|entry| {
        let debit = account_id(&entry.counterparty, "entry.counterparty")?;
        Ok(TransferKey { id: id_from_wire(&entry.transfer_id)?, debit })
    });
    let keys = keys.collect::<Result<Vec<_>, BadMessage>>().map_err(view::nonsense)?;
    if keys.is_empty() {
        return Ok(page);
    }
    let found = edge.core.transfers_of(keys, deadline).await?;
    let found: HashMap<(&[u8], &str), &str> = found
        .iter()
        .map(|transfer| &transfer.record)
        .map(|record| ((&*record.id, record.debit.as_str()), record.metadata.as_str()))
        .collect();
    for entry in page.entries.iter_mut().filter(|entry| lacks(entry)) {
        let metadata = found.get(&(&*entry.transfer_id, entry.counterparty.as_str())).ok_or_else(|| {
            tracing::error!(
                position = entry.position,
                "the transfer of an entry does not exist at its debit account's shard"
            );
            Problem::internal()
        })?;
        entry.metadata = Some((*metadata).to_owned());
    }
    Ok(page)
}

const COLUMNS: [&str; 11] = [
    "position",
    "version",
    "kind",
    "transfer_id",
    "hold_id",
    "counterparty",
    "amount",
    "posted",
    "held",
    "created_at",
    "ordered_by",
];

/// All entries of the window as CSV. `request` is that of the first part.
async fn table(
    edge: Edge,
    access: Access,
    caller: Caller,
    statement: Statement,
    request: wire::ListEntriesRequest,
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    // Without an end, an account that is booked faster than the client reads would never come to one. Clocks may differ by a second.
    let to_us = if request.to_us == 0 { clock::now_us() + 2_000_000 } else { request.to_us };
    let request = wire::ListEntriesRequest { to_us, ..request };
    let deadlines = PartDeadlines::of(deadline);
    let reader = edge.clone();
    let read = move |request: wire::ListEntriesRequest| {
        let (edge, access, statement) = (reader.clone(), access.clone(), statement.clone());
        async move {
            let page =
                page_of_entries(edge.clone(), statement.account.clone(), request.clone(), deadlines.next()).await?;
            let last = page.entries.last().filter(|_| page.has_more).map(|entry| entry.version);
            let mut table = Table::new();
            if request.after_version == 0 {
                table.line(COLUMNS.into_iter().chain(request.with_metadata.then_some("metadata")))?;
            }
            for entry in EntryPageView::new(page, &statement, &edge.rulebook.assets, &access)?.data {
                let id = |id: Option<uuid::Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
                let counterparty = entry.counterparty.unwrap_or_default();
                let cells = [
                    entry.position.to_string(),
                    entry.version.to_string(),
                    entry.kind.to_owned(),
                    id(entry.transfer_id),
                    id(entry.hold_id),
                    csv_table::text(&counterparty).into_owned(),
                    entry.amount,
                    entry.posted,
                    entry.held,
                    entry.created_at,
                    csv_table::text(&entry.ordered_by.unwrap_or_default()).into_owned(),
                ];
                let metadata =
                    request.with_metadata.then(|| view::metadata_cell(&entry.metadata.unwrap_or_default()));
                table.line(cells.into_iter().chain(metadata))?;
            }
            let next = last.map(|after_version| wire::ListEntriesRequest { after_version, ..request });
            Ok(Part { bytes: table.into_bytes()?, next })
        }
    };
    streamed::answer(&edge, caller, CSV, request, read).await
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
    let at_us = parameters.take_as("at", page::TIME_EXPECTED, clock::parse_rfc3339);
    parameters.finish()?;
    access.check_read(&id, no_such_account)?;
    // Now is whatever there is: by this machine's clock, what was written a moment ago may be yet to come.
    let until_us = at_us.unwrap_or(i64::MAX);
    let balance = edge.core.balance_at(&id, until_us, deadline.0).await?.ok_or_else(|| no_such_account(&id))?;
    let at_us = at_us.unwrap_or_else(clock::now_us);
    Ok(view::json(StatusCode::OK, &BalanceView::new(id.as_str(), at_us, &balance, &edge.rulebook.assets)?))
}
