//! `shardctl saga retry ID`

use std::process::ExitCode;

use uuid::Uuid;

use crate::{
    commands::{Context, router_address::AdminAddress},
    json_object::JsonObject,
    output,
};

#[derive(clap::Args)]
pub struct Args {
    /// The transfer's id
    id: Uuid,
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let answer: JsonObject = args.address.routers(context)?.post(&format!("/admin/sagas/{}/retry", args.id)).await?;
    if context.json {
        output::json(&answer)?;
    } else {
        output::fields(&answer)?;
    }
    Ok(ExitCode::SUCCESS)
}
