//! shard-node: stands in front of one shard's PostgreSQL and is its single writer.
//!
//! Start at [`lane`]: it decides and commits what routers ask for. [`store`] holds the SQL, [`rpc`] the service, [`init`]
//! the one step that makes an empty database a shard.

mod admin;
mod config;
mod expiry;
mod init;
mod lane;
mod metric_definitions;
mod reads;
mod rpc;
mod serve;
mod store;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::config::Config;

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
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Migrate the database and claim the shard's slots as the map gives them; does nothing when that was done before
    Init {
        /// The shard map
        #[arg(long, value_name = "FILE")]
        map: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shard-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout, reason = "--print-config is asked for on standard output")]
fn run(cli: Cli) -> anyhow::Result<()> {
    let path = cli.config.context("--config FILE is missing")?;
    let config = Config::load(&path)?;
    if cli.print_config {
        print!("{}", config.redacted()?);
        return Ok(());
    }
    if cli.check_config {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start tokio")?;
    match cli.command {
        Some(Command::Init { map }) => runtime.block_on(init_shard(&config, &map)),
        None => runtime.block_on(serve::serve(config)),
    }
}

async fn init_shard(config: &Config, map: &std::path::Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(map).with_context(|| format!("cannot read {}", map.display()))?;
    let parsed = shard_map::ShardMap::parse(&text).with_context(|| map.display().to_string())?;
    let options = config.database.connect_options();
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect_with(&options)
        .await
        .context("cannot connect to the shard's database (database.url)")?;
    let shard = &config.shard.id;
    match init::init(&mut connection, shard, &parsed).await? {
        init::Initialised::Now { slots } => eprintln!("shard {shard}: initialised with {slots} slots"),
        init::Initialised::Already => eprintln!("shard {shard}: was initialised before; nothing changed"),
    }
    Ok(())
}
