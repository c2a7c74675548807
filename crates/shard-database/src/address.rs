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

/// A complete `postgres://user:password@host:port/database`. It may name several hosts, `host:port,host:port`: a primary and
/// its stand-bys.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    text: String,
    /// The same URL for each host by itself, in the order of the text. There is at least one.
    hosts: Vec<Host>,
}

/// One host of a [`DatabaseUrl`].
#[derive(Clone, PartialEq, Eq)]
pub struct Host {
    /// The host and the port as the URL has them.
    name: String,
    url: String,
}

/// Why a text is not a usable URL. Messages never contain the text, because it contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    #[error("is not a PostgreSQL URL (postgres://user:password@host:port/database): {0}")]
    Form(String),
    #[error("names no {0}: nothing is taken from the environment, so the URL must name user, host and database")]
    Incomplete(&'static str),
    #[error("names several hosts, and {0}: write host:port for each host, separated by commas, between @ and /")]
    Hosts(&'static str),
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
        let hosts = parts.each_host(url)?;
        for host in &hosts {
            PgConnectOptions::from_str(&host.url).map_err(|error| InvalidUrl::Form(error.to_string()))?;
        }
        Ok(Self { text: url.to_owned(), hosts })
    }

    /// The hosts, in the order of the URL; at least one.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The connection options of the only host, or of the first one. [`crate::primary`] looks for the primary among several.
    /// Callers add the settings of the session with `options`.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.hosts.first().map_or_else(PgConnectOptions::new_without_pgpass, Host::connect_options)
    }

    /// The URL with everything between `//` and `@` hidden.
    pub fn redacted(&self) -> String {
        redact(&self.text)
    }
}

impl Host {
    /// The host and the port as the URL has them.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The complete URL of this host alone. It contains the password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The connection options. Callers add the settings of the session with `options`.
    pub fn connect_options(&self) -> PgConnectOptions {
        // `DatabaseUrl::new` has checked the URL; the default would fail at the first connection.
        let options =
            PgConnectOptions::from_str(&self.url).unwrap_or_else(|_| PgConnectOptions::new_without_pgpass());
        match Parts::of(&self.url) {
            // Without these, sqlx would read PGPORT and PGSSLMODE.
            Ok(parts) => {
                let options = if parts.has_port { options } else { options.port(5432) };
                let options = if parts.has_ssl_mode { options } else { options.ssl_mode(PgSslMode::Prefer) };
                // libpq documents that a named authority makes `require` as strict as `verify-ca`, and `pg-session` does so.
                if parts.names_authority && matches!(options.get_ssl_mode(), PgSslMode::Require) {
                    options.ssl_mode(PgSslMode::VerifyCa)
                } else {
                    options
                }
            }
            Err(_) => options,
        }
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

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.name).finish()
    }
}

/// The parts that the text of a URL contains.
struct Parts<'u> {
    /// Hosts and ports, and where in the URL they begin.
    host: &'u str,
    host_at: usize,
    names_host_in_parameters: bool,
    has_password: bool,
    has_port: bool,
    has_ssl_mode: bool,
    names_authority: bool,
}

