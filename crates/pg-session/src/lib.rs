//! One PostgreSQL session that sends a whole transaction as one flight of messages.
//!
//! The lane writes a batch with a single simple-protocol script: `BEGIN`, reads, updates, `COPY … FROM STDIN`,
//! `COMMIT`. [`Session::run`] sends the script and the rows of the `COPY` together and then reads all answers, so that a
//! batch costs one round trip. sqlx waits for the server between these messages and leaves Nagle's algorithm on, which is
//! why this crate exists beside it.
//!
//! - [`options`]: where and as whom to connect, from a URL alone.
//! - [`session`]: the session, its scripts and their results.
//! - [`copy`]: the encoder of the rows of a binary `COPY`.
//! - [`error`]: what can go wrong, and what the server said.

pub mod copy;
pub mod error;
pub mod options;
pub mod session;
mod socket;
mod startup;

pub use copy::{CopyBuffer, last_row};
pub use error::{Error, ServerMessage, Severity};
pub use options::{ConnectOptions, InvalidOptions};
pub use session::{Completed, Session, Tag, TransactionStatus};
