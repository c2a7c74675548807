//! `shardctl hold list`

use std::process::ExitCode;

use crate::commands::{Context, pages::History};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    history: History,
}

const COLUMNS: [&str; 8] = ["id", "status", "credit", "amount", "remaining", "asset", "expires_at", "created_at"];

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    args.history.print("/v1/holds", COLUMNS, context).await
}
