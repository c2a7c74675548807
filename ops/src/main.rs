//! `shardctl`: starts a Shardledger cluster on this machine, shows what it holds and checks it.
//!
//! It decides nothing about money: it talks to routers over HTTP, to nodes over their RPC, and reads the shards'
//! databases. Start at [`commands`], one file for each noun; [`cluster`] is what `up` builds and the others find.

mod authority;
mod bench;
mod cluster;
mod commands;
mod context;
mod doctor;
mod exit;
mod http_client;
mod import;
mod output;
mod reconcile;
mod replay;
mod resharding;
mod trust;
mod verify;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    commands::Cli::parse().run().await.unwrap_or_else(|error| exit::report(&error))
}
