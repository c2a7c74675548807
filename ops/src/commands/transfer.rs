//! `shardctl transfer …`

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    context::{Context, HistoryArgs, OwnedId, PublicAddress},
    exit::OutcomeUnknown,
    http_client::{ApiProblem, NotSent},
    output::{self, JsonObject},
};

#[derive(clap::Subcommand)]
pub enum TransferCommand {
    /// Show a transfer, and the steps of a cross-shard transfer
    Show(OwnedId),
    /// List an account's transfers, newest first
    List(HistoryArgs),
    /// Pay one amount from one account to another
    Create(CreateArgs),
}

const HELP: &str = "\
The id is printed on standard error before anything is sent. The same command with this --id pays at most once, no matter how
often it is repeated, and prints the outcome of the transfer.

Exit codes: 0 posted (now or before), 1 refused, 4 no router was reached and nothing was sent, 5 the outcome is unknown or the
transfer is still pending: give the command again with the printed --id";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct CreateArgs {
    /// The account that pays
    #[arg(long, value_name = "ACCOUNT")]
    debit: String,
    /// The account that receives
    #[arg(long, value_name = "ACCOUNT")]
    credit: String,
    /// The amount, such as 12.34
    #[arg(long)]
    amount: String,
    /// The asset of both accounts, such as USD
    #[arg(long)]
    asset: String,
    /// The transfer's id [default: a new one]
    #[arg(long)]
    id: Option<Uuid>,
    /// Name and value of metadata that is stored with the transfer; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    metadata: Vec<(String, String)>,
    /// Show how the transfer would end, and pay nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    address: PublicAddress,
}

/// The body of the request.
#[derive(Serialize)]
struct TransferBody {
    id: Uuid,
    debit: String,
    credit: String,
    amount: String,
    asset: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

/// The meaning of an answer.
#[derive(Debug)]
enum AnswerMeaning {
    Posted(JsonObject),
    Pending(JsonObject),
    Refused(anyhow::Error),
    Unknown(String),
}

const COLUMNS: [&str; 7] = ["id", "status", "debit", "credit", "amount", "asset", "created_at"];

pub async fn run(command: TransferCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        TransferCommand::Show(id) => show(id, context).await?,
        TransferCommand::List(history) => history.print("/v1/transfers", COLUMNS, context).await?,
        TransferCommand::Create(args) => return create(args, context).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows a transfer, and the steps of its saga if it has one.
pub async fn show(id: OwnedId, context: &Context) -> anyhow::Result<()> {
    let mut transfer = id.get("/v1/transfers", context).await?;
    if context.json {
        return output::json(&transfer);
    }
    let steps = transfer.remove("steps");
    output::fields(&transfer)?;
    if let Some(Value::Array(steps)) = steps {
        let rows: Vec<[String; 3]> =
            steps.iter().map(|step| ["step", "shard", "at"].map(|field| output::cell(&step[field]))).collect();
        output::data("")?;
        output::table(["step", "shard", "at"], &rows)?;
    }
    Ok(())
}

async fn create(args: CreateArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let routers = args.address.routers(context)?;
    let id = args.id.unwrap_or_else(Uuid::now_v7);
    let mut metadata = BTreeMap::new();
    for (name, value) in args.metadata {
        if metadata.insert(name.clone(), value).is_some() {
            bail!("--metadata {name} is given twice");
        }
    }
    let CreateArgs { debit, credit, amount, asset, dry_run, .. } = args;
    let body = serde_json::to_vec(&TransferBody { id, debit, credit, amount, asset, metadata })?;
    output::note(&format!("--id {id}"));

    let path = if dry_run { "/v1/transfers?dry_run=true" } else { "/v1/transfers" };
    // Only a request that was never sent has certainly had no effect.
    let mut maybe_sent = false;
    let mut unreachable = None;
    for url in &routers.urls {
        let answer = routers.client.send(Method::POST, &format!("{url}{path}"), body.clone().into()).await;
        let (status, answer) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                maybe_sent |= !error.is::<NotSent>();
                unreachable = Some(error);
                continue;
            }
        };
        return match AnswerMeaning::of(status, &answer) {
            AnswerMeaning::Posted(transfer) => {
                output::object(&transfer, context.json)?;
                Ok(ExitCode::SUCCESS)
            }
            AnswerMeaning::Pending(transfer) => {
                output::object(&transfer, context.json)?;
                Err(unknown(id, "it is pending: it has been debited and ends by itself".to_owned()))
            }
            // An earlier router may have executed the request that this router refuses.
            AnswerMeaning::Refused(error) if maybe_sent && !dry_run => Err(unknown(id, format!("{error:#}"))),
            AnswerMeaning::Refused(error) => Err(error),
            AnswerMeaning::Unknown(reason) => Err(unknown(id, reason)),
        };
    }
    let error = unreachable.context("the cluster has no routers")?;
    Err(if maybe_sent && !dry_run { unknown(id, format!("{error:#}")) } else { error })
}

fn unknown(id: Uuid, reason: String) -> anyhow::Error {
    OutcomeUnknown {
        what: format!("transfer {id}"),
        reason,
        remedy: format!("give the command again with --id {id}"),
    }
    .into()
}

impl AnswerMeaning {
    fn of(status: StatusCode, body: &[u8]) -> Self {
        let parsed = |reading: fn(JsonObject) -> Self| match serde_json::from_slice(body) {
            Ok(transfer) => reading(transfer),
            Err(error) => Self::Unknown(format!("the answer cannot be read: {error}")),
        };
        match (status, serde_json::from_slice::<ApiProblem>(body)) {
            (StatusCode::ACCEPTED, _) => parsed(Self::Pending),
            (status, _) if status.is_success() => parsed(Self::Posted),
            (_, Ok(problem)) if problem.executed == Some(false.into()) => Self::Refused(problem.into()),
            (_, Ok(problem)) => Self::Unknown(problem.to_string()),
            (status, Err(_)) => Self::Unknown(format!("answered {status}")),
        }
    }
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(status: u16, body: &str) -> AnswerMeaning {
        AnswerMeaning::of(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn only_an_answer_that_denies_the_effect_is_a_refusal() {
        let problem = |executed: &str| {
            format!(r#"{{"status": 422, "code": "insufficient_funds", "title": "t", "executed": {executed}}}"#)
        };
        assert!(matches!(reading(201, r#"{"status": "posted"}"#), AnswerMeaning::Posted(_)));
        assert!(matches!(reading(200, r#"{"status": "posted"}"#), AnswerMeaning::Posted(_)));
        assert!(matches!(reading(202, r#"{"status": "pending"}"#), AnswerMeaning::Pending(_)));
        assert!(matches!(reading(422, &problem("false")), AnswerMeaning::Refused(_)));
        assert!(matches!(reading(504, &problem("\"unknown\"")), AnswerMeaning::Unknown(_)));
        assert!(matches!(reading(502, "<html>"), AnswerMeaning::Unknown(_)));
        assert!(matches!(reading(201, "<html>"), AnswerMeaning::Unknown(_)));
    }

    #[test]
    fn metadata_is_a_name_and_a_value() {
        assert_eq!(name_and_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(name_and_value("a").is_err());
    }
}
