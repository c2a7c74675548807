//! `shardctl replay`: a real bank's transactions through the HTTP API, compared with the bank's own balances.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{Context, router_address::PublicAddress, verify as verify_command};
use crate::{
    exit, output,
    replay::{self, Report, bank},
    verify,
};

/// Exit code 3: the ledger does not hold what the file says, or verify found a violation.
#[derive(clap::Args)]
pub struct Args {
    /// The bank's transactions, as CSV or gzipped CSV
    #[arg(long, value_name = "FILE")]
    bank: PathBuf,
    #[command(flatten)]
    address: PublicAddress,
}

#[derive(Serialize)]
struct Outcome<'a> {
    replay: &'a Report,
    /// Absent where the databases are out of reach of this machine.
    verify: Option<&'a verify::Report>,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let transactions = bank::read(&args.bank)?;
    let elsewhere = args.address.is_named();
    let routers = args.address.routers(context)?;
    let report = replay::replay(routers.client, &routers.urls, transactions).await?;
    let verified = match verify_command::cluster_targets(context) {
        Ok(targets) => Some(verify::verify(&targets).await?),
        // Another machine's router: its databases are checked there.
        Err(_) if elsewhere => None,
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

fn print(report: &Report) -> anyhow::Result<()> {
    if !report.overdrafts.is_empty() {
        let rows: Vec<[String; 4]> = report
            .overdrafts
            .iter()
            .map(|o| [o.account.clone(), o.overdraft.clone(), o.bank.clone(), o.date.clone()])
            .collect();
        output::data("Overdrafts given, because the bank's own records show these accounts below zero:")?;
        output::table(["account", "overdraft", "lowest at the bank", "on"], &rows)?;
        output::data("")?;
    }
    if !report.differences.is_empty() {
        let rows: Vec<[String; 5]> = report
            .differences
            .iter()
            .map(|d| [d.account.clone(), d.ledger.clone(), d.bank.clone(), d.difference.clone(), d.reason.clone()])
            .collect();
        output::data("Accounts further than 0.50 from the bank's own balance:")?;
        output::table(["account", "ledger", "bank", "difference", "reason"], &rows)?;
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
