//! `shardctl transfer list`

use std::process::ExitCode;

use crate::commands::{Context, pages::History};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    history: History,
}

const COLUMNS: [&str; 7] = ["id", "status", "debit", "credit", "amount", "asset", "created_at"];

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    args.history.print("/v1/transfers", COLUMNS, context).await
}
