//! The shard's database: one file for each table, one constant for each statement.
//!
//! The lane writes through one [`session::Session`]; reads use a small pool. This module decides nothing.

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

/// The slot column of an in-transit account, which belongs to the shard and to no slot.
pub fn slot_column(id: &ledger::AccountId) -> i32 {
    if id.is_system() { -1 } else { i32::from(shard_map::slot_of(id.as_str()).index()) }
}
