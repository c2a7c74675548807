//! `shardctl account list`

use std::process::ExitCode;

use crate::{
    commands::{Context, pages, router_address::PublicAddress},
    http_client::encoded,
};

#[derive(clap::Args)]
pub struct Args {
    /// Only accounts whose ids begin so, such as `{user42}:`
    #[arg(long, value_name = "P")]
    prefix: Option<String>,
    /// All accounts with what they held at this time (RFC 3339, such as 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", conflicts_with = "limit")]
    at: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[command(flatten)]
    address: PublicAddress,
}

const COLUMNS: [&str; 7] = ["id", "asset", "status", "posted", "held", "available", "shard"];
const COLUMNS_AT: [&str; 7] = ["id", "asset", "posted", "held", "available", "version", "updated_at"];

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    if let Some(at) = args.at {
        let prefix = args.prefix.map(|prefix| format!("&prefix={}", encoded(&prefix))).unwrap_or_default();
        let list = pages::read_whole(&routers, &format!("/v1/accounts?at={}{prefix}", encoded(&at))).await?;
        list.print(COLUMNS_AT, context.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let query = args.prefix.map(|prefix| format!("prefix={}", encoded(&prefix)));
    let list = pages::read(&routers, "/v1/accounts", query.into_iter().collect(), args.limit).await?;
    list.print(COLUMNS, context.json)?;
    Ok(ExitCode::SUCCESS)
}
