//! `shardctl replay` sends a real bank's transactions through the HTTP API, and compares the bank's balances with those of the ledger.
//!
//! [`bank`] reads the file, [`plan`] makes all decisions before anything is sent, [`sender`] sends, and [`ReplayReport`] compares. All ids
//! follow from the file, so a second run changes nothing.

pub mod bank;
mod plan;
mod sender;

use std::{path::PathBuf, process::ExitCode};

use bank::{SCALE, Transaction};
use futures_util::{StreamExt, TryStreamExt, stream};
use ledger::format_minor;
use plan::{Customer, Gap, Rounding};
use sender::SentTally;
use serde::Serialize;

use crate::{
    context::{Context, PublicAddress},
    exit,
    http_client::HttpClient,
    output, verify,
};

/// The number of balances that are read at the same time.
const READS_IN_FLIGHT: usize = 16;

/// Replays the transactions through one of the routers and compares the balances.
pub async fn replay(
    client: HttpClient,
    urls: &[String],
    transactions: Vec<Transaction>,
) -> anyhow::Result<ReplayReport> {
    let plan = plan::plan(transactions);
    let sender = sender::ReplaySender::connect(client, urls).await?;

    let accounts = plan.partners.len() + plan.customers.len();
    let opened = output::counted("accounts", accounts, async |bar| sender.open_accounts(&plan, bar).await).await?;
    let sent =
        output::counted("transfers", plan.transactions.len(), async |bar| sender.send_transfers(&plan, bar).await)
            .await?;
    let posted: Vec<i64> = output::counted("balances", plan.customers.len(), async |bar| {
        stream::iter(&plan.customers)
            .map(|customer| sender.posted(customer))
            .buffered(READS_IN_FLIGHT)
            .inspect_ok(|_| bar.inc(1))
            .try_collect()
            .await
    })
    .await?;
    Ok(ReplayReport::new(plan.transactions.len(), &plan.customers, &posted, &opened, sent))
}

/// Exit code 3: the ledger does not hold what the file says, or verify found a violation.
#[derive(clap::Args)]
pub struct ReplayArgs {
    /// The bank's transactions, as CSV or gzipped CSV
    #[arg(long, value_name = "FILE")]
    bank: PathBuf,
    #[command(flatten)]
    address: PublicAddress,
}

#[derive(Serialize)]
struct ReplayOutput<'a> {
    replay: &'a ReplayReport,
    /// Absent if this machine cannot reach the databases.
    verify: Option<&'a verify::VerifyReport>,
}

pub async fn run(args: ReplayArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let transactions = bank::read(&args.bank)?;
    let elsewhere = args.address.is_named();
    let routers = args.address.routers(context)?;
    let report = replay(routers.client, &routers.urls, transactions).await?;
    let verified = match verify::cluster_targets(context) {
        Ok(targets) => Some(verify::verify(&targets).await?),
        // The router is on another machine, and its databases can be checked there.
        Err(_) if elsewhere => None,
        Err(error) => return Err(error),
    };
    if context.json {
        output::json(&ReplayOutput { replay: &report, verify: verified.as_ref() })?;
    } else {
        print(&report)?;
        match &verified {
            Some(verified) => verify::print(verified)?,
            None => output::note("not verified: the cluster's databases are not in --data-dir"),
        }
    }
    let clean = verified.is_none_or(|verified| verified.is_clean());
    Ok(if report.is_faithful() && clean { ExitCode::SUCCESS } else { exit::violation() })
}

fn print(report: &ReplayReport) -> anyhow::Result<()> {
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
        "nothing moved, because everything was replayed before".to_owned()
    } else {
        format!("{} posted, {} replayed", report.transfers_posted, report.transfers_replayed)
    };
    output::data(&format!(
        "{} transactions: {moved}\n{} of {} accounts agree with the bank within 0.50; {} are complete in the file\n",
        report.transactions, report.accounts_agree, report.accounts, report.accounts_complete,
    ))
}

/// The largest difference, in minor units, between the bank's figure and the sum of its amounts that counts as agreement. The bank rounds
/// each recorded balance.
pub const TOLERANCE: i64 = 50;

#[derive(Debug, Serialize)]
pub struct ReplayReport {
    pub transactions: usize,
    pub accounts_opened: u64,
    pub accounts_replayed: u64,
    pub transfers_posted: u64,
    pub transfers_replayed: u64,
    pub transfers_refused: std::collections::BTreeMap<String, u64>,
    pub accounts: usize,
    /// The number of accounts whose rows all chain, including those of the last day.
    pub accounts_complete: usize,
    /// The number of accounts that agree within the bank's rounding.
    pub accounts_agree: usize,
    pub differences: Vec<Difference>,
    pub overdrafts: Vec<Overdraft>,
}

