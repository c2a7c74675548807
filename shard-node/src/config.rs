//! The configuration: one struct per concern. All defaults are here, and everything is checked before a port is
//! bound.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use certificates::{CertificateError, Mutual, MutualFiles};
use config_reference::ReferenceError;
use identity::Expected;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use shard_database::DatabaseUrl;
use shard_map::ClusterId;
use telemetry::{
    logging::LogConfig,
    traces::{TracesConfig, TracesError},
};

use crate::tail::Size;

/// Overrides `database.url`, so that the password need not be in a file.
pub const DATABASE_URL_VARIABLE: &str = "SHARD_NODE_DATABASE_URL";

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub cluster: ClusterConfig,
    pub shard: ShardConfig,
    #[serde(default)]
    pub database: DatabaseConfig,
    #[serde(default)]
    pub clock: ClockConfig,
    /// What routers, other nodes and `shardctl` call, which may move money: with mutual TLS, or in a network that only they reach.
    pub rpc: RpcConfig,
    /// The listener for operators: health, metrics and `/status`; loopback unless there is a reason.
    pub admin: ListenConfig,
    #[serde(default)]
    pub lane: LaneConfig,
    /// The log, on standard error.
    #[serde(default)]
    pub log: LogConfig,
    /// Traces, sent by OTLP: [traces.md](traces.md).
    #[serde(default)]
    pub traces: TracesConfig,
}

/// The cluster.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster of the shard, a UUID, as the shard map has it.
    #[schemars(with = "String")]
    pub id: ClusterId,
}

/// The shard.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardConfig {
    /// The shard this node stands in front of, as the shard map names it.
    pub id: String,
}

/// The shard's PostgreSQL.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host:port/database`, or several `host:port` of a primary and its stand-bys, separated by commas. Needed here
    /// or in the environment variable `SHARD_NODE_DATABASE_URL`, which comes first.
    pub url: String,
    /// Connections for reads. The lane has its own connection.
    pub read_connections: u32,
    /// Limit for a connection to the database.
    pub connect_timeout_ms: u64,
    /// Client-side deadline of one statement. The connection is dropped when it passes.
    pub statement_timeout_ms: u64,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self { url: String::new(), read_connections: 4, connect_timeout_ms: 2_000, statement_timeout_ms: 10_000 }
    }
}

/// A listener.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// Address and port.
    pub listen: SocketAddr,
}

/// The listener for routers, other nodes and `shardctl`, which lets its callers move money.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RpcConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Permits `rpc.listen` to be another address than loopback without TLS.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// With it, the listener takes mutual TLS only, and so do the nodes that this node calls, whatever the shard map says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RpcTlsConfig>,
}

/// How this node, its callers and other nodes know each other. The files are PEM: absolute, or relative to the configuration file's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RpcTlsConfig {
    /// The certificate of this node, and after it those between it and the authority that its peers trust.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities of callers' and of other nodes' certificates.
    pub authority: PathBuf,
    /// A caller's certificate must have one of these names.
    pub callers: Vec<String>,
    /// Names of which another node's certificate must have one, besides the host in its address. Empty: the host is enough.
    #[serde(default)]
    pub nodes: Vec<String>,
}

/// The lane, the shard's only writer, and the fold.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LaneConfig {
    /// A batch stops growing at this number of operations.
    pub max_batch_operations: usize,
    /// Operations that may wait; further ones are refused with `overloaded`.
    pub queue_operations: usize,
    /// Memory for accounts that may be evicted, in bytes, approximately.
    pub cache_bytes: usize,
    /// Committed bookings that may be unfolded before the lane waits for the fold. A starting node reads them. The fold
    /// runs early at half of it.
    pub unfolded_bookings: usize,
    /// Accounts that may have unfolded bookings before the lane waits for the fold. They stay in memory. The fold runs early
    /// at half of it.
    pub unfolded_accounts: usize,
    /// Time from one fold to the next. The interval grows up to twelvefold while rows of `account` have dead versions.
    pub fold_interval_ms: u64,
}

impl Default for LaneConfig {
    fn default() -> Self {
        Self {
            max_batch_operations: 8192,
            queue_operations: 65_536,
            cache_bytes: 512 * 1024 * 1024,
            unfolded_bookings: 1_000_000,
            unfolded_accounts: 1_000_000,
            fold_interval_ms: 5000,
        }
    }
}

impl LaneConfig {
    pub fn tail_bounds(&self) -> Size {
        Size { bookings: self.unfolded_bookings, accounts: self.unfolded_accounts }
    }

