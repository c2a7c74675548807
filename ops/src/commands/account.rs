//! `shardctl account …`

use std::process::ExitCode;

use crate::{
    context::{Context, PublicAddress},
    http_client::encoded,
    output::{self, JsonObject},
};

#[derive(clap::Subcommand)]
pub enum AccountCommand {
    /// Show an account with its balances, slot and shard
    Show(AccountShowArgs),
    /// List accounts of all shards in the order of their ids
    List(AccountListArgs),
    /// List the entries of an account, newest first
    Entries(AccountEntriesArgs),
}

#[derive(clap::Args)]
pub struct AccountShowArgs {
    /// The account's id
    id: String,
    #[command(flatten)]
    address: PublicAddress,
}

#[derive(clap::Args)]
pub struct AccountListArgs {
    /// Only accounts whose ids begin with this prefix, such as `{user42}:`
    #[arg(long, value_name = "P")]
    prefix: Option<String>,
    /// List all accounts with their balances at this time (RFC 3339, such as 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", conflicts_with = "limit")]
    at: Option<String>,
    /// List at most this many items
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[command(flatten)]
    address: PublicAddress,
}

#[derive(clap::Args)]
pub struct AccountEntriesArgs {
    /// The account's id
    id: String,
    /// Entries at this time or later (RFC 3339, such as 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Entries before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// List at most this many items
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Newest first (desc) or oldest first (asc)
    #[arg(long, value_enum, default_value_t = EntriesOrder::Desc)]
    order: EntriesOrder,
    #[command(flatten)]
    address: PublicAddress,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum EntriesOrder {
    Desc,
    Asc,
}

const COLUMNS: [&str; 7] = ["id", "asset", "status", "posted", "held", "available", "shard"];
const COLUMNS_AT: [&str; 7] = ["id", "asset", "posted", "held", "available", "version", "updated_at"];
const ENTRY_COLUMNS: [&str; 9] =
    ["version", "kind", "amount", "posted", "held", "counterparty", "transfer_id", "hold_id", "created_at"];

pub async fn run(command: AccountCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        AccountCommand::Show(args) => show(args, context).await?,
        AccountCommand::List(args) => list(args, context).await?,
        AccountCommand::Entries(args) => entries(args, context).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: AccountShowArgs, context: &Context) -> anyhow::Result<()> {
    let routers = args.address.routers(context)?;
    let account: JsonObject = routers.get(&format!("/v1/accounts/{}", encoded(&args.id))).await?;
    output::object(&account, context.json)
}

async fn list(args: AccountListArgs, context: &Context) -> anyhow::Result<()> {
    let routers = args.address.routers(context)?;
    if let Some(at) = args.at {
        let prefix = args.prefix.map(|prefix| format!("&prefix={}", encoded(&prefix))).unwrap_or_default();
        let list = routers.whole_list(&format!("/v1/accounts?at={}{prefix}", encoded(&at))).await?;
        return list.print(COLUMNS_AT, context.json);
    }
    let query = args.prefix.map(|prefix| format!("prefix={}", encoded(&prefix)));
    routers.list("/v1/accounts", query.into_iter().collect(), args.limit).await?.print(COLUMNS, context.json)
}

async fn entries(args: AccountEntriesArgs, context: &Context) -> anyhow::Result<()> {
    let routers = args.address.routers(context)?;
    let order = match args.order {
        EntriesOrder::Desc => "desc",
        EntriesOrder::Asc => "asc",
    };
    let times = [("from", args.from), ("to", args.to)].into_iter();
    let times = times.filter_map(|(name, time)| Some(format!("{name}={}", encoded(&time?))));
    let query = [format!("order={order}")].into_iter().chain(times).collect();
    let path = format!("/v1/accounts/{}/entries", encoded(&args.id));
    routers.list(&path, query, args.limit).await?.print(ENTRY_COLUMNS, context.json)
}
