//! shard-node: the single writer of one shard, in front of the shard's PostgreSQL.
//!
//! Start at [`lane`]: it decides and commits what routers ask for. [`gate`] decides whether the database may be
//! served; [`monitor`] and [`peers`] supply its facts, and [`hosts`] knows which host of the URL is used. [`store`] holds the SQL and [`rpc`] the service. [`init`],
//! [`migrate`] and [`accept`] run only when an operator orders them; serving never does what they do.

mod accept;
mod admin;
mod clock;
mod config;
mod durable;
mod expiry;
mod fold;
mod gate;
mod gauges;
mod hosts;
mod init;
mod lane;
mod metric_definitions;
mod migrate;
mod monitor;
mod moves;
mod peers;
mod reads;
mod role;
mod rpc;
mod serve;
mod short_timer;
#[cfg(feature = "simulation")]
pub mod simulation;
mod store;
mod tail;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{ArgGroup, Parser, Subcommand};
use shard_database::schema;
use shard_map::ShardMap;
use sqlx::{Connection, PgConnection};

use crate::{accept::Accepted, config::Config, gate::Gate, hosts::Hosts, init::Initialised};

#[derive(Debug, Parser)]
#[command(version, about = "The single writer in front of one Shardledger shard", long_about = None)]
struct Cli {
    /// Configuration file (TOML)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check_config: bool,
    /// Print the configuration with defaults filled in and secrets hidden, and exit
    #[arg(long)]
    print_config: bool,
    /// Print the reference of the configuration file (Markdown) and exit
    #[arg(long)]
    print_config_reference: bool,
    /// Serve without waiting until another shard or a router confirms that the database has every acknowledged payment.
    /// Use it only if all of them are lost
    #[arg(long)]
    alone: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn an empty database into the shard, after asking the nodes of all other shards; no effect on an initialised
    /// one
    Init {
        /// The shard map
        #[arg(long, value_name = "FILE")]
        map: PathBuf,
        /// How long to wait for the nodes of the other shards to answer
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
    /// Show or apply the migrations that the database lacks
    #[command(group = ArgGroup::new("what").required(true).args(["dry_run", "apply"]))]
    Migrate {
        /// Print what each migration locks and for about how long; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Apply the migrations
        #[arg(long)]
        apply: bool,
    },
    /// Accept the database as it is now, after it was moved into another PostgreSQL, copied within one, or restored to
    /// an earlier point
    Accept {
        /// Give up everything that was acknowledged and is missing from the database
        #[arg(long)]
        accept_loss: bool,
        /// How long to wait for the nodes of the other shards to answer
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shard-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if cli.print_config_reference {
        say(Config::reference()?.trim_end());
        return Ok(());
    }
    let path = cli.config.context("--config FILE is missing")?;
    let config = Config::load(&path)?;
    if cli.print_config {
        say(config.redacted()?.trim_end());
        return Ok(());
    }
    if cli.check_config {
        return Ok(());
    }
    // The lane is one task. Around it, a second thread would cost more in wake-ups between threads than it takes off the
    // first one (docs/adr/0009, "One thread").
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    runtime.block_on(async {
        match cli.command {
            None => serve::serve(config, cli.alone).await,
            Some(Command::Init { map, wait }) => init_shard(&config, &map, Duration::from_secs(wait)).await,
            Some(Command::Migrate { apply, .. }) => migrate_shard(&config, apply).await,
            Some(Command::Accept { accept_loss, wait }) => {
                accept_database(&config, accept_loss, Duration::from_secs(wait)).await
            }
        }
    })
}

/// Pause between two attempts to reach the nodes of the other shards.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Prints the result of a command to standard output; everything else goes to standard error.
#[allow(clippy::print_stdout, reason = "the only place that prints results")]
fn say(text: &str) {
    println!("{text}");
}

async fn connect(config: &Config) -> anyhow::Result<PgConnection> {
    let hosts = Hosts::new(&config.database).context("database.url")?;
    let limit = config.database.connect_timeout();
    let connected = store::session::connect_to_primary(&hosts, limit, "shard-node").await;
    connected.context("cannot connect to the shard's database (database.url)")
}

async fn init_shard(config: &Config, map: &Path, patience: Duration) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(map).with_context(|| format!("cannot read {}", map.display()))?;
    let parsed = ShardMap::parse(&text).with_context(|| map.display().to_string())?;
    let mut connection = connect(config).await?;
    let shard = &config.shard.id;
    let (gate, latest) = (Gate::new(config.expected()), Instant::now() + patience);
    let tls = config.rpc.mutual_tls().context("rpc.tls")?;
    let initialised = loop {
        match init::init(&mut connection, &gate, &parsed, tls.as_ref()).await {
            Err(error) if error.may_pass() && Instant::now() < latest => tokio::time::sleep(ASK_AGAIN).await,
            outcome => break outcome,
        }
    };
    connection.close().await?;
    match initialised? {
        Initialised::Founded { slots } => eprintln!("shard {shard}: initialised with {slots} slots"),
        Initialised::Added => {
            eprintln!("shard {shard}: initialised without slots; next: shardctl move plan --balance")
        }
        Initialised::Already => eprintln!("shard {shard}: is already initialised; nothing changed"),
    }
    Ok(())
}

async fn migrate_shard(config: &Config, apply: bool) -> anyhow::Result<()> {
    let mut connection = connect(config).await?;
    let Some(pending) = migrate::pending(&mut connection, &config.expected()).await? else {
        eprintln!("shard {}: the database holds no shard; there is nothing to migrate", config.shard.id);
        return Ok(connection.close().await?);
    };
    if pending.is_empty() {
        eprintln!("shard {}: has schema version {}, nothing to do", config.shard.id, schema::VERSION);
    }
    for migration in pending {
        if apply {
            say(&migrate::apply(&mut connection, migration).await?);
        } else {
            migrate::describe(&mut connection, migration).await?.iter().for_each(|line| say(line));
        }
    }
    Ok(connection.close().await?)
}

async fn accept_database(config: &Config, accept_loss: bool, patience: Duration) -> anyhow::Result<()> {
    let mut connection = connect(config).await?;
    let tls = config.rpc.mutual_tls().context("rpc.tls")?;
    let gate = Gate::new(config.expected());
    let accepted = accept::accept(&mut connection, &gate, accept_loss, patience, tls.as_ref()).await?;
    connection.close().await?;
    let shard = &config.shard.id;
    match accepted {
        Accepted::Nothing => {
            eprintln!("shard {shard}: the database is in its last known state; there is nothing to accept")
        }
        Accepted::Incarnation { mark, lost, silent } => {
            if let Some(lost) = lost {
                eprintln!(
                    "shard {shard}: everything acknowledged up to {lost} that is missing from the database is given up"
                );
            }
            for no_answer in silent {
                eprintln!("shard {shard}: {no_answer}; what it remembers was not considered");
            }
            say(&format!("shard {shard}: continues at {mark}"));
            eprintln!("shard {shard}: start the node if it does not run, then run `shardctl verify`");
            if accept_loss {
                eprintln!("shard {shard}: have clients send the missing payments again with the same ids");
            }
        }
    }
    Ok(())
}
