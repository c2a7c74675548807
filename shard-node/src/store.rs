//! The shard's database: one file a table, one constant a statement.
//!
//! The lane writes through one [`session::Session`]; reads go through a small pool. Nothing here decides anything.

pub mod account;
pub mod account_list;
pub mod batch_write;
pub mod chain;
mod columns;
pub mod error;
pub mod evidence;
pub mod hold;
pub mod journal;
pub mod ownership;
pub mod read;
pub mod record;
pub mod register;
pub mod reversal;
pub mod row_array;
pub mod saga;
pub mod session;
pub mod shard_state;
pub mod transfer;
pub mod waypoint;

pub use error::StoreError;

/// The slot column of an account: in-transit accounts belong to the shard, not to a slot.
pub fn slot_column(id: &ledger::AccountId) -> i32 {
    if id.is_system() { -1 } else { i32::from(shard_map::slot_of(id.as_str()).index()) }
}
