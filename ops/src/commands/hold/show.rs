//! `shardctl hold show ID`

use std::process::ExitCode;

use uuid::Uuid;

use crate::{
    commands::{
        Context,
        router_address::{PublicAddress, owned_path},
    },
    json_object::JsonObject,
    output,
};

#[derive(clap::Args)]
pub struct Args {
    /// The hold's id
    id: Uuid,
    /// The debit account, where several have a hold under this id; spares asking every shard
    #[arg(long, value_name = "ACCOUNT")]
    debit: Option<String>,
    #[command(flatten)]
    address: PublicAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let hold: JsonObject = routers.get(&owned_path("/v1/holds", args.id, args.debit.as_deref())).await?;
    if context.json {
        output::json(&hold)?;
    } else {
        output::fields(&hold)?;
    }
    Ok(ExitCode::SUCCESS)
}
