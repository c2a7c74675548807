//! `keys.toml`: taken or refused as a whole. A refusal names its line and never shows a digest.

use std::{collections::HashMap, num::NonZeroU32, sync::Arc};

use ledger::KeyName;
use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;
use telemetry::clock::parse_rfc3339;
use toml::Spanned;

use crate::{Digest, Key, Prefixes, Rate, Role, Roles, StoredSecret};

/// Keys of one file.
pub const MAX_KEYS: usize = 100_000;
/// Prefixes of one list of a key. Each account of a request is compared with them.
pub const MAX_PREFIXES: usize = 64;
/// Secrets of one key: the new one and the one that it replaces.
pub const MAX_SECRETS: usize = 2;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct KeyFileError {
    /// Counted from 1.
    pub line: usize,
    pub reason: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct File {
    /// One table for each key.
    #[serde(default)]
    #[schemars(with = "Vec<FileKey>")]
    key: Vec<Spanned<FileKey>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileKey {
    /// Unique in the file; it goes into the log.
    #[schemars(with = "String")]
    name: Spanned<String>,
    /// Of `read`, `write` and `admin`.
    #[schemars(with = "Vec<String>")]
    roles: Spanned<Vec<Spanned<String>>>,
    /// Accounts that the key may debit, open and change: beginnings of ids, `=ID` for one account, `*` for all.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    debit: Vec<Spanned<String>>,
    /// Accounts that the key may credit.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    credit: Vec<Spanned<String>>,
    /// Accounts that the key may read.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    read: Vec<Spanned<String>>,
    /// Requests that the key may send to one router. Without it, as many as the router takes.
    requests_per_second: Option<NonZeroU32>,
    /// Requests that may come at once. Without it, those of one second.
    #[schemars(with = "Option<NonZeroU32>")]
    burst: Option<Spanned<NonZeroU32>>,
    /// When the key ends, in RFC 3339.
    #[schemars(with = "Option<String>")]
    expires_at: Option<Spanned<String>>,
    /// One secret, or two during a rotation.
    #[schemars(with = "Vec<FileSecret>")]
    secrets: Spanned<Vec<FileSecret>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileSecret {
    /// The SHA-256 of the secret, in hexadecimal digits.
    #[schemars(with = "String")]
    sha256: Spanned<String>,
    /// When this secret ends, in RFC 3339. Without it, with the key.
    #[schemars(with = "Option<String>")]
    expires_at: Option<Spanned<String>>,
}

/// The schema of the file of keys, for the reference of its settings.
pub fn file_schema() -> Schema {
    schema_for!(File)
}

/// The keys of a file, found by a secret.
#[derive(Debug, Default)]
pub struct KeyTable {
    keys: Vec<Arc<Key>>,
    by_digest: HashMap<[u8; 8], Vec<(Digest, usize)>>,
}

/// Where in the text a problem is.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn error(&self, offset: usize, reason: impl Into<String>) -> KeyFileError {
        let before = self.0.get(..offset).unwrap_or(self.0);
        KeyFileError { line: before.matches('\n').count() + 1, reason: reason.into() }
    }

    fn time(&self, text: Option<Spanned<String>>) -> Result<Option<i64>, KeyFileError> {
        let Some(text) = text else { return Ok(None) };
        match parse_rfc3339(text.as_ref()) {
            Some(us) => Ok(Some(us)),
            None => {
                Err(self
                    .error(text.span().start, "expires_at is no time in RFC 3339, such as \"2027-01-31T12:00:00Z\""))
            }
        }
    }

    fn prefixes(&self, list: &str, prefixes: &[Spanned<String>]) -> Result<Prefixes, KeyFileError> {
        if let Some(beyond) = prefixes.get(MAX_PREFIXES) {
            return Err(self.error(beyond.span().start, format!("{list} has more than {MAX_PREFIXES} prefixes")));
        }
        Prefixes::parse(prefixes.iter().map(|prefix| prefix.as_ref().as_str())).map_err(|(index, reason)| {
            let offset = prefixes.get(index).map_or(0, |prefix| prefix.span().start);
            self.error(offset, format!("{list}: the prefix {reason}"))
        })
    }
}

impl KeyTable {
    /// Reads a file.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let lines = Lines(text);
        let file: File = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            lines.error(offset, without_quoted(error.message()))
        })?;
        if let Some(beyond) = file.key.get(MAX_KEYS) {
            return Err(lines.error(beyond.span().start, format!("more than {MAX_KEYS} keys")));
        }
        let mut table = Self::default();
        let mut names = HashMap::new();
        for entry in file.key {
            let offset = entry.span().start;
            let (key, digests) = key(&lines, entry.into_inner())?;
            if names.insert(key.name.clone(), ()).is_some() {
                return Err(lines.error(offset, format!("a second key has the name {}", key.name)));
            }
            let index = table.keys.len();
            for (digest, offset) in digests {
                let alike = table.by_digest.entry(digest.beginning()).or_default();
                if alike.iter().any(|(other, _)| *other == digest) {
                    return Err(lines.error(offset, format!("the sha256 of {} occurs twice in the file", key.name)));
                }
                alike.push((digest, index));
            }
            table.keys.push(Arc::new(key));
        }
        Ok(table)
    }

    /// The key of a secret that is good at this time.
    pub fn find(&self, secret: &str, now_us: i64) -> Option<&Arc<Key>> {
        let digest = Digest::of(secret);
        let alike = self.by_digest.get(&digest.beginning())?;
        let (_, index) = alike.iter().find(|(other, _)| *other == digest)?;
        let key = self.keys.get(*index)?;
        let stored = key.secrets.iter().find(|stored| stored.digest == digest)?;
        key.is_live(stored, now_us).then_some(key)
    }

    /// In the order of the file.
    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }
}

