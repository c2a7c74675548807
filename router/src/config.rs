//! The configuration file: one struct per concern, defaults in one place, everything checked before a port is bound.

mod sections;

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use config_reference::{ReferenceError, render};
use ledger::{AssetRegistry, asset::AssetDeclarationError};
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use telemetry::{
    logging::{LogConfig, LogError},
    traces::{TracesConfig, TracesError},
};

pub use self::sections::{
    AdminConfig, CoreConfig, HttpConfig, KeysConfig, LimitsConfig, MapConfig, NodeTlsConfig, SagaConfig, ShardsConfig,
};

/// The configuration of a router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Threads that run the router's tasks. 0: one for each core of the machine. A router that shares its machine with the
    /// nodes and their databases spends less on each request with fewer threads (ADR 9, "Measured").
    #[serde(default)]
    pub worker_threads: usize,
    pub http: HttpConfig,
    pub admin: AdminConfig,
    pub map: MapConfig,
    #[serde(default)]
    pub keys: KeysConfig,
    #[serde(default)]
    pub shards: ShardsConfig,
    #[serde(default)]
    pub saga: SagaConfig,
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Assets beyond ISO 4217, each with its scale: `BTC = 8`.
    #[serde(default)]
    pub assets: BTreeMap<String, u32>,
    /// The log, on standard error.
    #[serde(default)]
    pub log: LogConfig,
    /// Traces, sent by OTLP: [traces.md](traces.md).
    #[serde(default)]
    pub traces: TracesConfig,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {reason}")]
    Unreadable { path: PathBuf, reason: io::Error },
    #[error("{path}: {reason}")]
    Syntax { path: PathBuf, reason: toml::de::Error },
    #[error("{path}: the setting {setting} is missing; it has no default")]
    Missing { path: PathBuf, setting: &'static str },
    #[error("{path}: {setting}: {reason}")]
    Value { path: PathBuf, setting: &'static str, reason: String },
    #[error(
        "{path}: http.listen = \"{listen}\" is not a loopback address, and there are no keys: any program that reaches it could move money. Set keys.path \
         to a file of keys (`shardctl key create` makes one), or keys.allow_unauthenticated = true if something else lets only your own programs in"
    )]
    Unauthenticated { path: PathBuf, listen: SocketAddr },
    #[error(
        "{path}: http.listen = \"{listen}\" is not a loopback address, and there is no certificate: keys could be read on the wire. Set \
         http.tls.certificate and http.tls.key, or keys.allow_plaintext = true if a proxy in front of the router ends TLS"
    )]
    Plaintext { path: PathBuf, listen: SocketAddr },
    #[error("{path}: {reason}")]
    Asset { path: PathBuf, reason: AssetDeclarationError },
    #[error("{path}: {reason}")]
    Log { path: PathBuf, reason: LogError },
    #[error("{path}: {reason}")]
    Traces { path: PathBuf, reason: TracesError },
}

/// Upper bound on the configurable size of bodies: with the overhead of the wire, a body must fit into one message.
const MAX_BODY_BYTES: usize = wire::MAX_MESSAGE_BYTES / 2;

