//! `shardctl map reload`: every router of the cluster reads its file again; 1 if any refuses, 4 if any is unreachable.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    commands::{Context, router_address::AdminAddress},
    exit::{self, Unreachable},
    output,
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let mut answers = Vec::new();
    let (mut refused, mut unreachable) = (false, false);
    for url in &routers.urls {
        match routers.client.post::<Value>(&format!("{url}/admin/shard-map/reload"), "").await {
            Ok(answer) => answers.push(json!({"router": url, "ok": true, "answer": answer})),
            Err(error) => {
                if error.is::<Unreachable>() {
                    unreachable = true
                } else {
                    refused = true
                }
                answers.push(json!({"router": url, "ok": false, "error": error.to_string()}));
            }
        }
    }
    if context.json {
        output::json(&answers)?;
    } else {
        let said = |answer: &Value| if answer["ok"] == true { &answer["answer"] } else { &answer["error"] }.clone();
        let rows: Vec<[String; 2]> =
            answers.iter().map(|answer| [output::cell(&answer["router"]), output::cell(&said(answer))]).collect();
        output::table(["router", "answer"], &rows)?;
    }
    Ok(match (refused, unreachable) {
        (true, _) => exit::failure(),
        (false, true) => exit::unreachable(),
        (false, false) => ExitCode::SUCCESS,
    })
}
