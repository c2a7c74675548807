//! Identifiers: accounts, transfers, journal positions.

use std::{fmt, sync::Arc};

use uuid::Uuid;

/// An account id: 1 to 128 characters of `A-Z a-z 0-9 . _ : - { } @`.
///
/// Ids that begin with `@` belong to the system (in-transit accounts); [`AccountId::client`] refuses them, and `.` and `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(Arc<str>);

/// Why a string is no account id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAccountId {
    #[error("an account id has 1 to 128 characters")]
    Length,
    #[error("an account id consists of A-Z a-z 0-9 . _ : - {{ }} @ only")]
    Character,
    #[error("account ids that begin with @ are reserved for the system")]
    Reserved,
    #[error("`.` and `..` are no account ids: no client could ask for them, because they mean another path in a URL")]
    Dots,
}

impl AccountId {
    /// Longest id, in characters (all of them ASCII).
    pub const MAX_LEN: usize = 128;

    /// An id as a client may name it: well-formed and not reserved.
    pub fn client(text: &str) -> Result<Self, InvalidAccountId> {
        if text.starts_with('@') {
            return Err(InvalidAccountId::Reserved);
        }
        if matches!(text, "." | "..") {
            return Err(InvalidAccountId::Dots);
        }
        Self::any(text)
    }

    /// Any well-formed id, the system's included.
    pub fn any(text: &str) -> Result<Self, InvalidAccountId> {
        if text.is_empty() || text.len() > Self::MAX_LEN {
            return Err(InvalidAccountId::Length);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-{}@".contains(&b);
        if !text.bytes().all(allowed) {
            return Err(InvalidAccountId::Character);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The clearing account of a shard for one asset. Each shard has its own; it never moves.
    pub fn in_transit(asset: crate::AssetCode) -> Self {
        Self(Arc::from(format!("@in-transit:{asset}")))
    }

    /// What a [`Marker`](crate::BookingKind::Marker) names as its account. There is no such account, and no client can open it.
    pub fn marker() -> Self {
        Self(Arc::from("@marker"))
    }

    pub fn is_system(&self) -> bool {
        self.0.starts_with('@')
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for AccountId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The name of an API key, as the journal records who ordered something: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName(Arc<str>);

/// Why a text is no name of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key's name is 1 to {max} characters of A-Z a-z 0-9 . _ -", max = KeyName::MAX_LEN)]
pub struct InvalidKeyName;

impl KeyName {
    /// Longest name, in characters (all of them ASCII). It bounds what a name adds to each row of the journal.
    pub const MAX_LEN: usize = 64;

    /// # Errors
    /// When the text has another length or other characters.
    pub fn new(text: &str) -> Result<Self, InvalidKeyName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(InvalidKeyName)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The client's id of a transfer or a hold. On its own it is not unique: see [`TransferKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransferId(pub Uuid);

/// The identity of a transfer: an id belongs to its debit account, so that no answer depends on which shard an
/// account lives on and a slot move can never collide.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransferKey {
    pub id: TransferId,
    pub debit: AccountId,
}

/// The identity of a hold. Holds and transfers are counted apart: one of each may have the same key.
pub type HoldKey = TransferKey;

/// A place in the journal, unique over all shards: 12 bits of shard number, then 51 bits counted by that shard's lane
/// in commit order. Zero means "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Position(pub i64);

impl Position {
    pub const NONE: Self = Self(0);
    /// Shard numbers are below this.
    pub const MAX_SHARDS: u16 = 1 << 12;
    /// Bits that count the bookings of one shard.
    pub const SEQUENCE_BITS: u32 = 51;

    /// The first position a shard hands out.
    pub fn first_of(shard_number: u16) -> Self {
        assert!(shard_number < Self::MAX_SHARDS, "INV-8: shard number {shard_number} does not fit a position");
        Self((i64::from(shard_number) << Self::SEQUENCE_BITS) + 1)
    }

    /// The last position that the shard of this position can hand out.
    pub fn last_of_range(self) -> Self {
        Self(self.0 | ((1 << Self::SEQUENCE_BITS) - 1))
    }

    pub fn shard_number(self) -> u16 {
        u16::try_from(self.0 >> Self::SEQUENCE_BITS).unwrap_or(u16::MAX)
    }

    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        assert!(AccountId::client("alice").is_ok());
        assert!(AccountId::client("{user42}:wallet@x-1._").is_ok());
        assert_eq!(AccountId::client(""), Err(InvalidAccountId::Length));
        assert_eq!(AccountId::client(&"a".repeat(129)), Err(InvalidAccountId::Length));
        assert!(AccountId::client(&"a".repeat(128)).is_ok());
        assert_eq!(AccountId::client("@in-transit:USD"), Err(InvalidAccountId::Reserved));
        for bad in ["a b", "a\0", "á", "a/b", "a\n", "a%"] {
            assert_eq!(AccountId::client(bad), Err(InvalidAccountId::Character), "{bad:?}");
        }
    }

    #[test]
    fn positions_name_their_shard() {
        for shard in [0, 1, 999, Position::MAX_SHARDS - 1] {
            let first = Position::first_of(shard);
            assert!(first.0 > 0);
            assert_eq!(first.shard_number(), shard);
            assert_eq!(Position(first.0 + (1 << 50)).shard_number(), shard);
            let last = first.last_of_range();
            assert_eq!(last.shard_number(), shard);
            assert_eq!(last.0 - first.0 + 1, (1 << Position::SEQUENCE_BITS) - 1, "positions of one shard");
        }
    }
}