/// An account that differs from the bank's figure by more than [`TOLERANCE`].
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Difference {
    pub account: String,
    pub ledger: String,
    pub bank: String,
    pub difference: String,
    pub reason: String,
    /// Whether the ledger holds the sum of the file's amounts. The difference is then a property of the file.
    pub explained: bool,
}

/// An account that was given an overdraft because the bank's own records show it below zero.
#[derive(Debug, Serialize)]
pub struct Overdraft {
    pub account: String,
    pub overdraft: String,
    pub date: String,
    pub bank: String,
}

impl ReplayReport {
    /// Compares the ledger's balances with the bank's. `posted` is in the order of the customers.
    pub fn new(
        transactions: usize,
        customers: &[Customer],
        posted: &[i64],
        opened: &SentTally,
        sent: SentTally,
    ) -> Self {
        let differences: Vec<Difference> =
            customers.iter().zip(posted).filter_map(|(customer, &posted)| difference(customer, posted)).collect();
        let overdrafts = customers.iter().filter_map(|customer| {
            let dip = customer.dip?;
            Some(Overdraft {
                account: customer.id(),
                overdraft: format_minor(customer.overdraft(), SCALE),
                date: dip.date.to_string(),
                bank: format_minor(dip.recorded, SCALE),
            })
        });
        Self {
            transactions,
            accounts_opened: opened.done,
            accounts_replayed: opened.replayed,
            transfers_posted: sent.done,
            transfers_replayed: sent.replayed,
            transfers_refused: sent.refused,
            accounts: customers.len(),
            accounts_complete: customers.iter().filter(|customer| customer.gaps.is_empty()).count(),
            accounts_agree: customers.len() - differences.len(),
            differences,
            overdrafts: overdrafts.collect(),
        }
    }

    /// Whether the ledger holds exactly the amounts of the file, even if rows are missing from the file.
    pub fn is_faithful(&self) -> bool {
        self.transfers_refused.is_empty() && self.differences.iter().all(|difference| difference.explained)
    }
}

fn difference(customer: &Customer, posted: i64) -> Option<Difference> {
    let difference = posted - customer.recorded;
    if posted == customer.sum && difference.abs() <= TOLERANCE {
        return None;
    }
    let (reason, explained) = if posted == customer.sum {
        (reason(customer), true)
    } else {
        (format!("the file's amounts add up to {}: the ledger lost or gained money", money(customer.sum)), false)
    };
    Some(Difference {
        account: customer.id(),
        ledger: money(posted),
        bank: money(customer.recorded),
        difference: money(difference),
        reason,
        explained,
    })
}

/// Why the file's amounts do not add up to the bank's last figure.
fn reason(customer: &Customer) -> String {
    let gaps: Vec<String> = customer
        .gaps
        .iter()
        .map(|(date, gap)| match gap {
            Gap::Before { transaction, net } => {
                let (amount, what) = (money(net.abs()), if *net < 0 { "debits" } else { "credits" });
                format!("{what} of {amount} on {date}, before transaction {transaction}, are missing from the file")
            }
            Gap::Several => format!("rows of {date} are missing from the file in several places"),
        })
        .collect();
    if !gaps.is_empty() {
        return gaps.join("; ");
    }
    let Rounding { rows, total } = customer.rounding;
    format!("the bank's own balances round away {} over {rows} of its rows; no row is missing", money(total))
}

fn money(minor: i64) -> String {
    format_minor(minor, SCALE)
}

#[cfg(test)]
mod tests {
    use super::bank::Date;
    use super::*;

    fn customer(sum: i64, recorded: i64) -> Customer {
        Customer { account: 7, sum, recorded, ..Customer::default() }
    }

    #[test]
    fn within_the_rounding_accounts_agree() {
        assert_eq!(difference(&customer(1_000, 1_050), 1_000), None);
        assert_eq!(difference(&customer(1_000, 950), 1_000), None);
    }

    #[test]
    fn beyond_it_the_reason_is_named() {
        let rounded = Customer { rounding: Rounding { rows: 10, total: 80 }, ..customer(1_080, 1_000) };
        let told = difference(&rounded, 1_080).unwrap();
        assert!(told.explained && told.reason.contains("0.80 over 10"), "{told:?}");

        let gap = Gap::Before { transaction: 846_252, net: 9_500 };
        let cut_off = Customer { gaps: vec![(Date::default(), gap)], ..customer(1_000, 10_500) };
        let told = difference(&cut_off, 1_000).unwrap();
        assert!(told.explained && told.reason.contains("credits of 95.00"), "{told:?}");
    }

    #[test]
    fn money_the_file_does_not_explain_is_a_violation() {
        let told = difference(&customer(1_000, 1_000), 1_001).unwrap();
        assert!(!told.explained);
    }
}
