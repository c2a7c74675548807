//! `/v1/accounts/{id}/entries`: an account's journal, page by page or as CSV, and the statement and cursors of its pages.

use std::collections::{BTreeMap, HashMap};

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{AccountId, AssetRegistry, EntryKind, TransferKey};
use serde::Serialize;
use telemetry::clock::{self, format_rfc3339};
use tokio::time::Instant;
use twox_hash::XxHash3_64;
use utoipa::ToSchema;
use uuid::Uuid;
use wire::convert::{BadMessage, account_id, id_from_wire};

use super::{
    Edge,
    access::Access,
    accounts::no_such_account,
    admission::Caller,
    answer::{CSV, Scale, Table, json_with_capacity, metadata, metadata_cell, nonsense, text_cell},
    context::RequestDeadline,
    parameters::{self, AccountPath, Parameters},
    problem::Problem,
    schemas::{self, MAX_PAGE_SIZE},
    streamed::{self, Part, PartDeadlines, Recipient},
};

/// Read an account's journal.
///
/// Newest first unless `order=asc`. Entries never change, so a page that was read stays as it is. With `Accept: text/csv` the answer is a
/// table of all entries in the window, sent while it is read; `X-Request-Timeout-Ms` counts for each part, and if a part fails, the
/// connection breaks off before the end of the body.
#[utoipa::path(
    get, path = "/v1/accounts/{id}/entries", operation_id = "listEntries", tag = "accounts",
    params(
        ("id" = schemas::AccountId, Path, description = "The account."),
        ("limit" = inline(schemas::PageSize), Query, description = "Entries a page."),
        ("cursor" = inline(schemas::PageCursor), Query, description = "`next_cursor` of the page before."),
        ("order" = inline(schemas::PageOrder), Query, description = "Newest or oldest first."),
        ("from" = schemas::Time, Query, description = "Entries at this time or later."),
        ("to" = schemas::Time, Query, description = "Entries before this time."),
        ("include" = inline(schemas::Include), Query, description = "`metadata`: with that of the transfers and holds."),
    ),
    responses(
        (status = 200, description = "a page", body = EntryPageView),
    ),
)]
pub async fn list(
    State(edge): State<Edge>,
    access: Access,
    recipient: Recipient,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let csv = recipient.csv;
    if csv {
        parameters::refuse_pages(&mut parameters, "not for CSV: the answer has the whole window");
    }
    let limit = parameters::limit(&mut parameters);
    let statement = Statement::take(&mut parameters, id);
    let with_metadata = parameters.take_as("include", "metadata", |text| (text == "metadata").then_some(true));
    let expected = "next_cursor of the page before, of the same account, order and window";
    let cursor = parameters.take_as("cursor", expected, |text| Cursor::parse(text, &statement));
    parameters.finish()?;

    access.check_read(&statement.account, no_such_account)?;
    let request = wire::ListEntriesRequest {
        limit: if csv { MAX_PAGE_SIZE } else { limit },
        after_version: cursor.map_or(0, |cursor| cursor.0),
        with_metadata: with_metadata.unwrap_or(false),
        ..statement.request()
    };
    if csv {
        recipient.needs_http_1_1()?;
        return whole_table(edge, access, recipient.caller, statement, request, deadline).await;
    }
    let page = page_of_entries(edge.clone(), statement.account.clone(), request, deadline.0).await?;
    let view = EntryPageView::new(page, &statement, &edge.assets, &access)?;
    Ok(json_with_capacity(StatusCode::OK, &view, view.data.len() * 256 + 64))
}

/// A page, with metadata if the request asks for it. The metadata of a transfer from another shard is at the shard of its debit account, which
/// is asked once for the page.
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
    let keys = keys.collect::<Result<Vec<_>, BadMessage>>().map_err(nonsense)?;
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
async fn whole_table(
    edge: Edge,
    access: Access,
    caller: Caller,
    statement: Statement,
    request: wire::ListEntriesRequest,
    deadline: RequestDeadline,
) -> Result<Response, Problem> {
    // Without an end, the answer would never end for an account that is booked faster than the client reads. Clocks may differ by a second.
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
            for entry in EntryPageView::new(page, &statement, &edge.assets, &access)?.data {
                let id = |id: Option<uuid::Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
                let counterparty = entry.counterparty.unwrap_or_default();
                let cells = [
                    entry.position.to_string(),
                    entry.version.to_string(),
                    entry.kind.to_owned(),
                    id(entry.transfer_id),
                    id(entry.hold_id),
                    text_cell(&counterparty).into_owned(),
                    entry.amount,
                    entry.posted,
                    entry.held,
                    entry.created_at,
                    text_cell(&entry.ordered_by.unwrap_or_default()).into_owned(),
                ];
                let metadata = request.with_metadata.then(|| metadata_cell(&entry.metadata.unwrap_or_default()));
                table.line(cells.into_iter().chain(metadata))?;
            }
            let next = last.map(|after_version| wire::ListEntriesRequest { after_version, ..request });
            Ok(Part { bytes: table.into_bytes()?, next })
        }
    };
    streamed::answer(&edge, caller, CSV, request, read).await
}

