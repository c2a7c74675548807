//! Pages of accounts.

use std::fmt::Write as _;

use ledger::{AccountId, AccountPrefix, AssetRegistry};
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;

use super::{Scale, account::AccountView, limit, nonsense};
use crate::{
    core::reply::AccountPage,
    http::{openapi::values, problem::Problem},
};

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
    #[schema(value_type = values::AccountId)]
    pub id: String,
    #[schema(value_type = values::Asset)]
    pub asset: String,
    #[schema(value_type = values::Amount)]
    pub posted: String,
    #[schema(value_type = values::Amount)]
    pub held: String,
    #[schema(value_type = values::Available)]
    pub available: String,
    /// In force then.
    #[schema(value_type = values::Overdraft)]
    pub overdraft: String,
    /// Of its newest entry then.
    #[schema(minimum = 1)]
    pub version: i64,
    #[schema(value_type = values::Time)]
    pub created_at: String,
    /// When its newest entry then was written.
    #[schema(value_type = values::Time)]
    pub updated_at: String,
}

/// All accounts as of a time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountsAt)]
#[allow(dead_code, reason = "it describes an answer that is written part by part")]
pub struct AccountsAtView {
    pub data: Vec<AccountAtView>,
    /// The time that was asked for; the time of the request where that one is still to come.
    #[schema(value_type = values::Time)]
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
    /// Of the prefix' length, in hexadecimal.
    const LENGTH_DIGITS: usize = 2;

    /// A cursor of another prefix is none.
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
