//! Which shard an account belongs to: `account id → slot → shard`.
//!
//! [`slot_of`] hashes an id to one of [`SLOTS`] slots and never changes its mind; a [`ShardMap`] says which shard has each
//! slot, and where that shard's nodes are. Start at [`map`]. This crate reads no file and keeps no state: loading,
//! reloading and swapping maps is the router's.
//!
//! A map is a hint for routing. Who may write a slot is decided by the `slot_ownership` table of each shard alone.

mod cluster;
mod error;
mod hash;
pub mod map;
mod slot;
mod succession;
mod text;
mod validate;

pub use cluster::{ClusterId, InvalidClusterId};
pub use error::{MapError, MapProblem, Reason};
pub use hash::{HASH_SEED, routing_key, slot_of};
pub use map::{MAX_SHARD_NUMBER, RemovedShard, Shard, ShardIndex, ShardMap};
pub use slot::{InvalidSlotRange, NoSuchSlot, SLOTS, Slot, SlotRange, merge_slots};
pub use succession::{Endpoints, MapDiff, SlotMove};
pub use text::file_schema;