// === answers ===

/// One line of an account's journal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entry)]
pub struct EntryView {
    /// Grows in commit order within a shard. Both entries of one transfer may have the same position; the account and the
    /// version identify an entry.
    #[serde(serialize_with = "super::answer::position")]
    #[schema(value_type = schemas::Position)]
    pub position: i64,
    /// The account's version after this entry.
    #[schema(minimum = 1)]
    pub version: i64,
    #[schema(value_type = schemas::EntryKind)]
    pub kind: &'static str,
    /// Null where no transfer caused the entry.
    #[schema(required)]
    pub transfer_id: Option<Uuid>,
    /// The hold behind a `held`, `released` or `expired` entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::TransferId, required = false)]
    pub hold_id: Option<Uuid>,
    /// The account on the other side; the system's own begin with `@`.
    #[schema(required, min_length = 1)]
    pub counterparty: Option<String>,
    /// Signed change of `posted`.
    #[schema(value_type = schemas::Amount)]
    pub amount: String,
    /// After this entry.
    #[schema(value_type = schemas::Amount)]
    pub posted: String,
    /// After this entry.
    #[schema(value_type = schemas::Amount)]
    pub held: String,
    #[schema(value_type = schemas::Time)]
    pub created_at: String,
    /// The name of the API key that ordered the transfer, the hold, its end or the change of the account; shown to keys that may read the debit account, absent without keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::KeyName, required = false)]
    pub ordered_by: Option<String>,
    /// Of the transfer or hold, with `include=metadata` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = schemas::Metadata, required = false)]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A page of entries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EntryPage)]
pub struct EntryPageView {
    pub data: Vec<EntryView>,
    pub has_more: bool,
    /// For the parameter `cursor`; null at the end.
    #[schema(required, min_length = 1)]
    pub next_cursor: Option<String>,
}

impl EntryPageView {
    /// A payee does not see the names of its payers' keys unless `access` may read the payers.
    pub fn new(
        page: wire::EntryPage,
        statement: &Statement,
        assets: &AssetRegistry,
        access: &Access,
    ) -> Result<Self, Problem> {
        let asset = wire::convert::asset(&page.asset).map_err(nonsense)?;
        let scale = Scale::of(asset, assets)?;
        let next_cursor =
            page.entries.last().filter(|_| page.has_more).map(|entry| Cursor(entry.version).text(statement));
        let data =
            page.entries.into_iter().map(|entry| EntryView::new(entry, scale, access)).collect::<Result<_, _>>()?;
        Ok(Self { data, has_more: page.has_more, next_cursor })
    }
}

impl EntryView {
    fn new(entry: wire::Entry, scale: Scale, access: &Access) -> Result<Self, Problem> {
        let kind = u8::try_from(entry.kind).ok().and_then(EntryKind::from_code).ok_or_else(|| {
            nonsense(BadMessage::Bad { field: "entry.kind", reason: format!("{} is no kind", entry.kind) })
        })?;
        let cause = match entry.transfer_id.is_empty() {
            true => None,
            false => Some(id_from_wire(&entry.transfer_id).map_err(nonsense)?.0),
        };
        let (hold_id, transfer_id) = if kind.is_of_hold() { (cause, None) } else { (None, cause) };
        let is_shown = !entry.is_credit || access.may_read_text(&entry.counterparty);
        Ok(Self {
            ordered_by: Some(entry.ordered_by).filter(|name| is_shown && !name.is_empty()),
            position: entry.position,
            version: entry.version,
            kind: kind.as_str(),
            transfer_id,
            hold_id,
            counterparty: Some(entry.counterparty).filter(|account| !account.is_empty()),
            amount: scale.amount(entry.amount),
            posted: scale.amount(entry.posted),
            held: scale.amount(entry.held),
            created_at: format_rfc3339(entry.created_at_us),
            metadata: entry.metadata.as_deref().map(metadata).transpose()?,
        })
    }
}

// === statements and cursors ===

/// Where a page ended: the version of its last entry. Opaque to clients, so that it may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub i64);

impl Cursor {
    const PREFIX: &str = "v";

