//! The facts that programs of a cluster compare before they trust a connection: which shard of which cluster a
//! database or node is, and how far it has come.
//!
//! Nodes, routers and `shardctl` compare what they expect with what they find before they use a connection
//! (`docs/adr/0008`). This crate holds the compared facts and the rules, without I/O and without a clock. Each
//! comparison returns [`Disagreement`]s that name the fact, both values and the remedy.
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
