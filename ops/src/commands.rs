//! The command line. One file per command, each with its `Args` and a `run` that gives the exit code.

mod account;
mod bench;
mod completions;
mod doctor;
mod down;
mod hold;
mod import;
mod key;
mod map;
mod pages;
mod postgres;
mod reconcile;
mod replay;
mod router_address;
mod saga;
mod shard;
mod slot_move;
mod status;
mod supervise;
mod tls;
mod transfer;
mod up;
mod verify;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::{
    cluster::{
        Layout,
        lock::{self, Lock},
    },
    output, trust,
};

/// Starts, inspects and checks a Shardledger cluster.
#[derive(Parser)]
#[command(name = "shardctl", version, max_term_width = 120, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(flatten)]
    trust: trust::Args,
    #[command(subcommand)]
    command: Command,
}

/// What every command is given.
#[derive(Args)]
pub struct Context {
    /// Folder of the cluster on this machine
    #[arg(long, global = true, value_name = "DIR", env = "SHARDLEDGER_DATA_DIR", default_value = "./.shardledger")]
    pub data_dir: PathBuf,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine and keep it running
    Up(up::Args),
    /// Stop the cluster; the data stays unless --wipe says otherwise
    Down(down::Args),
    /// Show what runs, where and in which state
    Status(status::Args),
    /// Compare what nodes and routers say of themselves, of each other and of the shard map
    Doctor(doctor::Args),
    /// Shard maps: show, check, diff, reload
    #[command(subcommand)]
    Map(map::Command),
    /// Keys of the HTTP API: create, list, rotate, revoke
    #[command(subcommand)]
    Key(key::Command),
    /// A private authority and its certificates: init, issue, show, renew
    #[command(subcommand)]
    Tls(tls::Command),
    /// Shards: add, drain, remove, list
    #[command(subcommand)]
    Shard(shard::Command),
    /// Moves of slots between shards: plan, apply, status, verify, cutover, reverse, abort, finish, report
    #[command(subcommand)]
    Move(slot_move::Command),
    /// Accounts
    #[command(subcommand)]
    Account(account::Command),
    /// Transfers
    #[command(subcommand)]
    Transfer(transfer::Command),
    /// Holds
    #[command(subcommand)]
    Hold(hold::Command),
    /// Cross-shard transfers under way
    #[command(subcommand)]
    Saga(saga::Command),
    /// Import accounts, or opening balances, from a CSV file
    #[command(subcommand)]
    Import(import::Command),
    /// Check the invariants of a live cluster in its databases
    Verify(verify::Args),
    /// List what shards lost when their databases were accepted without acknowledged payments
    Reconcile(reconcile::Args),
    /// Replay a real bank's transactions and compare the balances with its own
    Replay(replay::Args),
    /// Measure running routers under load, or compare with a PL/pgSQL transfer function
    Bench(Box<bench::Args>),
    /// Print the completion script of a shell
    Completions(completions::Args),
    /// Keep the cluster's processes running (started by `up`)
    #[command(hide = true)]
    Supervise(supervise::Args),
    /// Find the PostgreSQL server, installing it where there is none
    #[command(hide = true, subcommand)]
    Postgres(postgres::Command),
}

/// How long `up` and `down` wait for each other.
const ALONE_PATIENCE: Duration = Duration::from_secs(180);

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failure, 2 usage, 3 a check found a violation, 4 unreachable, 5 not confirmed, or outcome unknown";

impl Cli {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let context = &self.context;
        trust::choose(self.trust, context.data_dir.clone());
        match self.command {
            Command::Up(args) => up::run(args, context).await,
            Command::Down(args) => down::run(args, context).await,
            Command::Status(args) => status::run(args, context).await,
            Command::Doctor(args) => doctor::run(args, context).await,
            Command::Map(command) => map::run(command, context).await,
            Command::Key(command) => key::run(command, context).await,
            Command::Tls(command) => tls::run(command, context).await,
            Command::Shard(command) => shard::run(command, context).await,
            Command::Move(command) => slot_move::run(command, context).await,
            Command::Account(command) => account::run(command, context).await,
            Command::Transfer(command) => transfer::run(command, context).await,
            Command::Hold(command) => hold::run(command, context).await,
            Command::Saga(command) => saga::run(command, context).await,
            Command::Import(command) => import::run(command, context).await,
            Command::Verify(args) => verify::run(args, context).await,
            Command::Reconcile(args) => reconcile::run(args, context).await,
            Command::Replay(args) => replay::run(args, context).await,
            Command::Bench(args) => bench::run(*args, context).await,
            Command::Completions(args) => completions::run(args),
            Command::Supervise(args) => supervise::run(args, context).await,
            Command::Postgres(command) => postgres::run(command, context).await,
        }
    }
}

/// Held by `up` and `down` while they work on a cluster: two at once would each undo what the other does.
async fn alone(layout: &Layout) -> anyhow::Result<Lock> {
    if let Some(pid) = lock::holder(&layout.command_lock())? {
        output::note(&format!("waiting for another `up` or `down` (process {pid})"));
    }
    let taken = lock::take(&layout.command_lock(), ALONE_PATIENCE).await?;
    taken.with_context(|| format!("another `up` or `down` is still at work in {}", layout.root().display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
