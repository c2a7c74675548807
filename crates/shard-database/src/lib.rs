//! A shard's PostgreSQL database, as every program that connects to it must see it first.
//!
//! - [`address`]: from a URL to connection options that nothing in the environment changes.
//! - [`server`]: what kind of server answered, and which settings of the session are in force.
//! - [`record`]: which shard of which cluster the database says it is, and how far it has come.
//! - [`schema`]: the migrations, and which of them a database has.
//!
//! What a shard-node does with its tables is in the node's own `store`.

pub mod address;
pub mod record;
pub mod schema;
pub mod server;

pub use address::DatabaseUrl;
pub use record::{Database, ShardRecord, ShardState};
