//! What every service of the workspace shares and no domain crate should know: the wall clock, the task tracker, the log,
//! the metrics recorder, traces, shutdown signals and the plain routes of an admin listener.
//!
//! It never decides anything about money or routing. Two rules of the repository end here: [`clock`] is the only place
//! that reads the system's time, and [`tasks`] the only place that spawns.

pub mod admin;
pub mod clock;
pub mod logging;
pub mod metrics;
pub mod process;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod tasks;
pub mod traces;

pub use tasks::Tasks;
