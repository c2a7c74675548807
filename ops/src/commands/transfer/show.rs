//! `shardctl transfer show ID`

use std::process::ExitCode;

use crate::{
    commands::{
        Context,
        router_address::{OwnedId, PublicAddress},
    },
    json_object::JsonObject,
    output,
};
use serde_json::Value;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    id: OwnedId,
    #[command(flatten)]
    address: PublicAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let path = args.id.path("/v1/transfers");
    let mut transfer: JsonObject = routers.get(&path).await?;
    if context.json {
        output::json(&transfer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let steps = transfer.remove("steps");
    output::fields(&transfer)?;
    if let Some(Value::Array(steps)) = steps {
        let rows: Vec<[String; 3]> =
            steps.iter().map(|step| ["step", "shard", "at"].map(|field| output::cell(&step[field]))).collect();
        output::data("")?;
        output::table(["step", "shard", "at"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}
