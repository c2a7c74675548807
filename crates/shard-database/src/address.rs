//! Turns a URL into connection options that the environment cannot change.
//!
//! PostgreSQL's client libraries, including sqlx, fill in what a URL omits from `PGHOST`, `PGOPTIONS`, `PGSSLMODE`
//! and similar variables. A shell with another cluster's variables could then redirect money or switch off
//! durability. A URL must therefore be complete, and a variable that the URL cannot override is refused by name.

use std::{env, fmt, str::FromStr};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Variables that sqlx reads and that no option overrides.
const NOT_OVERRULED: [&str; 4] = ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"];
const PASSWORD: &str = "PGPASSWORD";

/// A complete `postgres://user:password@host:port/database`.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

/// Why a text is not a usable URL. Messages never contain the text, because it contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    #[error("is not a PostgreSQL URL (postgres://user:password@host:port/database): {0}")]
    Form(String),
    #[error("names no {0}: nothing is taken from the environment, so the URL must name user, host and database")]
    Incomplete(&'static str),
    #[error(
        "{0} is set in the environment and would change the connection: unset it, and put what the connection needs into the URL"
    )]
    Environment(&'static str),
}

impl DatabaseUrl {
    /// Checks the URL and the environment, without connecting.
    pub fn new(url: &str) -> Result<Self, InvalidUrl> {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let parts = Parts::of(url)?;
        if let Some(name) = NOT_OVERRULED.into_iter().find(|name| set(name)) {
            return Err(InvalidUrl::Environment(name));
        }
        if !parts.has_password && set(PASSWORD) {
            return Err(InvalidUrl::Environment(PASSWORD));
        }
        PgConnectOptions::from_str(url).map_err(|error| InvalidUrl::Form(error.to_string()))?;
        Ok(Self(url.to_owned()))
    }

    /// The connection options. Callers add the settings of the session with `options`.
    pub fn connect_options(&self) -> PgConnectOptions {
        // `new` has checked the URL; the default would fail at the first connection.
        let options = PgConnectOptions::from_str(&self.0).unwrap_or_else(|_| PgConnectOptions::new_without_pgpass());
        match Parts::of(&self.0) {
            // Without these, sqlx would read PGPORT and PGSSLMODE.
            Ok(parts) => {
                let options = if parts.has_port { options } else { options.port(5432) };
                if parts.has_ssl_mode { options } else { options.ssl_mode(PgSslMode::Prefer) }
            }
            Err(_) => options,
        }
    }

    /// The URL with everything between `//` and `@` hidden.
    pub fn redacted(&self) -> String {
        redact(&self.0)
    }
}

/// Hides user and password in a text that was given as a URL.
pub fn redact(url: &str) -> String {
    match (url.find("//"), url.rfind('@')) {
        (Some(begin), Some(end)) if begin < end => format!("{}//***{}", &url[..begin], &url[end..]),
        _ => url.to_owned(),
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        Self::new(url)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseUrl").field(&self.redacted()).finish()
    }
}

/// The parts that the text of a URL contains.
struct Parts {
    has_password: bool,
    has_port: bool,
    has_ssl_mode: bool,
}

impl Parts {
    fn of(url: &str) -> Result<Self, InvalidUrl> {
        let form = |reason: &str| InvalidUrl::Form(reason.to_owned());
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| form("it does not begin with postgres://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let parameter = |names: &[&str]| {
            query.split('&').any(|pair| pair.split_once('=').is_some_and(|(name, _)| names.contains(&name)))
        };
        if user.is_empty() && !parameter(&["user"]) {
            return Err(InvalidUrl::Incomplete("user"));
        }
        if host.trim_start_matches(':').is_empty() && !parameter(&["host", "hostaddr"]) {
            return Err(InvalidUrl::Incomplete("host"));
        }
        if database.is_empty() && !parameter(&["dbname"]) {
            return Err(InvalidUrl::Incomplete("database"));
        }
        let port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self {
            has_password: !password.is_empty() || parameter(&["password"]),
            has_port: port || parameter(&["port"]),
            has_ssl_mode: parameter(&["sslmode", "ssl-mode"]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_everything_itself() {
        for good in [
            "postgres://ledger:secret@10.0.0.1:5432/ledger",
            "postgresql://ledger@db.example.com/ledger?sslmode=require",
            "postgres://ledger:p%40ss@[::1]:5433/ledger",
            "postgres:///ledger?host=/run/postgresql&user=ledger",
        ] {
            assert!(DatabaseUrl::new(good).is_ok(), "{good}: {:?}", DatabaseUrl::new(good));
        }
        for (bad, missing) in [
            ("postgres://10.0.0.1/ledger", "user"),
            ("postgres://ledger@/ledger", "host"),
            ("postgres://ledger@10.0.0.1", "database"),
            ("postgres://ledger@10.0.0.1/", "database"),
        ] {
            assert_eq!(DatabaseUrl::new(bad), Err(InvalidUrl::Incomplete(missing)), "{bad}");
        }
        for bad in ["", "ledger", "mysql://a:b@c/d", "postgres://a:secret@c:port/d"] {
            let error = DatabaseUrl::new(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url = DatabaseUrl::new("postgres://ledger:se@cret@10.0.0.1:5510/ledger").unwrap();
        for shown in [url.redacted(), format!("{url:?}")] {
            assert!(!shown.contains("cret@") && shown.contains("@10.0.0.1:5510"), "{shown}");
        }
    }
}