impl<'u> Parts<'u> {
    fn of(url: &'u str) -> Result<Self, InvalidUrl> {
        let form = |reason: &str| InvalidUrl::Form(reason.to_owned());
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| form("it does not begin with postgres://"))?;
        let scheme = url.len() - rest.len();
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
            host,
            host_at: scheme + authority.len() - host.len(),
            names_host_in_parameters: parameter(&["host", "hostaddr", "port"]),
            has_password: !password.is_empty() || parameter(&["password"]),
            has_port: port || parameter(&["port"]),
            has_ssl_mode: parameter(&["sslmode", "ssl-mode"]),
            names_authority: parameter(&["sslrootcert", "ssl-root-cert", "ssl-ca"]),
        })
    }

    /// The URL, once for each host.
    fn each_host(&self, url: &str) -> Result<Vec<Host>, InvalidUrl> {
        let names: Vec<&str> = self.host.split(',').collect();
        if names.len() > 1 {
            if self.names_host_in_parameters {
                return Err(InvalidUrl::Hosts("a parameter names another host or port"));
            }
            // The directory of a Unix socket begins with a slash, which is %2F here.
            if names.iter().any(|name| name.contains('%')) {
                return Err(InvalidUrl::Hosts("one of them is a Unix socket or is encoded"));
            }
            if names.iter().any(|name| name.is_empty() || name.starts_with(':')) {
                return Err(InvalidUrl::Hosts("one of them is empty"));
            }
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() < names.len() {
                return Err(InvalidUrl::Hosts("one of them twice"));
            }
        }
        let (before, after) = (&url[..self.host_at], &url[self.host_at + self.host.len()..]);
        let host = |name: &str| Host { name: name.to_owned(), url: format!("{before}{name}{after}") };
        Ok(names.into_iter().map(host).collect())
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
    fn each_of_several_hosts_has_a_url_of_its_own() {
        let hosts = |url: &str| {
            let url = DatabaseUrl::new(url).unwrap();
            url.hosts().iter().map(|host| (host.name().to_owned(), host.url().to_owned())).collect::<Vec<_>>()
        };
        let pair = |name: &str, url: &str| (name.to_owned(), url.to_owned());
        assert_eq!(
            hosts("postgres://ledger:se@cret,x@10.0.0.1:5432,db2,[::1]:5434/ledger?sslmode=require"),
            [
                pair("10.0.0.1:5432", "postgres://ledger:se@cret,x@10.0.0.1:5432/ledger?sslmode=require"),
                pair("db2", "postgres://ledger:se@cret,x@db2/ledger?sslmode=require"),
                pair("[::1]:5434", "postgres://ledger:se@cret,x@[::1]:5434/ledger?sslmode=require"),
            ]
        );
        let url = DatabaseUrl::new("postgres://ledger@db1:5433,db2/ledger").unwrap();
        let options: Vec<_> = url.hosts().iter().map(Host::connect_options).collect();
        assert_eq!((options[0].get_host(), options[0].get_port()), ("db1", 5433));
        assert_eq!((options[1].get_host(), options[1].get_port()), ("db2", 5432));
        assert_eq!(hosts("postgres:///ledger?host=/run/postgresql&user=ledger").len(), 1);
        for (bad, why) in [
            ("postgres://ledger@db1,db2/ledger?port=5", "a parameter names another host or port"),
            ("postgres://ledger@db1,db2/ledger?hostaddr=10.0.0.1", "a parameter names another host or port"),
            ("postgres://ledger@%2Frun%2Fpostgresql,db2/ledger", "one of them is a Unix socket or is encoded"),
            ("postgres://ledger@db1,,db2/ledger", "one of them is empty"),
            ("postgres://ledger@db1,:5433/ledger", "one of them is empty"),
            ("postgres://ledger@db1:5432,db1:5432/ledger", "one of them twice"),
        ] {
            assert_eq!(DatabaseUrl::new(bad), Err(InvalidUrl::Hosts(why)), "{bad}");
        }
        assert!(matches!(DatabaseUrl::new("postgres://ledger@db1:5432,db2:port/ledger"), Err(InvalidUrl::Form(_))));
    }

    #[test]
    fn an_authority_makes_require_check_the_certificate() {
        let mode = |parameters: &str| {
            let url = format!("postgres://ledger@db/ledger?{parameters}");
            DatabaseUrl::new(&url).unwrap().connect_options().get_ssl_mode()
        };
        assert!(matches!(mode("sslmode=require"), PgSslMode::Require));
        assert!(matches!(mode("sslmode=require&sslrootcert=/ca.pem"), PgSslMode::VerifyCa));
        assert!(matches!(mode("sslmode=verify-full&sslrootcert=/ca.pem"), PgSslMode::VerifyFull));
        assert!(matches!(mode("application_name=x"), PgSslMode::Prefer));
    }

    #[test]
    fn a_password_is_never_shown() {
        let several = DatabaseUrl::new("postgres://ledger:se@cret@db1,10.0.0.1:5510/ledger").unwrap();
        assert!(!format!("{several:?} {:?}", several.hosts()).contains("cret@"));
        let url = DatabaseUrl::new("postgres://ledger:se@cret@10.0.0.1:5510/ledger").unwrap();
        for shown in [url.redacted(), format!("{url:?}")] {
            assert!(!shown.contains("cret@") && shown.contains("@10.0.0.1:5510"), "{shown}");
        }
    }
}
