//! Pages of accounts.

use std::fmt::Write as _;

use ledger::{AccountId, AccountPrefix, AssetRegistry};
use serde::Serialize;
use utoipa::ToSchema;

use super::account::AccountView;
use crate::{http::problem::Problem, service::AccountPage};

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
