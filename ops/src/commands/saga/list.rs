//! `shardctl saga list`

use std::process::ExitCode;

use serde_json::Value;

use crate::{
    commands::{Context, router_address::AdminAddress},
    exit,
    http_client::encoded,
    output,
};

#[derive(clap::Args)]
pub struct Args {
    /// Only those that are `pending`, or those that recovery has `retried`
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only those begun longer ago, in seconds
    #[arg(long, value_name = "S")]
    older_than: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u16,
    #[command(flatten)]
    address: AdminAddress,
}

const FIELDS: [&str; 9] =
    ["id", "state", "source", "destination", "debit", "credit", "asset", "attempts", "next_attempt_at"];

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let mut path = format!("/admin/sagas?limit={}", args.limit);
    if let Some(state) = &args.state {
        path.push_str(&format!("&state={}", encoded(state)));
    }
    if let Some(seconds) = args.older_than {
        path.push_str(&format!("&older_than_s={seconds}"));
    }
    let answer: Value = args.address.routers(context)?.get(&path).await?;
    if context.json {
        output::json(&answer)?;
    } else {
        let sagas = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rows: Vec<[String; 9]> =
            sagas.iter().map(|saga| FIELDS.map(|field| output::cell(&saga[field]))).collect();
        output::table(FIELDS, &rows)?;
    }
    // A list that lacks a shard's sagas must not pass for the whole.
    let unreachable = answer["unreachable"].as_array().map(Vec::as_slice).unwrap_or_default();
    for shard in unreachable {
        output::note(&format!("shard {} did not answer", output::cell(shard)));
    }
    Ok(if unreachable.is_empty() { ExitCode::SUCCESS } else { exit::unreachable() })
}
