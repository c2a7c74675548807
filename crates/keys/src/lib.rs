//! Keys of the HTTP API: what a key is, how the file of keys is read, and what a key permits.
//!
//! No I/O and no clock: a router reads the file and passes the time. `docs/adr/0015` has the decision. Start at [`Key`].

mod file;
mod permission;
mod secret;

use ledger::KeyName;

pub use self::{
    file::{KeyFileError, KeyTable, MAX_KEYS, MAX_PREFIXES, MAX_SECRETS, file_schema},
    permission::{Prefixes, Role, Roles},
    secret::{Digest, InvalidDigest, Secret},
};

/// Requests a second that one key may send to one router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub requests_per_second: std::num::NonZeroU32,
    /// Requests that may come at once.
    pub burst: std::num::NonZeroU32,
}

/// A digest that stands for a key until it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSecret {
    pub digest: Digest,
    /// Microseconds since 1970 in UTC; `None`: as long as the key.
    pub expires_at_us: Option<i64>,
}

/// What one caller may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Unique in its file; it goes into the log and into the journal.
    pub name: KeyName,
    pub roles: Roles,
    /// Accounts that the key may debit, open and change.
    pub debit: Prefixes,
    /// Accounts that the key may credit.
    pub credit: Prefixes,
    /// Accounts that the key may read.
    pub read: Prefixes,
    pub rate: Option<Rate>,
    /// Microseconds since 1970 in UTC; `None`: never.
    pub expires_at_us: Option<i64>,
    /// One, or two during a rotation.
    pub secrets: Vec<StoredSecret>,
}

impl Key {
    /// Whether a secret of this key that has its own expiry is good at this time.
    fn is_live(&self, secret: &StoredSecret, now_us: i64) -> bool {
        [self.expires_at_us, secret.expires_at_us].into_iter().flatten().all(|expires_at_us| now_us < expires_at_us)
    }
}
