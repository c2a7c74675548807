//! The exit codes, which are the same for every command: 0 ok, 1 failure, 2 usage (from clap), 3 a check found a violation, 4 unreachable, 5
//! not confirmed (by the operator, or by the ledger, so that the outcome is unknown).

use std::process::ExitCode;

const FAILURE: u8 = 1;
const VIOLATION: u8 = 3;
const UNREACHABLE: u8 = 4;
const NOT_CONFIRMED: u8 = 5;

/// A server that the command called did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{what} is unreachable: {reason}")]
pub struct Unreachable {
    pub what: String,
    pub reason: String,
}

/// A request that moves money may or may not have been executed.
#[derive(Debug, thiserror::Error)]
#[error("the outcome of {what} is unknown ({reason}): {remedy}")]
pub struct OutcomeUnknown {
    pub what: String,
    pub reason: String,
    /// How to find the outcome.
    pub remedy: String,
}

/// A command that destroys something was not confirmed.
#[derive(Debug, thiserror::Error)]
#[error("not confirmed, nothing was done (--yes confirms without asking)")]
pub struct NotConfirmed;

/// The exit code of a check that completed and found a violation.
pub fn violation() -> ExitCode {
    ExitCode::from(VIOLATION)
}

/// The exit code of a command that failed and has printed why.
pub fn failure() -> ExitCode {
    ExitCode::from(FAILURE)
}

/// The exit code of a command that reached no server and has printed that.
pub fn unreachable() -> ExitCode {
    ExitCode::from(UNREACHABLE)
}

/// Prints the error with its causes. Returns the exit code for this kind of error.
pub fn report(error: &anyhow::Error) -> ExitCode {
    crate::output::note(&format!("error: {error:#}"));
    if error.chain().any(|cause| cause.is::<Unreachable>()) {
        unreachable()
    } else if error.chain().any(|cause| cause.is::<NotConfirmed>() || cause.is::<OutcomeUnknown>()) {
        ExitCode::from(NOT_CONFIRMED)
    } else {
        failure()
    }
}
