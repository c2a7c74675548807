//! Where and as whom to connect.
//!
//! The options come from a URL alone, because the environment of a shell could otherwise redirect money or switch off
//! durability. The URL has the meaning that sqlx gives it, so that both libraries reach the same database from the same
//! text. `shard_database::DatabaseUrl` refuses the variables of the environment that sqlx would heed.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use percent_encoding::percent_decode_str;
use url::Url;

const DEFAULT_PORT: u16 = 5432;

/// Where and as whom to connect, and the settings of the session.
#[derive(Clone)]
pub struct ConnectOptions {
    pub(crate) endpoint: Endpoint,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
    pub(crate) database: String,
    pub(crate) ssl_mode: SslMode,
    pub(crate) root_certificates: Option<Pem>,
    pub(crate) identity: Option<Identity>,
    pub(crate) application_name: Option<String>,
    pub(crate) options: Option<String>,
}

/// The server's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A host name or address, without the brackets of an IPv6 address, and a port.
    Tcp(String, u16),
    /// The socket file.
    Unix(PathBuf),
}

/// How far a TCP connection is encrypted and the server's certificate checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Certificates or a key in PEM form.
#[derive(Clone)]
pub(crate) enum Pem {
    Inline(String),
    File(PathBuf),
}

/// The certificate with which the client shows who it is.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificates: Pem,
    pub(crate) key: Pem,
}

/// Why a text is not a usable URL. Messages never contain the text, because it contains a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// The text is no PostgreSQL URL at all.
    #[error("is not a PostgreSQL URL (postgres://user:password@host:port/database): {0}")]
    Form(String),
    /// The URL leaves out something that has no default.
    #[error("names no {0}: nothing is taken from the environment, so the URL must name user, host and database")]
    Incomplete(&'static str),
    /// A part of the URL has a value without meaning.
    #[error("has an unusable {0}: {1}")]
    Value(&'static str, &'static str),
}

