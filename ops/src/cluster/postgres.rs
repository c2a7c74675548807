//! The PostgreSQL servers of a cluster: which binaries ([`server`], [`install`]), who runs them ([`user`]), where their
//! data lies ([`home`]), how a shard's database is made ([`database`], [`settings`]) and recognised ([`control_file`]).

pub mod control_file;
pub mod database;
pub mod home;
pub mod install;
pub mod server;
pub mod settings;
pub mod user;