/// A message of the parser without the values that it quotes: one of them may be a secret that was written into a wrong place.
fn without_quoted(message: &str) -> String {
    message.split('"').enumerate().map(|(index, part)| if index % 2 == 0 { part } else { "…" }).collect()
}

/// A key, and each digest with its place in the text.
fn key(lines: &Lines<'_>, file: FileKey) -> Result<(Key, Vec<(Digest, usize)>), KeyFileError> {
    let (name_at, name) = (file.name.span().start, file.name.into_inner());
    let name = KeyName::new(&name)
        .map_err(|reason| lines.error(name_at, format!("{name:?} is no name of a key: {reason}")))?;
    let roles_at = file.roles.span().start;
    let role = |text: &Spanned<String>| {
        Role::parse(text.as_ref()).ok_or_else(|| {
            lines.error(
                text.span().start,
                format!("the role {:?} of {name} is none of read, write, admin", text.as_ref()),
            )
        })
    };
    let roles = file.roles.as_ref().iter().map(role).collect::<Result<Roles, _>>()?;
    if roles == Roles::default() {
        return Err(lines.error(roles_at, format!("{name} has no role")));
    }
    let rate = match (file.requests_per_second, file.burst) {
        (None, Some(burst)) => {
            return Err(lines.error(burst.span().start, "burst needs requests_per_second"));
        }
        (None, None) => None,
        (Some(requests_per_second), burst) => {
            Some(Rate { requests_per_second, burst: burst.map_or(requests_per_second, Spanned::into_inner) })
        }
    };
    let secrets_at = file.secrets.span().start;
    let secrets = file.secrets.into_inner();
    if !(1..=MAX_SECRETS).contains(&secrets.len()) {
        return Err(
            lines.error(secrets_at, format!("{name} has {} secrets; a key has 1 or {MAX_SECRETS}", secrets.len()))
        );
    }
    let mut digests = Vec::new();
    let mut stored = Vec::new();
    for secret in secrets {
        let (offset, text) = (secret.sha256.span().start, secret.sha256.into_inner());
        let digest =
            Digest::parse(&text).map_err(|reason| lines.error(offset, format!("the sha256 of {name} {reason}")))?;
        digests.push((digest, offset));
        stored.push(StoredSecret { digest, expires_at_us: lines.time(secret.expires_at)? });
    }
    let key = Key {
        roles,
        debit: lines.prefixes("debit", &file.debit)?,
        credit: lines.prefixes("credit", &file.credit)?,
        read: lines.prefixes("read", &file.read)?,
        rate,
        expires_at_us: lines.time(file.expires_at)?,
        secrets: stored,
        name,
    };
    Ok((key, digests))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, secret: &str, more: &str) -> String {
        format!(
            "[[key]]\nname = \"{name}\"\nroles = [\"read\", \"write\"]\ndebit = [\"{{{name}}}:\"]\nsecrets = [{{ sha256 = \"{}\" }}]\n{more}\n",
            Digest::of(secret)
        )
    }

    #[test]
    fn a_secret_leads_to_its_key_and_no_other_text_does() {
        let table = KeyTable::parse(&(entry("shop1", "s1", "") + &entry("shop2", "s2", ""))).unwrap();
        assert_eq!(table.find("s2", 0).unwrap().name.as_str(), "shop2");
        assert_eq!(table.keys().len(), 2);
        for wrong in ["", "s", "s3", &Digest::of("s1").to_string()] {
            assert!(table.find(wrong, 0).is_none(), "{wrong}");
        }
    }

    #[test]
    fn keys_and_their_secrets_expire() {
        let at = |text| parse_rfc3339(text).unwrap();
        let whole = KeyTable::parse(&entry("a", "s", "expires_at = \"2027-01-01T00:00:00Z\"")).unwrap();
        assert!(whole.find("s", at("2026-12-31T23:59:59Z")).is_some());
        assert!(whole.find("s", at("2027-01-01T00:00:00Z")).is_none());
        let two = format!(
            "[[key]]\nname = \"a\"\nroles = [\"read\"]\nsecrets = [{{ sha256 = \"{}\", expires_at = \"2027-01-01T00:00:00Z\" }}, {{ sha256 = \"{}\" }}]",
            Digest::of("old"),
            Digest::of("new"),
        );
        let two = KeyTable::parse(&two).unwrap();
        assert!(two.find("old", at("2026-12-31T00:00:00Z")).is_some());
        assert!(two.find("old", at("2027-01-02T00:00:00Z")).is_none());
        assert!(two.find("new", at("2027-01-02T00:00:00Z")).is_some());
    }

    #[test]
    fn mistakes_are_named_with_their_line_and_digests_are_not_shown() {
        let good = entry("shop", "s", "");
        for (from, to, line, word) in [
            ("name = \"shop\"", "name = \"a b\"", 2, "name"),
            ("\"write\"", "\"root\"", 3, "root"),
            ("[\"read\", \"write\"]", "[]", 3, "no role"),
            ("{shop}:", "a b", 4, "debit"),
            ("{shop}:", "", 4, "every account"),
            ("debit", "debits", 4, "debits"),
            ("sha256 = \"", "sha256 = \"zz", 5, "sha256"),
            ("}]\n", "}]\nexpires_at = \"tomorrow\"\n", 6, "expires_at"),
            ("}]\n", "}]\nburst = 5\n", 6, "requests_per_second"),
            ("}]\n", "}]\nrequests_per_second = 0\n", 6, "0"),
            ("[[key]]", "[[keys]]", 1, "keys"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good, "{from}");
            let error = KeyTable::parse(&text).unwrap_err();
            assert_eq!(error.line, line, "{to}: {error}");
            assert!(error.reason.contains(word), "{to}: {error}");
            assert!(!error.reason.contains(&Digest::of("s").to_string()[..16]), "{error}");
        }
        for misplaced in ["secrets = [\"slk_topsecret\"]", "secrets = \"slk_topsecret\"", "slk_topsecret = 1"] {
            let error =
                KeyTable::parse(&format!("[[key]]\nname = \"a\"\nroles = [\"read\"]\n{misplaced}")).unwrap_err();
            assert_eq!(error.line, 4, "{error}");
            assert!(!misplaced.starts_with("secrets") || !error.reason.contains("slk_"), "{error}");
        }
        let twice = KeyTable::parse(&(entry("a", "s", "") + &entry("a", "t", ""))).unwrap_err();
        assert!(twice.reason.contains("second key"), "{twice}");
        let shared = KeyTable::parse(&(entry("a", "s", "") + &entry("b", "s", ""))).unwrap_err();
        assert!(shared.reason.contains("occurs twice"), "{shared}");
        assert_eq!(KeyTable::parse("").unwrap().keys().len(), 0);
    }
}
