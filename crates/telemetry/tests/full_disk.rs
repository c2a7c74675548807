//! A log that cannot be written ends no program.

use std::{env, fs::File, process::Command};

use telemetry::logging::{self, LogConfig};

/// Set in the process that the test starts.
const CHILD: &str = "SHARDLEDGER_TEST_LOG_TO_FULL_DISK";

#[test]
fn a_line_that_cannot_be_written_ends_nothing() {
    if env::var_os(CHILD).is_some() {
        logging::init(&LogConfig::default()).unwrap();
        for number in 0..3 {
            tracing::info!(number, "a line");
        }
        return;
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_line_that_cannot_be_written_ends_nothing"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .stderr(full)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