    pub fn fold_interval(&self) -> Duration {
        Duration::from_millis(self.fold_interval_ms)
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClockConfig {
    /// How far this machine's clock may be from those of PostgreSQL and the routers. A node whose clock is further
    /// off does not start. If the clock goes wrong later, entries are dated at most this far from the median clock.
    pub max_difference_ms: u64,
}

impl Default for ClockConfig {
    fn default() -> Self {
        Self { max_difference_ms: 1000 }
    }
}

impl ClockConfig {
    pub fn max_difference(&self) -> Duration {
        Duration::from_millis(self.max_difference_ms)
    }
}

const REFERENCE_INTRODUCTION: &str = "Each `shard-node` reads its own at start: `shard-node --config s0.toml`. The commands `init`, `migrate` and `accept` read it, too.";

/// Settings without a default. `database.url` is checked later, because the environment may supply it.
const REQUIRED: [(&str, &str, &str); 4] = [
    ("cluster", "id", "cluster.id"),
    ("shard", "id", "shard.id"),
    ("rpc", "listen", "rpc.listen"),
    ("admin", "listen", "admin.listen"),
];

// Messages contain their reasons, and `source` is not set: a report with its causes would repeat them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {reason}")]
    Unreadable { path: String, reason: std::io::Error },
    #[error("{path}: {reason}")]
    Malformed { path: String, reason: Box<toml::de::Error> },
    #[error("{path}: the setting {setting} is missing; it has no default")]
    Missing { path: String, setting: &'static str },
    #[error("{setting}: {reason}")]
    Invalid { setting: &'static str, reason: String },
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let shown = || path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|reason| ConfigError::Unreadable { path: shown(), reason })?;
        let malformed = |reason| ConfigError::Malformed { path: shown(), reason: Box::new(reason) };
        let table: toml::Table = toml::from_str(&text).map_err(malformed)?;
        if let Some(setting) = missing_setting(&table) {
            return Err(ConfigError::Missing { path: shown(), setting });
        }
        // Parse the text, not the table, so that errors show the line.
        let mut config: Self = toml::from_str(&text).map_err(malformed)?;
        if let Ok(url) = std::env::var(DATABASE_URL_VARIABLE) {
            config.database.url = url;
        }
        if let (Some(tls), Some(folder)) = (&mut config.rpc.tls, path.parent()) {
            for path in [&mut tls.certificate, &mut tls.key, &mut tls.authority] {
                *path = folder.join(&path);
            }
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |setting, reason: String| Err(ConfigError::Invalid { setting, reason });
        if self.shard.id.is_empty() {
            return invalid("shard.id", "is empty".to_owned());
        }
        if self.database.url.is_empty() {
            return invalid("database.url", format!("is missing; set it or {DATABASE_URL_VARIABLE}"));
        }
        // The URL stays out of the message, because it contains a password.
        if let Err(error) = DatabaseUrl::new(&self.database.url) {
            return invalid("database.url", error.to_string());
        }
        let positive = [
            ("database.read_connections", u64::from(self.database.read_connections)),
            ("database.connect_timeout_ms", self.database.connect_timeout_ms),
            ("database.statement_timeout_ms", self.database.statement_timeout_ms),
            ("clock.max_difference_ms", self.clock.max_difference_ms),
            ("lane.max_batch_operations", self.lane.max_batch_operations as u64),
            ("lane.queue_operations", self.lane.queue_operations as u64),
            ("lane.cache_bytes", self.lane.cache_bytes as u64),
            ("lane.unfolded_bookings", self.lane.unfolded_bookings as u64),
            ("lane.unfolded_accounts", self.lane.unfolded_accounts as u64),
            ("lane.fold_interval_ms", self.lane.fold_interval_ms),
        ];
        if let Some((setting, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return invalid(setting, "must be greater than 0".to_owned());
        }
        self.rpc.check()?;
        self.log.check().or_else(|error| invalid("log.level", error.to_string()))?;
        self.traces.check().or_else(|TracesError { setting, reason }| invalid(setting, reason))
    }

    /// What the database must say of itself. Only the shard map knows the shard's number.
    pub fn expected(&self) -> Expected {
        Expected { cluster: self.cluster.id, shard: self.shard.id.clone(), number: None }
    }

    /// The settings as Markdown.
    ///
    /// # Errors
    /// A setting has no doc comment.
    pub fn reference() -> Result<String, ReferenceError> {
        config_reference::render("The node's file", REFERENCE_INTRODUCTION, &schema_for!(Self))
    }

    /// As TOML, without the password.
    pub fn redacted(&self) -> Result<String, toml::ser::Error> {
        let mut shown = self.clone();
        shown.database.url = shard_database::address::redact(&self.database.url);
        toml::to_string_pretty(&shown)
    }
}

impl RpcConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |setting, reason: String| Err(ConfigError::Invalid { setting, reason });
        match &self.tls {
            None if !self.listen.ip().is_loopback() && !self.allow_plaintext => invalid(
                "rpc.listen",
                format!(
                    "{} is not a loopback address, and there is no certificate: any program that reaches it could move money. Set rpc.tls \
                     (`shardctl tls init` makes certificates), or rpc.allow_plaintext = true if something else lets only routers and nodes in",
                    self.listen
                ),
            ),
            Some(_) if self.allow_plaintext => invalid(
                "rpc.allow_plaintext",
                "has no meaning beside rpc.tls: with a certificate, every caller needs one".to_owned(),
            ),
            Some(tls) if tls.callers.is_empty() => {
                invalid("rpc.tls.callers", "is empty: no router could call this node".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Reads the files of `rpc.tls`.
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the key is not the key of the certificate.
    pub fn mutual_tls(&self) -> Result<Option<Mutual>, CertificateError> {
        let Some(RpcTlsConfig { certificate, key, authority, callers, nodes }) = self.tls.clone() else {
            return Ok(None);
        };
        Mutual::open(&MutualFiles { certificate, key, authority }, callers, nodes).map(Some)
    }
}

impl DatabaseConfig {
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub fn statement_timeout(&self) -> Duration {
        Duration::from_millis(self.statement_timeout_ms)
    }
}

/// The first required setting that is missing. A setting of the wrong type is left to the parser.
fn missing_setting(table: &toml::Table) -> Option<&'static str> {
    let is_there =
        |section: &str, key: &str| table.get(section).is_some_and(|s| !s.is_table() || s.get(key).is_some());
    REQUIRED.into_iter().find(|(section, key, _)| !is_there(section, key)).map(|(_, _, setting)| setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_ends_with_what_the_code_says_of_a_nodes_file() {
        let page = include_str!("../../docs/operations/configuration.md");
        assert!(page.ends_with(&Config::reference().unwrap()), "the page is out of date: run `make configuration`");
    }

    const GOOD: &str = r#"
        cluster.id = "0190d7c0-0000-7000-8000-00000000c1a5"
        shard.id = "s0"
        database.url = "postgres://ledger:secret@127.0.0.1:5510/ledger"
        rpc.listen = "127.0.0.1:7500"
        admin.listen = "127.0.0.1:7600"
    "#;

    #[test]
    fn defaults_fill_in_and_the_password_stays_hidden() {
        let config: Config = toml::from_str(GOOD).unwrap();
        config.check().unwrap();
        assert_eq!(config.lane.max_batch_operations, 8192);
        let shown = config.redacted().unwrap();
        assert!(!shown.contains("secret") && shown.contains("@127.0.0.1:5510"), "{shown}");
    }

    #[test]
    fn what_is_missing_unknown_or_zero_is_named() {
        let parse = |text: &str| toml::from_str::<Config>(text).map_err(|e| e.to_string());
        let missing = |text: &str| missing_setting(&toml::from_str(text).unwrap());
        assert_eq!(missing(GOOD), None);
        assert_eq!(missing(""), Some("cluster.id"));
        assert_eq!(missing(&GOOD.replace("rpc.listen = \"127.0.0.1:7500\"", "")), Some("rpc.listen"));
        assert!(parse(&format!("{GOOD}\nshard.colour = 1")).unwrap_err().contains("colour"));
        let zero = parse(&format!("{GOOD}\nlane.queue_operations = 0")).unwrap();
        assert!(zero.check().unwrap_err().to_string().contains("lane.queue_operations"));
        let no_address = parse(&format!("{GOOD}\ntraces.otlp_endpoint = \"collector:4317\"")).unwrap();
        assert!(no_address.check().unwrap_err().to_string().contains("traces.otlp_endpoint"));
        // The environment may supply the URL of a file without the section.
        let no_section = parse(&GOOD.replace("database.url", "#")).unwrap();
        assert!(no_section.check().unwrap_err().to_string().contains(DATABASE_URL_VARIABLE));
        let no_url = parse(&GOOD.replace("database.url", "database.read_connections = 3 #")).unwrap();
        assert!(no_url.check().unwrap_err().to_string().contains("database.url"));
    }

    #[test]
    fn a_listener_beyond_loopback_needs_tls_unless_told_so_by_name() {
        let parse = |text: &str| {
            let config: Config = toml::from_str(text).unwrap();
            config.check().map(|()| config).map_err(|error| error.to_string())
        };
        let public = GOOD.replace("127.0.0.1:7500", "0.0.0.0:7500");
        let error = parse(&public).unwrap_err();
        assert!(error.contains("rpc.tls") && error.contains("rpc.allow_plaintext"), "{error}");
        assert!(parse(&format!("{public}\nrpc.allow_plaintext = true")).is_ok());
        assert!(parse(&GOOD.replace("127.0.0.1:7500", "[::1]:7500")).is_ok());
        let tls = "rpc.tls = { certificate = \"n.pem\", key = \"n.key\", authority = \"ca.pem\", callers = [\"router.internal\"] }";
        let config = parse(&format!("{public}\n{tls}")).unwrap();
        let again: Config = toml::from_str(&config.redacted().unwrap()).unwrap();
        assert_eq!(again.rpc.tls, config.rpc.tls);
        assert!(parse(&format!("{GOOD}\n{tls}\nrpc.allow_plaintext = true")).is_err());
        let none = parse(&format!("{GOOD}\n{}", tls.replace("\"router.internal\"", "")));
        assert!(none.unwrap_err().contains("rpc.tls.callers"));
    }
}
