//! `shardctl` starts a Shardledger cluster on this machine, shows its contents and checks it.
//!
//! It makes no decision about money. It calls routers over HTTP and nodes over RPC, and reads the shards' databases. Start reading at
//! [`commands`], which has one file for each noun. [`cluster`] is what `up` creates and the other commands use.

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

/// glibc's allocator takes a quarter of a router's processor time, and twice as much of it for each transfer where the router has many shards.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    commands::Cli::parse().run().await.unwrap_or_else(|error| exit::report(&error))
}
