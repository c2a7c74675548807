//! The PostgreSQL servers of a cluster: which binaries ([`server`], [`install`]), who runs them and where their data may
//! lie ([`user`]), and how a shard's database is made ([`database`], [`settings`]).

pub mod database;
pub mod install;
pub mod server;
pub mod settings;
pub mod user;