impl ConnectOptions {
    /// Reads `postgres://user:password@host:port/database?parameter=value…`.
    ///
    /// The parameters are those of sqlx: `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `host` (a directory is that of a
    /// Unix socket), `hostaddr`, `port`, `dbname`, `user`, `password`, `application_name`, `options` and
    /// `options[name]`. Others are ignored, as sqlx does.
    ///
    /// # Errors
    ///
    /// The text is no such URL, or user, host or database are missing, or a parameter has a value without meaning.
    pub fn from_url(url: &str) -> Result<Self, InvalidOptions> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(InvalidOptions::Form("it does not begin with postgres://".to_owned()));
        }
        let url = Url::parse(url).map_err(|error| InvalidOptions::Form(error.to_string()))?;
        let mut host = decoded("host", url.host_str().unwrap_or_default())?;
        let mut port = url.port().unwrap_or(DEFAULT_PORT);
        let mut user = decoded("user", url.username())?;
        let mut password = url.password().map(|password| decoded("password", password)).transpose()?;
        let mut database = decoded("database", url.path().trim_start_matches('/'))?;
        let mut directory = host.starts_with('/').then(|| PathBuf::from(&host));
        let mut ssl_mode = SslMode::Prefer;
        let (mut root_certificates, mut certificates, mut key) = (None, None, None);
        let mut application_name = None;
        let mut options = None::<String>;
        for (name, value) in url.query_pairs() {
            let value = value.into_owned();
            match &*name {
                "sslmode" | "ssl-mode" => ssl_mode = value.parse()?,
                "sslrootcert" | "ssl-root-cert" | "ssl-ca" => root_certificates = Some(Pem::from(value)),
                "sslcert" | "ssl-cert" => certificates = Some(Pem::from(value)),
                "sslkey" | "ssl-key" => key = Some(Pem::from(value)),
                "host" if value.starts_with('/') => directory = Some(value.into()),
                "host" => host = value,
                "hostaddr" if value.parse::<IpAddr>().is_ok() => host = value,
                "hostaddr" => return Err(InvalidOptions::Value("hostaddr", "it is no IP address")),
                "port" => port = value.parse().map_err(|_| InvalidOptions::Value("port", "it is no port number"))?,
                "dbname" => database = value,
                "user" => user = value,
                "password" => password = Some(value),
                "application_name" => application_name = Some(value),
                "options" => add(&mut options, &value),
                name => {
                    if let Some(name) = name.strip_prefix("options[").and_then(|name| name.strip_suffix(']')) {
                        add(&mut options, &setting(name, &value));
                    }
                }
            }
        }
        if host.contains(',') {
            return Err(InvalidOptions::Value("host", "it names several hosts, and a shard has one server"));
        }
        for (name, value) in [("user", &user), ("database", &database)] {
            if value.is_empty() {
                return Err(InvalidOptions::Incomplete(name));
            }
        }
        let endpoint = match directory {
            Some(directory) => Endpoint::Unix(directory.join(format!(".s.PGSQL.{port}"))),
            None if host.is_empty() => return Err(InvalidOptions::Incomplete("host")),
            None => Endpoint::Tcp(host.trim_matches(['[', ']']).to_owned(), port),
        };
        let identity = match (certificates, key) {
            (Some(certificates), Some(key)) => Some(Identity { certificates, key }),
            (None, None) => None,
            _ => return Err(InvalidOptions::Value("sslcert", "sslcert and sslkey belong together")),
        };
        Ok(Self {
            endpoint,
            user,
            password,
            database,
            ssl_mode,
            root_certificates,
            identity,
            application_name,
            options,
        })
    }

    /// Sets the name that `pg_stat_activity` and the server's log show.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = Some(name.into());
        self
    }

    /// Adds settings that the session starts with.
    ///
    /// They are sent in the start-up parameter `options` as `-c name=value`, in the way sqlx sends them, so that a pooler
    /// between the two treats both alike.
    pub fn options<'a>(mut self, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        for (name, value) in settings {
            add(&mut self.options, &setting(name, value));
        }
        self
    }

    /// The parameters of the start-up message. The first ones are those that sqlx always sends.
    pub(crate) fn startup_parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        let fixed = [
            ("user", self.user.as_str()),
            ("database", self.database.as_str()),
            ("DateStyle", "ISO, MDY"),
            ("client_encoding", "UTF8"),
            ("TimeZone", "UTC"),
            ("extra_float_digits", "2"),
        ];
        let name = self.application_name.as_deref().map(|name| ("application_name", name));
        let options = self.options.as_deref().map(|options| ("options", options));
        fixed.into_iter().chain(name).chain(options)
    }
}

impl FromStr for ConnectOptions {
    type Err = InvalidOptions;

    fn from_str(url: &str) -> Result<Self, InvalidOptions> {
        Self::from_url(url)
    }
}

/// Shows neither the password nor the key.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("endpoint", &self.endpoint)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("ssl_mode", &self.ssl_mode)
            .field("application_name", &self.application_name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl FromStr for SslMode {
    type Err = InvalidOptions;

    fn from_str(word: &str) -> Result<Self, InvalidOptions> {
        Ok(match &*word.to_ascii_lowercase() {
            // `allow` encrypts only where the server refuses a plain connection. Like sqlx, the crate makes a plain one.
            "disable" | "allow" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(InvalidOptions::Value(
                    "sslmode",
                    "it is none of disable, allow, prefer, require, verify-ca, verify-full",
                ));
            }
        })
    }
}

impl From<String> for Pem {
    fn from(text: String) -> Self {
        if text.trim().starts_with("-----BEGIN") { Self::Inline(text) } else { Self::File(text.into()) }
    }
}

fn decoded(part: &'static str, text: &str) -> Result<String, InvalidOptions> {
    let text = percent_decode_str(text).decode_utf8();
    Ok(text.map_err(|_| InvalidOptions::Value(part, "it is not UTF-8"))?.into_owned())
}

fn add(options: &mut Option<String>, more: &str) {
    let options = options.get_or_insert_default();
    if !options.is_empty() {
        options.push(' ');
    }
    options.push_str(more);
}

