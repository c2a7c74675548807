//! A cluster on this machine: PostgreSQL servers, shard-nodes and routers under one data folder, kept running by a
//! supervisor.
//!
//! [`layout`] says where things lie, [`description`] what the cluster consists of (`cluster.json`), [`prepare`] makes
//! both true on disk, [`place`] tells a folder that was moved from one that was copied and [`relocation`] fits the files to
//! either, [`supervisor`] runs the processes and [`status`] looks at them from outside. What runs is read
//! from the kernel's process table and never inferred from a file, so that a killed supervisor leaves nothing lost.

pub mod configuration;
pub mod description;
pub mod failover;
pub mod files;
pub mod layout;
pub mod member;
pub mod place;
pub mod ports;
pub mod postgres;
pub mod prepare;
pub mod process;
pub mod readiness;
pub mod relocation;
pub mod status;
pub mod supervisor;

pub use description::Description;
pub use layout::Layout;
