//! `shardctl transfer show ID`

use std::process::ExitCode;

use serde_json::Value;
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
    /// The transfer's id
    id: Uuid,
    /// The debit account, where several have a transfer under this id; spares asking every shard
    #[arg(long, value_name = "ACCOUNT")]
    debit: Option<String>,
    #[command(flatten)]
    address: PublicAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let path = owned_path("/v1/transfers", args.id, args.debit.as_deref());
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
