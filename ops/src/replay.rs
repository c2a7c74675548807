//! `shardctl replay`: a real bank's transactions through the HTTP API, and its own figures beside the ledger's.
//!
//! [`bank`] reads the file, [`day`] finds the order the file leaves open, [`plan`] decides everything before anything is
//! sent, [`sender`] sends, [`report`] compares. All ids follow from the file, so a second run changes nothing.

pub mod bank;
mod day;
mod plan;
mod report;
mod sender;

use futures_util::{StreamExt, TryStreamExt, stream};

pub use report::Report;

use crate::{http_client::HttpClient, progress};
use bank::Transaction;

/// Balances asked for at the same time.
const READS_IN_FLIGHT: usize = 16;

/// Replays the transactions through one of the routers and compares what came out.
pub async fn replay(client: HttpClient, urls: &[String], transactions: Vec<Transaction>) -> anyhow::Result<Report> {
    let plan = plan::plan(transactions);
    let sender = sender::Sender::connect(client, urls).await?;

    let accounts = plan.partners.len() + plan.customers.len();
    let opened = progress::counted("accounts", accounts, async |bar| sender.open_accounts(&plan, bar).await).await?;
    let sent =
        progress::counted("transfers", plan.transactions.len(), async |bar| sender.send_transfers(&plan, bar).await)
            .await?;
    let posted: Vec<i64> = progress::counted("balances", plan.customers.len(), async |bar| {
        stream::iter(&plan.customers)
            .map(|customer| sender.posted(customer))
            .buffered(READS_IN_FLIGHT)
            .inspect_ok(|_| bar.inc(1))
            .try_collect()
            .await
    })
    .await?;
    Ok(Report::new(plan.transactions.len(), &plan.customers, &posted, &opened, sent))
}
