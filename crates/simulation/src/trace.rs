//! What happened in a run, in the order in which it happened: time, who, what.
//!
//! A run without a trace formats nothing. The run is the same with and without one.

use std::{
    cell::RefCell,
    fmt::Display,
    hash::{DefaultHasher, Hasher},
    io,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The virtual time at which every run begins: 2026-01-01T00:00:00Z.
pub const BEGIN_US: i64 = 1_767_225_600_000_000;

/// Microseconds from [`BEGIN_US`] to a virtual time.
pub fn since_begin(now_us: i64) -> u64 {
    u64::try_from(now_us - BEGIN_US).unwrap_or(0)
}

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// A trace under way in this thread.
pub struct Recording {
    _logs: tracing::subscriber::DefaultGuard,
}

/// Keeps a trace of what happens in this thread, with the log lines of the code that runs.
pub fn record() -> Recording {
    LINES.set(Some(Vec::new()));
    let logs = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::DEBUG)
        .with_writer(LogLines)
        .with_ansi(false)
        .without_time()
        .finish();
    Recording { _logs: tracing::subscriber::set_default(logs) }
}

impl Recording {
    /// The trace, and its hash.
    pub fn finish(self) -> (Vec<String>, u64) {
        let lines = LINES.take().unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        for line in &lines {
            hasher.write(line.as_bytes());
            hasher.write_u8(b'\n');
        }
        (lines, hasher.finish())
    }
}

/// Notes what happened, if a trace is kept.
pub fn note(who: impl Display, what: impl FnOnce() -> String) {
    LINES.with_borrow_mut(|lines| {
        if let Some(lines) = lines {
            let us = telemetry::simulation::now_us().unwrap_or(BEGIN_US) - BEGIN_US;
            lines.push(format!("{:>4}.{:03} {who:<10} {}", us / 1_000_000, us / 1_000 % 1_000, what()));
        }
    });
}

/// Writes log lines into the trace.
struct LogLines;

impl<'w> MakeWriter<'w> for LogLines {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        Self
    }
}

impl io::Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        note("  log", || String::from_utf8_lossy(line).trim_end().to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
