//! The command line. Each noun has a file with the arguments and a function for each verb. A command with a module of its own, such as
//! `crate::verify`, has them in that module.

mod account;
mod down;
mod hold;
mod key;
mod map;
mod saga;
mod shard;
mod slot_move;
mod status;
mod tls;
mod transfer;
mod up;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    bench,
    cluster::{
        Layout,
        files::{self, Lock},
    },
    context::Context,
    doctor, import, output, reconcile, replay, trust, verify,
};

/// Starts, inspects and checks a Shardledger cluster.
#[derive(Parser)]
#[command(name = "shardctl", version, max_term_width = 120, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(flatten)]
    trust: trust::TrustArgs,
    #[command(subcommand)]
    command: ShardctlCommand,
}

#[derive(Subcommand)]
enum ShardctlCommand {
    /// Start a cluster on this machine and keep it running
    Up(up::UpArgs),
    /// Stop the cluster; the data stays unless --wipe is given
    Down(down::DownArgs),
    /// Show what runs, where and in which state
    Status(status::StatusArgs),
    /// Compare what nodes and routers report about themselves, about each other and about the shard map
    Doctor(doctor::DoctorArgs),
    /// Shard maps: show, check, diff, reload
    #[command(subcommand)]
    Map(map::MapCommand),
    /// Keys of the HTTP API: create, list, rotate, revoke
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Private authority and its certificates: init, issue, show, renew
    #[command(subcommand)]
    Tls(tls::TlsCommand),
    /// Shards: add, drain, remove, list
    #[command(subcommand)]
    Shard(shard::ShardCommand),
    /// Moves of slots between shards: plan, apply, status, verify, cutover, reverse, abort, finish, report
    #[command(subcommand)]
    Move(slot_move::MoveCommand),
    /// Accounts
    #[command(subcommand)]
    Account(account::AccountCommand),
    /// Transfers
    #[command(subcommand)]
    Transfer(transfer::TransferCommand),
    /// Holds
    #[command(subcommand)]
    Hold(hold::HoldCommand),
    /// Cross-shard transfers under way
    #[command(subcommand)]
    Saga(saga::SagaCommand),
    /// Import accounts, or opening balances, from a CSV file
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Check the invariants of a live cluster in its databases
    Verify(verify::VerifyArgs),
    /// List what shards lost when their databases were accepted without acknowledged payments
    Reconcile(reconcile::ReconcileArgs),
    /// Replay a real bank's transactions and compare the balances with its own
    Replay(replay::ReplayArgs),
    /// Measure running routers under load, or run an experiment in clusters of its own
    Bench(Box<bench::BenchArgs>),
    /// Print the completion script of a shell
    Completions { shell: Shell },
    /// Keep the cluster's processes running (started by `up`)
    #[command(hide = true)]
    Supervise(up::SuperviseArgs),
    /// Find the PostgreSQL server, or install one if there is none
    #[command(hide = true, subcommand)]
    Postgres(up::PostgresCommand),
}

/// How long an `up` or `down` waits for another one to finish.
const ALONE_PATIENCE: Duration = Duration::from_secs(180);

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failure, 2 usage, 3 a check found a violation, 4 unreachable, 5 not confirmed, or outcome unknown";

impl Cli {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let context = &self.context;
        trust::choose(self.trust, context.data_dir.clone());
        match self.command {
            ShardctlCommand::Up(args) => up::run(args, context).await,
            ShardctlCommand::Down(args) => down::run(args, context).await,
            ShardctlCommand::Status(args) => status::run(args, context).await,
            ShardctlCommand::Doctor(args) => doctor::run(args, context).await,
            ShardctlCommand::Map(command) => map::run(command, context).await,
            ShardctlCommand::Key(command) => key::run(command, context).await,
            ShardctlCommand::Tls(command) => tls::run(command, context).await,
            ShardctlCommand::Shard(command) => shard::run(command, context).await,
            ShardctlCommand::Move(command) => slot_move::run(command, context).await,
            ShardctlCommand::Account(command) => account::run(command, context).await,
            ShardctlCommand::Transfer(command) => transfer::run(command, context).await,
            ShardctlCommand::Hold(command) => hold::run(command, context).await,
            ShardctlCommand::Saga(command) => saga::run(command, context).await,
            ShardctlCommand::Import(command) => import::run(command, context).await,
            ShardctlCommand::Verify(args) => verify::run(args, context).await,
            ShardctlCommand::Reconcile(args) => reconcile::run(args, context).await,
            ShardctlCommand::Replay(args) => replay::run(args, context).await,
            ShardctlCommand::Bench(args) => bench::run(*args, context).await,
            ShardctlCommand::Completions { shell } => completions(shell),
            ShardctlCommand::Supervise(args) => up::run_supervisor(args, context).await,
            ShardctlCommand::Postgres(command) => up::postgres(command, context).await,
        }
    }
}

/// Takes the lock that `up` and `down` hold while they work on a cluster. Two of them at once would undo each other's work.
async fn alone(layout: &Layout) -> anyhow::Result<Lock> {
    if let Some(pid) = files::lock_holder(&layout.command_lock())? {
        output::note(&format!("waiting for another `up` or `down` (process {pid})"));
    }
    let taken = files::take_lock(&layout.command_lock(), ALONE_PATIENCE).await?;
    taken.with_context(|| format!("another `up` or `down` is still at work in {}", layout.root().display()))
}

fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "shardctl", &mut script);
    output::data(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
