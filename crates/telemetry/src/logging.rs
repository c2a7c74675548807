//! The log: one line an event on standard error, as text for people or JSON for machines.
//!
//! ERROR means that a human must act.

use std::{fmt, io::IsTerminal, panic};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use crate::tasks::panic_message;

/// Section `[log]` of every service's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// One line an event on standard error: text for people, or JSON for machines.
    pub format: LogFormat,
    /// A level (`info`) or levels by target (`info,h2=warn`).
    pub level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
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

/// What an event is about besides its own fields, such as the request that the current task works on. Its fields appear
/// in the log as those of a span would. A span costs on every request, this only when an event is logged.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    pub name: &'static str,
    /// Calls back with each field, or not at all where there is no subject.
    pub fields: fn(&mut EachField<'_>),
}

/// Takes the name and the value of a field.
pub type EachField<'a> = dyn FnMut(&'static str, &str) + 'a;

/// Installs the log for the whole process, and a panic hook that writes to it.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    init_about(config, Subject { name: "", fields: |_| {} })
}

/// The same, with what events are about.
pub fn init_about(config: &LogConfig, subject: Subject) -> Result<(), LogError> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(config.filter()?)
        .with_writer(std::io::stderr)
        // It would report a line that cannot be written (disk full, pipe closed) on standard error, panic there, and abort in the panic hook:
        // no payment may fail because of its line in the log.
        .log_internal_errors(false);
    let format = config.format;
    let installed = match format {
        LogFormat::Text => log
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .map_event_format(|event| About { subject, format, event })
            .try_init(),
        LogFormat::Json => {
            log.json().flatten_event(true).map_event_format(|event| About { subject, format, event }).try_init()
        }
    };
    installed.map_err(|_| LogError::Installed)?;
    panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, panic = panic_message(info.payload()), "panic");
    }));
    Ok(())
}

/// Adds the subject to the lines of another format.
struct About<E> {
    subject: Subject,
    format: LogFormat,
    event: E,
}

impl<S, N, E> FormatEvent<S, N> for About<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Vec::new();
        (self.subject.fields)(&mut |name, value| fields.push((name, value.to_owned())));
        if fields.is_empty() {
            return self.event.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.event.format_event(context, Writer::new(&mut line), event)?;
        match self.format {
            LogFormat::Text => self.write_text(&mut writer, &line, &fields),
            LogFormat::Json => self.write_json(&mut writer, &line, &fields),
        }
    }
}

impl<E> About<E> {
    /// Time and level come first, then the subject.
    fn write_text(&self, writer: &mut Writer<'_>, line: &str, fields: &[(&str, String)]) -> fmt::Result {
        let (time, rest) = line.split_once(' ').unwrap_or_default();
        let (level, rest) = rest.trim_start().split_once(' ').unwrap_or_default();
        let fields = fields.iter().map(|(name, value)| format!("{name}={value:?}")).collect::<Vec<_>>().join(" ");
        write!(writer, "{time} {level:>5} {}{{{fields}}}: {rest}", self.subject.name)
    }

    /// As the members of the current span are written.
    fn write_json(&self, writer: &mut Writer<'_>, line: &str, fields: &[(&str, String)]) -> fmt::Result {
        let mut span: serde_json::Map<_, _> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        span.insert("name".to_owned(), self.subject.name.into());
        let span = serde_json::Value::from(span);
        match line.trim_end().strip_suffix('}') {
            Some(members) => writeln!(writer, "{members},\"span\":{span},\"spans\":[{span}]}}"),
            None => writer.write_str(line),
        }
    }
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

    /// The lines that an event of each format leaves.
    fn logged(format: LogFormat, subject: Subject) -> String {
        static LINES: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

        struct Lines;

        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                LINES.lock().unwrap().write(bytes)
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let _turn = ONE_AT_A_TIME.lock().unwrap();
        let log = tracing_subscriber::fmt().with_writer(|| Lines);
        let event = || tracing::warn!(shard = "s0", "gone");
        match format {
            LogFormat::Text => tracing::subscriber::with_default(
                log.with_ansi(false).map_event_format(|event| About { subject, format, event }).finish(),
                event,
            ),
            LogFormat::Json => tracing::subscriber::with_default(
                log.json().flatten_event(true).map_event_format(|event| About { subject, format, event }).finish(),
                event,
            ),
        }
        String::from_utf8(std::mem::take(&mut *LINES.lock().unwrap())).unwrap()
    }

    #[test]
    fn events_name_what_they_are_about() {
        let subject = Subject {
            name: "request",
            fields: |field| {
                field("id", "a-1");
                field("path", "/v1/\"x\"");
            },
        };
        let text = logged(LogFormat::Text, subject);
        let (_, rest) = text.split_once(' ').unwrap();
        assert_eq!(
            rest,
            " WARN request{id=\"a-1\" path=\"/v1/\\\"x\\\"\"}: telemetry::logging::tests: gone shard=\"s0\"\n"
        );

        let json: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, subject)).unwrap();
        let span = serde_json::json!({"id": "a-1", "path": "/v1/\"x\"", "name": "request"});
        assert_eq!((&json["span"], &json["spans"][0]), (&span, &span));
        assert_eq!((&json["message"], &json["shard"]), (&"gone".into(), &"s0".into()));
    }

    #[test]
    fn events_about_nothing_are_as_before() {
        let nothing = Subject { name: "request", fields: |_| {} };
        let text = logged(LogFormat::Text, nothing);
        assert!(text.ends_with("  WARN telemetry::logging::tests: gone shard=\"s0\"\n"), "{text}");
        assert!(!logged(LogFormat::Json, nothing).contains("span"));
    }
}
