//! `shardctl hold show ID`

use std::process::ExitCode;

use crate::{
    commands::{
        Context,
        router_address::{OwnedId, PublicAddress},
    },
    json_object::JsonObject,
    output,
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    id: OwnedId,
    #[command(flatten)]
    address: PublicAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let hold: JsonObject = routers.get(&args.id.path("/v1/holds")).await?;
    output::object(&hold, context.json)?;
    Ok(ExitCode::SUCCESS)
}
