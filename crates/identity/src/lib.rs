//! Which shard of which cluster something is, how far it has come, and whether two programs mean the same.
//!
//! Nodes, routers and `shardctl` compare what they expect with what they find before they use a connection
//! (`docs/adr/0008`). This crate holds what is compared and the rules, without I/O and without a clock: each comparison gives
//! the [`Disagreement`]s, each of which names the fact, both values and the remedy.
//!
//! - [`shard`]: cluster, shard, number, routing facts.
//! - [`mark`]: how far a shard had come when it acknowledged something.
//! - [`assets`]: the scales in use.
//! - [`time`]: clocks that should agree.

pub mod assets;
mod disagreement;
pub mod mark;
pub mod shard;
pub mod time;

pub use assets::AssetScales;
pub use disagreement::{Disagreement, Disagreements};
pub use mark::{Mark, Marks};
pub use shard::{Expected, ShardIdentity};
