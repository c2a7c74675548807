//! Resharding as an operator orders it: plans, moves of slots, and the map file.
//!
//! The nodes do the work and keep it going; this side asks them ([`nodes`]), decides what to move ([`plan`]), estimates how long that
//! takes ([`estimate`]), shows what happens ([`view`]) and keeps the map file up to date ([`map_file`]).

pub mod estimate;
pub mod map_file;
pub mod nodes;
pub mod plan;
pub mod view;
