//! A shard's PostgreSQL database as every program sees it when it connects.
//!
//! - [`account`]: the columns of an account, and how a row becomes one.
//! - [`address`]: turns a URL into connection options that the environment cannot change.
//! - [`primary`]: looks for the primary among the hosts of a URL.
//! - [`server`]: the facts of the server, and the settings in force in the session.
//! - [`journal`]: the columns of the journal, and how a row becomes a booking.
//! - [`books`]: the fold of a whole journal, compared with the rows of every projection.
//! - [`rebuild`]: reads one shard's journal and projections into [`books`].
//! - [`record`]: which shard of which cluster the database belongs to, how far it has come, and which slots it owns.
//! - [`schema`]: the migrations, and which of them a database has.
//!
//! The other statements on the ledger's tables are in the shard-node's `store`.

pub mod account;
pub mod address;
pub mod books;
pub mod journal;
pub mod primary;
pub mod rebuild;
pub mod record;
pub mod schema;
pub mod server;

pub use address::DatabaseUrl;
pub use record::{Database, OwnedSlots, ShardRecord, ShardState};
