//! `shardctl replay`: a real bank's transactions through the HTTP API, compared with the bank's own balances.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use serde::Serialize;

use super::{Context, verify as verify_command};
use crate::{
    cluster::{Description, Layout},
    exit,
    http_client::HttpClient,
    output,
    replay::{self, Report, bank},
    verify,
};

/// Exit code 3: the ledger does not hold what the file says, or verify found a violation.
#[derive(clap::Args)]
pub struct Args {
    /// The bank's transactions, as CSV or gzipped CSV
    #[arg(long, value_name = "FILE")]
    bank: PathBuf,
    /// A router, instead of the first one of the cluster in --data-dir
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Longer than the router's own deadline, so that it is the router that says what happened.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(35);

#[derive(Serialize)]
struct Outcome<'a> {
    replay: &'a Report,
    /// Absent where the databases are out of reach of this machine.
    verify: Option<&'a verify::Report>,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let transactions = bank::read(&args.bank)?;
    let url = match &args.url {
        Some(url) => url.clone(),
        None => first_router(context)?,
    };
    let report = replay::replay(HttpClient::new(REQUEST_TIMEOUT), &url, transactions).await?;
    let verified = match verify_command::cluster_targets(context) {
        Ok(targets) => Some(verify::verify(&targets).await?),
        // Another machine's router: its databases are checked there.
        Err(_) if args.url.is_some() => None,
        Err(error) => return Err(error),
    };
    if context.json {
        output::json(&Outcome { replay: &report, verify: verified.as_ref() })?;
    } else {
        print(&report)?;
        match &verified {
            Some(verified) => verify_command::print(verified)?,
            None => output::note("not verified: the cluster's databases are not in --data-dir"),
        }
    }
    let clean = verified.is_none_or(|verified| verified.is_clean());
    Ok(if report.is_faithful() && clean { ExitCode::SUCCESS } else { exit::violation() })
}

fn first_router(context: &Context) -> anyhow::Result<String> {
    let description = Description::load(&Layout::find(&context.data_dir)?)?;
    let router = description.and_then(|description| description.routers.first().map(|router| router.url()));
    router.ok_or_else(|| anyhow::anyhow!("the cluster in {} has no router", context.data_dir.display()))
}

fn print(report: &Report) -> anyhow::Result<()> {
    if !report.overdrafts.is_empty() {
        let rows: Vec<[String; 4]> = report
            .overdrafts
            .iter()
            .map(|o| [o.account.clone(), o.overdraft.clone(), o.bank.clone(), o.date.clone()])
            .collect();
        output::data("Overdrafts given, because the bank's own records show these accounts below zero:")?;
        output::table(["ACCOUNT", "OVERDRAFT", "LOWEST AT THE BANK", "ON"], &rows)?;
        output::data("")?;
    }
    if !report.differences.is_empty() {
        let rows: Vec<[String; 5]> = report
            .differences
            .iter()
            .map(|d| [d.account.clone(), d.ledger.clone(), d.bank.clone(), d.difference.clone(), d.reason.clone()])
            .collect();
        output::data("Accounts further than 0.50 from the bank's own balance:")?;
        output::table(["ACCOUNT", "LEDGER", "BANK", "DIFFERENCE", "REASON"], &rows)?;
        output::data("")?;
    }
    for (code, count) in &report.transfers_refused {
        output::data(&format!("REFUSED: {count} transfers as {code}"))?;
    }
    let moved = if report.transfers_posted == 0 && report.transfers_refused.is_empty() {
        "nothing moved, all of it was replayed before".to_owned()
    } else {
        format!("{} posted, {} replayed", report.transfers_posted, report.transfers_replayed)
    };
    output::data(&format!(
        "{} transactions: {moved}\n{} of {} accounts agree with the bank within 0.50; {} are complete in the file\n",
        report.transactions, report.accounts_agree, report.accounts, report.accounts_complete,
    ))
}
