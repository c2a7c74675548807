//! `shardctl saga …`: cross-shard transfers under way.

use std::process::ExitCode;

use serde_json::Value;
use uuid::Uuid;

use super::transfer;
use crate::{
    context::{AdminAddress, Context, OwnedId},
    exit,
    http_client::encoded,
    output::{self, JsonObject},
};

#[derive(clap::Subcommand)]
pub enum SagaCommand {
    /// List the sagas under way, oldest first
    List(SagaListArgs),
    /// Show a saga with its steps, under way or finished
    Show(OwnedId),
    /// Retry this transfer now
    Retry(SagaRetryArgs),
}

#[derive(clap::Args)]
pub struct SagaListArgs {
    /// Only sagas that are `pending`, or that recovery has `retried`
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only sagas that began more than S seconds ago
    #[arg(long, value_name = "S")]
    older_than: Option<u64>,
    /// List at most this many items
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u16,
    #[command(flatten)]
    address: AdminAddress,
}

#[derive(clap::Args)]
pub struct SagaRetryArgs {
    /// The transfer's id
    id: Uuid,
    #[command(flatten)]
    address: AdminAddress,
}

const FIELDS: [&str; 10] =
    ["id", "state", "amount", "asset", "source", "destination", "debit", "credit", "attempts", "next_attempt_at"];
const COLUMNS: [&str; 11] =
    ["age", "id", "state", "amount", "asset", "source", "destination", "debit", "credit", "attempts", "next attempt"];

pub async fn run(command: SagaCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        SagaCommand::List(args) => return list(args, context).await,
        // A saga is part of its transfer, which has the steps.
        SagaCommand::Show(id) => transfer::show(id, context).await?,
        SagaCommand::Retry(args) => {
            let path = format!("/admin/sagas/{}/retry", args.id);
            let answer: JsonObject = args.address.routers(context)?.post(&path).await?;
            output::object(&answer, context.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(args: SagaListArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let mut path = format!("/admin/sagas?limit={}", args.limit);
    if let Some(state) = &args.state {
        path.push_str(&format!("&state={}", encoded(state)));
    }
    if let Some(seconds) = args.older_than {
        path.push_str(&format!("&older_than_s={seconds}"));
    }
    let mut answer: Value = args.address.routers(context)?.get(&path).await?;
    if let Some(sagas) = answer["data"].as_array_mut() {
        sagas.sort_by_key(|saga| std::cmp::Reverse(age_s(saga)));
    }
    if context.json {
        output::json(&answer)?;
    } else {
        let sagas = output::items(&answer["data"]);
        let rows: Vec<[String; 11]> = sagas.iter().map(row).collect();
        output::table(COLUMNS, &rows)?;
    }
    // A list without the sagas of a shard is incomplete, and the command says so.
    let unreachable = output::items(&answer["unreachable"]);
    for shard in unreachable {
        output::note(&format!("shard {} did not answer", output::cell(shard)));
    }
    Ok(if unreachable.is_empty() { ExitCode::SUCCESS } else { exit::unreachable() })
}

fn row(saga: &Value) -> [String; 11] {
    let mut row: [String; 11] = Default::default();
    row[0] = age(age_s(saga));
    for (cell, field) in row[1..].iter_mut().zip(FIELDS) {
        *cell = output::cell(&saga[field]);
    }
    row
}

fn age_s(saga: &Value) -> u64 {
    saga["age_s"].as_u64().unwrap_or(0)
}

/// Formats an age in the largest unit of which it has at least two.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_largest_unit_of_which_there_are_two() {
        let ages = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age);
        assert_eq!(ages, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
    }

    #[test]
    fn a_row_has_amount_asset_and_age() {
        let saga = serde_json::json!({"id": "i", "state": "pending", "debit": "a", "credit": "b", "asset": "USD",
            "amount": "1.00", "source": "s0", "destination": "s1", "attempts": 2, "age_s": 61, "next_attempt_at": "t"});
        assert_eq!(row(&saga), ["61 s", "i", "pending", "1.00", "USD", "s0", "s1", "a", "b", "2", "t"]);
    }
}