/// One setting as the server's command line has it: a backslash stands before every space and backslash.
fn setting(name: &str, value: &str) -> String {
    let mut text = String::from("-c ");
    let mut escape = |part: &str| {
        for character in part.chars() {
            if matches!(character, ' ' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
    };
    escape(name);
    escape("=");
    escape(value);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_everything_itself() {
        let options =
            ConnectOptions::from_url("postgres://ledger:p%40s%3As@db.example.com:5510/led%20ger?sslmode=verify-full")
                .unwrap();
        assert_eq!(options.endpoint, Endpoint::Tcp("db.example.com".to_owned(), 5510));
        assert_eq!((options.user.as_str(), options.database.as_str()), ("ledger", "led ger"));
        assert_eq!(options.password.as_deref(), Some("p@s:s"));
        assert_eq!(options.ssl_mode, SslMode::VerifyFull);

        let options = ConnectOptions::from_url("postgresql://ledger@10.0.0.1/ledger").unwrap();
        assert_eq!(options.endpoint, Endpoint::Tcp("10.0.0.1".to_owned(), 5432));
        assert_eq!((options.password, options.ssl_mode), (None, SslMode::Prefer));

        let options = ConnectOptions::from_url("postgres://ledger@[::1]:5433/ledger").unwrap();
        assert_eq!(options.endpoint, Endpoint::Tcp("::1".to_owned(), 5433));

        for (url, socket) in [
            ("postgres:///ledger?host=/run/postgresql&user=ledger", "/run/postgresql/.s.PGSQL.5432"),
            ("postgres://ledger@%2Frun%2Fpostgresql:5433/ledger", "/run/postgresql/.s.PGSQL.5433"),
            ("postgres://ledger@localhost/ledger?host=/tmp&port=5", "/tmp/.s.PGSQL.5"),
        ] {
            let options = ConnectOptions::from_url(url).unwrap();
            assert_eq!(options.endpoint, Endpoint::Unix(socket.into()), "{url}");
            assert_eq!(options.user, "ledger", "{url}");
        }
    }

    #[test]
    fn an_incomplete_or_meaningless_url_is_refused_without_its_text() {
        for (bad, missing) in [
            ("postgres://10.0.0.1/ledger", "user"),
            ("postgres://10.0.0.1/ledger?password=secret", "user"),
            ("postgres:///ledger?user=ledger", "host"),
            ("postgres://ledger@10.0.0.1", "database"),
            ("postgres://ledger@10.0.0.1/", "database"),
        ] {
            assert_eq!(ConnectOptions::from_url(bad).unwrap_err(), InvalidOptions::Incomplete(missing), "{bad}");
        }
        for bad in [
            "",
            "secret",
            "mysql://a:secret@c/d",
            "postgres://a:secret@c:port/d",
            "postgres://a:secret@c/d?port=secret",
            "postgres://a:secret@c/d?sslmode=secret",
            "postgres://a:secret@c/d?hostaddr=secret",
            "postgres://a:secret@c/d?sslcert=secret",
            "postgres://a:secret@b,c/d",
            "postgres://a:%ff@c/d",
        ] {
            let error = ConnectOptions::from_url(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn settings_are_sent_as_sqlx_sends_them() {
        let url = "postgres://ledger@c/d?application_name=url&options=-c%20a%3D1&options[b]=2&unknown=3";
        let options = ConnectOptions::from_url(url)
            .unwrap()
            .application_name("node")
            .options([("search_path", "led ger"), ("c", "x\\y")]);
        let parameters: Vec<_> = options.startup_parameters().collect();
        assert!(parameters.contains(&("application_name", "node")), "{parameters:?}");
        let expected = r"-c a=1 -c b=2 -c search_path=led\ ger -c c=x\\y";
        assert!(parameters.contains(&("options", expected)), "{parameters:?}");
        assert!(!parameters.iter().any(|(name, _)| *name == "unknown"), "{parameters:?}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = "postgres://ledger:hunter2@c/d?sslcert=/c.pem&sslkey=-----BEGIN+hunter2";
        let shown = format!("{:?}", ConnectOptions::from_url(url).unwrap());
        assert!(!shown.contains("hunter2") && shown.contains("ledger"), "{shown}");
    }
}
