//! `shardctl account entries ID`

use std::process::ExitCode;

use crate::{
    commands::{Context, pages, router_address::PublicAddress},
    http_client::encoded,
};

#[derive(clap::Args)]
pub struct Args {
    /// The account's id
    id: String,
    /// Entries at this time or later (RFC 3339, such as 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Entries before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Newest first (desc) or oldest first (asc)
    #[arg(long, value_enum, default_value_t = Order::Desc)]
    order: Order,
    #[command(flatten)]
    address: PublicAddress,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Order {
    Desc,
    Asc,
}

const COLUMNS: [&str; 9] =
    ["version", "kind", "amount", "posted", "held", "counterparty", "transfer_id", "hold_id", "created_at"];

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let order = match args.order {
        Order::Desc => "desc",
        Order::Asc => "asc",
    };
    let times = [("from", args.from), ("to", args.to)].into_iter();
    let times = times.filter_map(|(name, time)| Some(format!("{name}={}", encoded(&time?))));
    let query = [format!("order={order}")].into_iter().chain(times).collect();
    let path = format!("/v1/accounts/{}/entries", encoded(&args.id));
    pages::read(&routers, &path, query, args.limit).await?.print(COLUMNS, context.json)?;
    Ok(ExitCode::SUCCESS)
}
