//! Journal entries and their pages.

use ledger::{AssetRegistry, journal::EntryKind};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;
use uuid::Uuid;
use wire::convert::{BadMessage, id_from_wire};

use super::{Scale, nonsense};
use crate::http::{openapi::values, problem::Problem};

/// One line of an account's journal.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entry)]
pub struct EntryView {
    /// Unique over all shards; grows in commit order within one.
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
    pub fn new(page: wire::EntryPage, assets: &AssetRegistry) -> Result<Self, Problem> {
        let asset = wire::convert::asset(&page.asset).map_err(nonsense)?;
        let scale = Scale::of(asset, assets)?;
        let next_cursor =
            page.entries.last().filter(|_| page.has_more).map(|entry| Cursor(entry.version).to_string());
        let data = page.entries.into_iter().map(|entry| EntryView::new(entry, scale)).collect::<Result<_, _>>()?;
        Ok(Self { data, has_more: page.has_more, next_cursor })
    }
}

impl EntryView {
    fn new(entry: wire::Entry, scale: Scale) -> Result<Self, Problem> {
        let kind = u8::try_from(entry.kind).ok().and_then(EntryKind::from_code).ok_or_else(|| {
            nonsense(BadMessage::Bad { field: "entry.kind", reason: format!("{} is no kind", entry.kind) })
        })?;
        let cause = match entry.transfer_id.is_empty() {
            true => None,
            false => Some(id_from_wire(&entry.transfer_id).map_err(nonsense)?.0),
        };
        let (hold_id, transfer_id) = if kind.is_of_hold() { (cause, None) } else { (None, cause) };
        Ok(Self {
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
        })
    }
}

/// Where a page ended: the version of its last entry. Opaque to clients, so that it may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub i64);

impl Cursor {
    const PREFIX: &str = "v";

    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?;
        // from_str_radix also takes a sign.
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        i64::from_str_radix(digits, 16).ok().filter(|version| hex && *version > 0).map(Self)
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:x}", Self::PREFIX, self.0)
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
            let view = EntryView::new(entry, scale).unwrap();
            let expected = if kind.is_of_hold() { (Some(id), None) } else { (None, Some(id)) };
            assert_eq!((view.hold_id, view.transfer_id), expected, "{kind:?}");
        }
    }

    #[test]
    fn cursors_come_back() {
        for version in [1, 64, i64::MAX] {
            assert_eq!(Cursor::parse(&Cursor(version).to_string()), Some(Cursor(version)));
        }
        for bad in ["", "v", "v0", "v-1", "v+1", "1", "vg", "v8000000000000000"] {
            assert_eq!(Cursor::parse(bad), None, "{bad:?}");
        }
    }
}
