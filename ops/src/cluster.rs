//! A cluster on this machine: PostgreSQL servers, nodes and routers with one data folder. A supervisor keeps them running.
//!
//! [`layout`] has the locations of the files. [`description`] has the parts of the cluster (`cluster.json`). [`prepare`] creates both on
//! disk. [`place`] distinguishes a folder that was moved from one that was copied, and [`relocation`] adapts the files to either.
//! [`supervisor`] runs the processes, and [`status`] examines them from outside. The kernel's process table, and never a file, says which
//! processes run. The processes of a killed supervisor are therefore always found.

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
