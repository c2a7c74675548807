//! Journal entries and their pages.

use std::collections::BTreeMap;

use ledger::{AccountId, AssetRegistry, EntryKind};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use twox_hash::XxHash3_64;
use utoipa::ToSchema;
use uuid::Uuid;
use wire::convert::{BadMessage, id_from_wire};

use super::{Scale, metadata, nonsense};
use crate::http::{access::Access, openapi::values, problem::Problem};

/// One line of an account's journal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entry)]
pub struct EntryView {
    /// Grows in commit order within a shard. Both entries of one transfer may have the same position; the account and the
    /// version identify an entry.
    #[serde(serialize_with = "super::position")]
    #[schema(value_type = values::Position)]
    pub position: i64,
    /// The account's version after this entry.
    #[schema(minimum = 1)]
    pub version: i64,
    #[schema(value_type = values::EntryKind)]
    pub kind: &'static str,
    /// Null where no transfer caused the entry.
    #[schema(required)]
    pub transfer_id: Option<Uuid>,
    /// The hold behind a `held`, `released` or `expired` entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = values::TransferId, required = false)]
    pub hold_id: Option<Uuid>,
    /// The account on the other side; the system's own begin with `@`.
    #[schema(required, min_length = 1)]
    pub counterparty: Option<String>,
    /// Signed change of `posted`.
    #[schema(value_type = values::Amount)]
    pub amount: String,
    /// After this entry.
    #[schema(value_type = values::Amount)]
    pub posted: String,
    /// After this entry.
    #[schema(value_type = values::Amount)]
    pub held: String,
    #[schema(value_type = values::Time)]
    pub created_at: String,
    /// The name of the API key that ordered the transfer, the hold, its end or the change of the account; shown to keys that may read the debit account, absent without keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = values::KeyName, required = false)]
    pub ordered_by: Option<String>,
    /// Of the transfer or hold, with `include=metadata` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = values::Metadata, required = false)]
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

/// Where a page ended: the version of its last entry. Opaque to clients, so that it may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub i64);

impl Cursor {
    const PREFIX: &str = "v";

    /// A cursor of another statement is none.
    pub fn parse(text: &str, statement: &Statement) -> Option<Self> {
        Self::parse_marked(text, &statement.mark())
    }

    /// The same for a list with this mark.
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

/// What all pages of a statement have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub account: AccountId,
    pub ascending: bool,
    /// Half-open window in microseconds; 0: open.
    pub from_us: i64,
    pub to_us: i64,
}

impl Statement {
    /// What a shard is asked for, of the whole statement.
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
