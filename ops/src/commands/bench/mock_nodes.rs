//! `shardctl bench mock-nodes`: nodes without databases, started by `bench scaling`.

use std::process::ExitCode;

use crate::bench::scaling::mock;

/// Serves until standard input ends. The first line of standard output is the port; each line of standard input is answered
/// with the number of calls and operations so far.
#[derive(clap::Args)]
pub struct Args {
    /// Shards to serve, each on a loopback address of its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    shards: u16,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    mock::serve(args.shards).await?;
    Ok(ExitCode::SUCCESS)
}