    /// `None`: the text is no cursor, or one of another statement.
    pub fn parse(text: &str, statement: &Statement) -> Option<Self> {
        Self::parse_marked(text, &statement.mark())
    }

    /// Parses the cursor of a list with this mark.
    pub fn parse_marked(text: &str, expected: &str) -> Option<Self> {
        let (digits, mark) = text.strip_prefix(Self::PREFIX)?.split_once('-')?;
        // from_str_radix also takes a sign.
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        let version = i64::from_str_radix(digits, 16).ok().filter(|version| hex && *version > 0)?;
        (mark == expected).then_some(Self(version))
    }

    fn text(self, statement: &Statement) -> String {
        self.text_marked(&statement.mark())
    }

    pub fn text_marked(self, mark: &str) -> String {
        format!("{}{:x}-{mark}", Self::PREFIX, self.0)
    }
}

/// A statement of an account: what all of its pages have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub account: AccountId,
    pub ascending: bool,
    /// Half-open window in microseconds; 0: open.
    pub from_us: i64,
    pub to_us: i64,
}

impl Statement {
    /// Takes `order`, `from` and `to`.
    pub fn take(parameters: &mut Parameters, account: AccountId) -> Self {
        let ascending = parameters.take_as("order", "desc or asc", |text| match text {
            "asc" => Some(true),
            "desc" => Some(false),
            _ => None,
        });
        let from_us = parameters.take_as("from", parameters::TIME_EXPECTED, parameters::positive_time);
        let to_us = parameters.take_as("to", parameters::TIME_EXPECTED, parameters::positive_time);
        Self {
            account,
            ascending: ascending.unwrap_or(false),
            from_us: from_us.unwrap_or(0),
            to_us: to_us.unwrap_or(0),
        }
    }

    /// The question to a shard, without the part that differs from page to page.
    pub fn request(&self) -> wire::ListEntriesRequest {
        wire::ListEntriesRequest {
            account: self.account.to_string(),
            ascending: self.ascending,
            from_us: self.from_us,
            to_us: self.to_us,
            ..Default::default()
        }
    }

    /// Tells statements apart: a client that asks for the next page of another one would get entries that look right. Against
    /// mistakes, not against intent. It is the same in every router and every version.
    fn mark(&self) -> String {
        self.mark_with("")
    }

    /// The mark of a list that follows a statement and has more that tells it apart.
    pub fn mark_with(&self, more: &str) -> String {
        let Self { account, ascending, from_us, to_us } = self;
        let hash = XxHash3_64::oneshot(format!("{account} {ascending} {from_us} {to_us}{more}").as_bytes());
        format!("{:08x}", hash >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hold_does_carries_the_hold_and_no_transfer() {
        let scale = Scale::of(ledger::AssetCode::new("USD").unwrap(), &AssetRegistry::with_declared([]).unwrap());
        let scale = scale.unwrap();
        let id = Uuid::from_u128(7);
        for kind in EntryKind::ALL {
            let entry = wire::Entry {
                kind: kind.code().into(),
                transfer_id: id.as_bytes().to_vec().into(),
                held: -500,
                ..Default::default()
            };
            let view = EntryView::new(entry, scale, &Access::Everything).unwrap();
            let expected = if kind.is_of_hold() { (Some(id), None) } else { (None, Some(id)) };
            assert_eq!((view.hold_id, view.transfer_id), expected, "{kind:?}");
        }
    }

    #[test]
    fn cursors_come_back_to_their_statement_and_no_other() {
        let statement =
            Statement { account: AccountId::client("alice").unwrap(), ascending: false, from_us: 0, to_us: 9 };
        // Clients keep cursors through an upgrade.
        assert_eq!(Cursor(10).text(&statement), "va-21b2a223");
        for version in [1, 64, i64::MAX] {
            let text = Cursor(version).text(&statement);
            assert_eq!(Cursor::parse(&text, &statement), Some(Cursor(version)));
            for other in [
                Statement { account: AccountId::client("bob").unwrap(), ..statement.clone() },
                Statement { ascending: true, ..statement.clone() },
                Statement { from_us: 1, ..statement.clone() },
                Statement { to_us: 8, ..statement.clone() },
            ] {
                assert_eq!(Cursor::parse(&text, &other), None, "{other:?}");
            }
        }
        let mark = statement.mark();
        for bad in ["", "v", "v0", "v-1", "v+1", "1", "vg", "v8000000000000000"] {
            assert_eq!(Cursor::parse(bad, &statement), None, "{bad:?}");
            assert_eq!(Cursor::parse(&format!("{bad}-{mark}"), &statement), None, "{bad:?}");
        }
    }
}
