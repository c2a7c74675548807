//! The log: one line an event on standard error, as text for people or JSON for machines.
//!
//! ERROR means that a human must act.

use std::{io::IsTerminal, panic};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::tasks::panic_message;

/// Section `[log]` of every service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A level (`info`) or levels by target (`info,h2=warn`).
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log.level = {level:?}: {reason}")]
    Level { level: String, reason: String },
    #[error("a log is installed already")]
    Installed,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

impl LogConfig {
    /// Refuses a level that says nothing, for `--check-config`.
    pub fn check(&self) -> Result<(), LogError> {
        self.filter().map(drop)
    }

    fn filter(&self) -> Result<EnvFilter, LogError> {
        let refused = |reason: String| LogError::Level { level: self.level.clone(), reason };
        // An empty filter would be taken and would silence everything but errors.
        if self.level.trim().is_empty() {
            return Err(refused("is empty".to_owned()));
        }
        // A single word that is no level is taken as the name of a target: `level = "inof"` would log that target alone.
        let is_level = |word: &str| {
            matches!(word.to_ascii_lowercase().as_str(), "off" | "error" | "warn" | "info" | "debug" | "trace")
        };
        if let Some(word) = self.level.split(',').map(str::trim).find(|part| !part.contains('=') && !is_level(part)) {
            return Err(refused(format!("{word:?} is none of off, error, warn, info, debug, trace")));
        }
        EnvFilter::try_new(&self.level).map_err(|e| refused(e.to_string()))
    }
}

/// Installs the log for the whole process, and a panic hook that writes to it.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let log = tracing_subscriber::fmt().with_env_filter(config.filter()?).with_writer(std::io::stderr);
    let installed = match config.format {
        LogFormat::Text => {
            log.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).try_init()
        }
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    installed.map_err(|_| LogError::Installed)?;
    panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, panic = panic_message(info.payload()), "panic");
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(level: &str) -> Result<(), String> {
        LogConfig { level: level.to_owned(), ..LogConfig::default() }.check().map_err(|e| e.to_string())
    }

    #[test]
    fn levels_are_checked_before_they_are_needed() {
        for good in ["info", "WARN", "off", "info,h2=warn,router=debug"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", " ", "inof", "info,loud", "h2=loud"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("inof").unwrap_err().contains("log.level"));
    }
}
