//! `shardctl account show ID`

use std::process::ExitCode;

use crate::{
    commands::{Context, router_address::PublicAddress},
    http_client::encoded,
    json_object::JsonObject,
    output,
};

#[derive(clap::Args)]
pub struct Args {
    /// The account's id
    id: String,
    #[command(flatten)]
    address: PublicAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let account: JsonObject = routers.get(&format!("/v1/accounts/{}", encoded(&args.id))).await?;
    output::object(&account, context.json)?;
    Ok(ExitCode::SUCCESS)
}
