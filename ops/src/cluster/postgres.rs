//! The PostgreSQL servers of a cluster: the binaries and the user that runs them ([`server`], [`install`]), the location of
//! their data ([`home`]), and how a shard's database is created ([`database`], [`settings`], [`standby`]), recognised and compared
//! ([`stopped_server`]).

pub mod database;
pub mod home;
pub mod install;
pub mod server;
pub mod settings;
pub mod standby;
pub mod stopped_server;