/// Settings without a default.
const REQUIRED: [(&str, &str, &str); 3] =
    [("http", "listen", "http.listen"), ("admin", "listen", "admin.listen"), ("map", "path", "map.path")];

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|reason| ConfigError::Unreadable { path: path.to_owned(), reason })?;
        let mut config = Self::parse(path, &text)?;
        if let Some(folder) = path.parent() {
            config.map.path = folder.join(&config.map.path);
            config.keys.path = config.keys.path.map(|path| folder.join(path));
            if let Some(tls) = &mut config.http.tls {
                tls.begin_at(folder);
            }
            if let Some(tls) = &mut config.shards.tls {
                tls.begin_at(folder);
            }
        }
        Ok(config)
    }

    /// Parses the configuration in `text`. Errors name `path` as its source.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let syntax = |reason| ConfigError::Syntax { path: path.to_owned(), reason };
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        for (section, key, setting) in REQUIRED {
            let there = table.get(section).is_some_and(|s| !s.is_table() || s.get(key).is_some());
            if !there {
                return Err(ConfigError::Missing { path: path.to_owned(), setting });
            }
        }
        // Parse the text, not the table, so that errors show the line.
        let config: Self = toml::from_str(text).map_err(syntax)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let path = || path.to_owned();
        let positive: [(&'static str, u64); 15] = [
            ("http.max_connections", self.http.max_connections as u64),
            ("http.max_requests_in_flight", self.http.max_requests_in_flight as u64),
            ("http.header_timeout_ms", self.http.header_timeout_ms),
            ("http.body_timeout_ms", self.http.body_timeout_ms),
            ("http.idle_timeout_ms", self.http.idle_timeout_ms),
            ("http.max_body_bytes", self.http.max_body_bytes as u64),
            ("http.drain_timeout_ms", self.http.drain_timeout_ms),
            ("shards.queue_operations", self.shards.queue_operations as u64),
            ("shards.rpcs_in_flight", self.shards.rpcs_in_flight as u64),
            ("shards.max_batch_operations", self.shards.max_batch_operations as u64),
            ("shards.connect_timeout_ms", self.shards.connect_timeout_ms),
            ("shards.breaker_failures", self.shards.breaker_failures.into()),
            ("shards.breaker_open_ms", self.shards.breaker_open_ms),
            ("saga.poll_interval_ms", self.saga.poll_interval_ms),
            ("saga.claim_limit", self.saga.claim_limit.into()),
        ];
        if let Some((setting, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Value { path: path(), setting, reason: "must be greater than 0".to_owned() });
        }
        if self.http.max_body_bytes > MAX_BODY_BYTES {
            return Err(ConfigError::Value {
                path: path(),
                setting: "http.max_body_bytes",
                reason: format!("must be at most {MAX_BODY_BYTES}: all of a batch may go to a shard in one message"),
            });
        }
        if self.http.max_buffered_bytes < self.http.max_body_bytes {
            return Err(ConfigError::Value {
                path: path(),
                setting: "http.max_buffered_bytes",
                reason: "must not be less than http.max_body_bytes, or the largest body could never be read"
                    .to_owned(),
            });
        }
        if self.keys.path.is_none() && !self.keys.allow_unauthenticated && !self.http.listen.ip().is_loopback() {
            return Err(ConfigError::Unauthenticated { path: path(), listen: self.http.listen });
        }
        if self.keys.path.is_some() && self.keys.allow_unauthenticated {
            return Err(ConfigError::Value {
                path: path(),
                setting: "keys.allow_unauthenticated",
                reason: "has no meaning beside keys.path: with keys, every request needs one".to_owned(),
            });
        }
        let plaintext = self.http.tls.is_none() && !self.http.listen.ip().is_loopback();
        if self.keys.path.is_some() && plaintext && !self.keys.allow_plaintext {
            return Err(ConfigError::Plaintext { path: path(), listen: self.http.listen });
        }
        // A semaphore counts the bytes.
        if u32::try_from(self.http.max_buffered_bytes).is_err() {
            return Err(ConfigError::Value {
                path: path(),
                setting: "http.max_buffered_bytes",
                reason: "must be less than 4 GiB".to_owned(),
            });
        }
        self.assets().map_err(|reason| ConfigError::Asset { path: path(), reason })?;
        self.log.check().map_err(|reason| ConfigError::Log { path: path(), reason })?;
        self.traces.check().map_err(|reason| ConfigError::Traces { path: path(), reason })
    }

    /// The assets that this installation knows.
    pub fn assets(&self) -> Result<AssetRegistry, AssetDeclarationError> {
        AssetRegistry::with_declared(self.assets.iter().map(|(code, scale)| (code.as_str(), *scale)))
    }

    /// The settings of the core, without the certificate of `shards.tls`.
    pub fn core(&self) -> CoreConfig {
        CoreConfig {
            name: format!("router {} on {}", self.http.listen, telemetry::process::host_name()),
            // The assets were checked when the file was read.
            assets: self
                .assets()
                .map(|assets| assets.all().map(|(code, scale)| (code.to_string(), scale)).collect())
                .unwrap_or_default(),
            queue_operations: self.shards.queue_operations,
            waiting_requests: (self.http.max_requests_in_flight.min(self.http.max_connections) / 2).max(1),
            rpcs_in_flight: self.shards.rpcs_in_flight,
            max_batch_operations: self.shards.max_batch_operations,
            connect_timeout: Duration::from_millis(self.shards.connect_timeout_ms),
            tls: None,
            breaker_failures: self.shards.breaker_failures,
            breaker_open: Duration::from_millis(self.shards.breaker_open_ms),
            saga_poll_interval: Duration::from_millis(self.saga.poll_interval_ms),
            saga_claim_limit: self.saga.claim_limit,
        }
    }
}

// === the reference ===

const INTRODUCTION: &str = "# Configuration reference

`make configuration` writes this page: `router --print-config-reference` and `shard-node --print-config-reference` print it from the structs that read the files. Do not edit it.

The column default says `required` where a file must have the setting, and `none` where the setting may be missing and nothing takes its place. A setting that is not listed here is refused with its name. So is a number of 0, unless the meaning says what 0 does.
`--check-config` checks a file and ends; `--print-config` prints it with all defaults filled in.
";

