//! `shardctl hold …`

use std::process::ExitCode;

use crate::{
    context::{Context, HistoryArgs, OwnedId},
    output,
};

#[derive(clap::Subcommand)]
pub enum HoldCommand {
    /// Show a hold, and what remains of it
    Show(OwnedId),
    /// List an account's holds, newest first
    List(HistoryArgs),
}

const COLUMNS: [&str; 8] = ["id", "status", "credit", "amount", "remaining", "asset", "expires_at", "created_at"];

pub async fn run(command: HoldCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        HoldCommand::Show(id) => output::object(&id.get("/v1/holds", context).await?, context.json)?,
        HoldCommand::List(history) => history.print("/v1/holds", COLUMNS, context).await?,
    }
    Ok(ExitCode::SUCCESS)
}
