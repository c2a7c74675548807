//! An account, its limits, and the prefixes of account ids.

use crate::{
    AssetCode, Metadata, Position,
    id::{AccountId, InvalidAccountId},
};

/// The state of one account: the fold of its legs in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: AccountId,
    pub asset: AssetCode,
    pub status: AccountStatus,
    /// Credits minus debits, in minor units.
    pub posted: i64,
    /// Reserved by open holds, in minor units.
    pub held: i64,
    /// How far below zero `available` funds may take the account.
    pub overdraft: Limit,
    /// What credits may raise `posted` to.
    pub max_balance: Limit,
    /// Grows by one with each leg of the account.
    pub version: i64,
    /// The newest booking with a leg of the account.
    pub head: Position,
    /// The booking that opened the account.
    pub opened: Position,
    pub metadata: Metadata,
    /// Microseconds since the epoch.
    pub created_at_us: i64,
    pub updated_at_us: i64,
}

impl Account {
    /// An account that holds no more than this is not filled by credits that come to no more than this together.
    pub const HALF_FULL: i64 = i64::MAX / 2;

    /// What a debit may take: posted − held + overdraft. `None`: without limit.
    pub fn available(&self) -> Option<i128> {
        available(self.posted, self.held, self.overdraft)
    }
}

/// posted − held + overdraft; `None` when the overdraft has no limit.
pub fn available(posted: i64, held: i64, overdraft: Limit) -> Option<i128> {
    match overdraft {
        Limit::Unlimited => None,
        Limit::AtMost(limit) => Some(i128::from(posted) - i128::from(held) + i128::from(limit)),
    }
}

/// A bound in minor units, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Unlimited,
    AtMost(i64),
}

impl Limit {
    pub const ZERO: Self = Self::AtMost(0);

    /// As a nullable column: NULL is unlimited.
    pub fn to_nullable(self) -> Option<i64> {
        match self {
            Self::Unlimited => None,
            Self::AtMost(minor) => Some(minor),
        }
    }

    pub fn from_nullable(value: Option<i64>) -> Self {
        value.map_or(Self::Unlimited, Self::AtMost)
    }
}

/// Frozen refuses debits; closed refuses both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AccountStatus {
    Open = 1,
    Frozen = 2,
    Closed = 3,
}

impl AccountStatus {
    pub const ALL: [Self; 3] = [Self::Open, Self::Frozen, Self::Closed];

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.code() == code)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Frozen => "frozen",
            Self::Closed => "closed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

/// The beginning of account ids: 0 to 128 of their characters. The empty one is the beginning of every id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountPrefix(String);

impl AccountPrefix {
    /// Some text that account ids may begin with. Whatever is not empty and begins an id is one itself.
    pub fn new(text: &str) -> Result<Self, InvalidAccountId> {
        if !text.is_empty() {
            AccountId::any(text)?;
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn begins(&self, id: &str) -> bool {
        id.starts_with(&self.0)
    }

    /// The first text after every id that begins so, in the order of bytes: ids that begin so are a range.
    pub fn end(&self) -> String {
        // The characters of ids are ASCII and none is the last of it, so that each has a successor; that of all ids together
        // is the character beyond theirs.
        let mut end = self.0.clone();
        let last = end.pop().map_or(Self::BEYOND, |last| char::from_u32(u32::from(last) + 1).unwrap_or(Self::BEYOND));
        end.push(last);
        end
    }

    /// After each character of an id.
    const BEYOND: char = '\u{7f}';
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_of_the_characters_of_ids() {
        for good in ["", "a", "{user42}:", "@", "Z._:-{}@", &"a".repeat(128)] {
            assert_eq!(AccountPrefix::new(good).unwrap().as_str(), good);
        }
        for bad in [" ", "a b", "a%", "á", "a\0", &"a".repeat(129)] {
            assert!(AccountPrefix::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_begins_so_is_a_range() {
        let ids = ["-", "0", "@x", "A", "Z", "a", "aZ", "a{", "a}", "a}}", "b", "zz", "{", "{t}:1", "}", "}}}"];
        for prefix in ["", "a", "a}", "}", "{t}:", "z", "nothing"] {
            let prefix = AccountPrefix::new(prefix).unwrap();
            for id in ids {
                let within = id >= prefix.as_str() && id < prefix.end().as_str();
                assert_eq!(within, prefix.begins(id), "{id} and {prefix:?}");
            }
        }
    }
}