/// `router.toml`, `keys.toml` and `shard-map.toml` as Markdown, with the beginning of the page.
///
/// # Errors
/// A setting has no doc comment.
pub fn reference() -> Result<String, ReferenceError> {
    Ok([
        INTRODUCTION.to_owned(),
        render(
            "`router.toml`",
            "A router reads it at start: `router --config router.toml`.",
            &schema_for!(Config),
        )?,
        render(
            "`keys.toml`",
            "A router reads it at start, when it changes, and on SIGHUP. `shardctl key` writes it: [keys.md](keys.md).",
            &keys::file_schema(),
        )?,
        render(
            "`shard-map.toml`",
            "Routers read it at start, when it changes, and on SIGHUP; `shard-node init` reads it. `shardctl map check FILE` says what is wrong with one.",
            &shard_map::file_schema(),
        )?,
    ]
    .join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
        [http]
        listen = "127.0.0.1:8080"
        [admin]
        listen = "127.0.0.1:9080"
        [map]
        path = "shard-map.toml"
    "#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("router.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn three_settings_are_enough_and_none_of_them_is_guessed() {
        let config = parse(LEAST).unwrap();
        assert_eq!(config.http.max_connections, 4096);
        assert_eq!(config.shards.queue_operations, 32_768);
        for (setting, line) in [
            ("http.listen", "listen = \"127.0.0.1:8080\""),
            ("admin.listen", "listen = \"127.0.0.1:9080\""),
            ("map.path", "path = \"shard-map.toml\""),
        ] {
            let error = parse(&LEAST.replace(line, "")).unwrap_err();
            assert!(error.contains(setting), "{error}");
        }
        assert!(parse("").unwrap_err().contains("http.listen"));
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = parse(&format!("{LEAST}\n[assets]\nBTC = 8\n[limits]\nrequests_per_second = 5")).unwrap();
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn mistakes_are_named() {
        for (addition, word) in [
            ("[shards]\nqueue_operation = 1", "queue_operation"),
            ("[shards]\nqueue_operations = 0", "shards.queue_operations"),
            ("[saga]\npoll_interval_ms = -1", "poll_interval_ms"),
            ("[assets]\nUSD = 3", "USD"),
            ("[assets]\nbtc = 8", "btc"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[traces]\notlp_endpoint = \"collector:4317\"", "traces.otlp_endpoint"),
            ("[traces]\nsample_ratio = 2.0", "traces.sample_ratio"),
            ("[extra]", "extra"),
        ] {
            let error = parse(&format!("{LEAST}\n{addition}")).unwrap_err();
            assert!(error.contains(word), "{addition}: {error}");
        }
        let small = LEAST.replace("[admin]", "max_buffered_bytes = 1\n[admin]");
        assert!(parse(&small).unwrap_err().contains("http.max_buffered_bytes"));
    }

    #[test]
    fn a_listener_beyond_loopback_needs_keys_unless_told_so_by_name() {
        let public = LEAST.replace("127.0.0.1:8080", "0.0.0.0:8080");
        let error = parse(&public).unwrap_err();
        assert!(error.contains("keys.path") && error.contains("keys.allow_unauthenticated"), "{error}");
        assert!(parse(&format!("{public}\n[keys]\npath = \"keys.toml\"\nallow_plaintext = true")).is_ok());
        assert!(parse(&format!("{public}\n[keys]\nallow_unauthenticated = true")).is_ok());
        assert!(parse(&LEAST.replace("127.0.0.1:8080", "[::1]:8080")).is_ok());
        let both = parse(&format!("{LEAST}\n[keys]\npath = \"keys.toml\"\nallow_unauthenticated = true"));
        assert!(both.unwrap_err().contains("keys.allow_unauthenticated"));
    }

    #[test]
    fn keys_beyond_loopback_need_tls_unless_told_so_by_name() {
        let public = LEAST.replace("127.0.0.1:8080", "0.0.0.0:8080") + "\n[keys]\npath = \"keys.toml\"";
        let error = parse(&public).unwrap_err();
        assert!(error.contains("http.tls.certificate") && error.contains("keys.allow_plaintext"), "{error}");
        assert!(parse(&format!("{public}\nallow_plaintext = true")).is_ok());
        let tls = "\n[http.tls]\ncertificate = \"router.pem\"\nkey = \"router.key\"";
        let config = parse(&format!("{public}{tls}")).unwrap();
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert!(parse(&format!("{LEAST}\n[keys]\npath = \"keys.toml\"")).is_ok());
    }

    #[test]
    fn the_map_and_the_keys_are_looked_for_beside_the_configuration() {
        let folder = std::env::temp_dir().join(format!("shardledger-config-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("router.toml");
        fs::write(&path, format!("{LEAST}\n[keys]\npath = \"keys.toml\"")).unwrap();
        let config = Config::load(&path);
        fs::remove_dir_all(&folder).unwrap();
        let config = config.unwrap();
        assert_eq!(config.map.path, folder.join("shard-map.toml"));
        assert_eq!(config.keys.path, Some(folder.join("keys.toml")));
    }

    #[test]
    fn the_page_begins_with_what_the_code_says_of_a_routers_files() {
        let page = include_str!("../../docs/operations/configuration.md");
        assert!(page.starts_with(&reference().unwrap()), "the page is out of date: run `make configuration`");
    }
}
