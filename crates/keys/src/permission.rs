//! What a key permits.

use ledger::{AccountId, AccountPrefix};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Every `GET`.
    Read,
    /// Moving and holding money, and opening accounts without an overdraft.
    Write,
    /// Opening accounts with an overdraft, and changing accounts.
    Admin,
}

/// The roles of a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Roles {
    bits: u8,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl Roles {
    pub fn contain(self, role: Role) -> bool {
        self.bits & 1 << role as u8 != 0
    }

    pub fn names(self) -> Vec<&'static str> {
        Role::ALL.into_iter().filter(|role| self.contain(*role)).map(Role::as_str).collect()
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<T: IntoIterator<Item = Role>>(roles: T) -> Self {
        Self { bits: roles.into_iter().fold(0, |bits, role| bits | 1 << role as u8) }
    }
}

/// Accounts, by their ids or the beginnings of their ids. Without any it is no account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefixes(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Beginning(AccountPrefix),
    /// One account.
    Account(AccountId),
}

/// How the file writes the prefix of every account. An empty text would be written by mistake.
const EVERY_ACCOUNT: &str = "*";
/// Begins a text that names one account. No id has the character.
const ONE_ACCOUNT: char = '=';

impl Prefixes {
    /// Every account.
    pub fn every_account() -> Self {
        Self(vec![Pattern::Beginning(AccountPrefix::default())])
    }

    /// Reads prefixes as a file has them.
    ///
    /// # Errors
    /// The place of the first that is no beginning of account ids, and what is wrong with it.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, (usize, String)> {
        let read = |(index, text): (usize, &str)| {
            let pattern = match (text, text.strip_prefix(ONE_ACCOUNT)) {
                (EVERY_ACCOUNT, _) => Ok(Pattern::Beginning(AccountPrefix::default())),
                ("", _) => return Err((index, format!("is empty; {EVERY_ACCOUNT:?} stands for every account"))),
                (_, Some(account)) => AccountId::client(account).map(Pattern::Account),
                (text, None) => AccountPrefix::new(text).map(Pattern::Beginning),
            };
            pattern.map_err(|reason| (index, reason.to_string()))
        };
        texts.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// As the file has them.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|pattern| match pattern {
            Pattern::Beginning(prefix) if prefix.as_str().is_empty() => EVERY_ACCOUNT.to_owned(),
            Pattern::Beginning(prefix) => prefix.as_str().to_owned(),
            Pattern::Account(account) => format!("{ONE_ACCOUNT}{account}"),
        })
    }

    /// Whether the account is one of them.
    pub fn contain(&self, account: &AccountId) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Beginning(prefix) => prefix.begins(account.as_str()),
            Pattern::Account(one) => one == account,
        })
    }

    /// Whether every account that begins so is one of them.
    pub fn cover(&self, prefix: &AccountPrefix) -> bool {
        self.0.iter().any(|pattern| matches!(pattern, Pattern::Beginning(own) if own.begins(prefix.as_str())))
    }

    /// The only pattern, if it is a beginning of ids.
    pub fn only(&self) -> Option<&AccountPrefix> {
        match self.0.as_slice() {
            [Pattern::Beginning(prefix)] => Some(prefix),
            _ => None,
        }
    }

    pub fn is_every_account(&self) -> bool {
        self.cover(&AccountPrefix::default())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_contain_what_begins_so_and_cover_what_is_narrower() {
        let prefixes = Prefixes::parse(["{shop42}:", "bank:fees"]).unwrap();
        for (account, contained) in [
            ("{shop42}:till", true),
            ("{shop42}:", true),
            ("{shop42}", false),
            ("{shop4}:till", false),
            ("x{shop42}:till", false),
            ("bank:fees", true),
            ("bank:fees2", true),
            ("bank:fee", false),
        ] {
            assert_eq!(prefixes.contain(&AccountId::client(account).unwrap()), contained, "{account}");
            assert_eq!(prefixes.cover(&AccountPrefix::new(account).unwrap()), contained, "{account}");
        }
        assert!(!prefixes.is_every_account() && prefixes.only().is_none());
        assert!(!Prefixes::default().contain(&AccountId::client("a").unwrap()));
        assert!(!Prefixes::default().cover(&AccountPrefix::default()));
    }

    #[test]
    fn every_account_is_written_with_a_star() {
        let every = Prefixes::parse(["*"]).unwrap();
        assert!(every.is_every_account() && every == Prefixes::every_account());
        assert_eq!(every.texts().collect::<Vec<_>>(), ["*"]);
        let one = Prefixes::parse(["=bank:fees"]).unwrap();
        assert!(one.contain(&AccountId::client("bank:fees").unwrap()));
        assert!(!one.contain(&AccountId::client("bank:fees2").unwrap()));
        assert!(!one.cover(&AccountPrefix::new("bank:fees").unwrap()) && one.only().is_none());
        assert_eq!(one.texts().collect::<Vec<_>>(), ["=bank:fees"]);
        assert_eq!(Prefixes::parse(["="]).unwrap_err().0, 0);
        assert_eq!(Prefixes::parse(["a", ""]).unwrap_err().0, 1);
        assert_eq!(Prefixes::parse(["a b"]).unwrap_err().0, 0);
    }

    #[test]
    fn roles_are_apart() {
        let roles = Roles::from_iter([Role::Write, Role::Write]);
        assert!(roles.contain(Role::Write) && !roles.contain(Role::Read) && !roles.contain(Role::Admin));
        assert_eq!(roles.names(), ["write"]);
        assert_eq!(Role::parse("admin"), Some(Role::Admin));
        assert_eq!(Role::parse("Admin"), None);
    }
}
