//! The PostgreSQL servers of a cluster: the binaries ([`server`], [`install`]), the user that runs them ([`user`]),
//! the location of their data ([`home`]), and how a shard's database is created ([`database`], [`settings`], [`standby`]) and
//! recognised ([`control_file`]) and compared ([`log_end`]).

pub mod control_file;
pub mod database;
pub mod home;
pub mod install;
pub mod log_end;
pub mod server;
pub mod settings;
pub mod standby;
pub mod user;
