//! Compares what clients were answered about holds, their captures and the reversals of those with what the API shows in the end.

use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::books;
use crate::{
    client::{Client, escaped},
    cluster::Cluster,
    history::{Fate, Life, Record, decimal},
};

/// The number of requests that run at the same time.
const AT_ONCE: usize = 16;

/// Returns everything that differs from the answers.
pub async fn findings(cluster: &Cluster, lives: &[Life]) -> anyhow::Result<Vec<String>> {
    let client = cluster.client();
    let asked = &client;
    let mut findings: Vec<String> = stream::iter(lives)
        .map(|life| async move { check(asked, life).await.err().map(|found| format!("{found:#}; {life:?}")) })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |found| found)
        .collect()
        .await;
    let (stored, known) = (books::holds(cluster.status()).await?, lives.len());
    // Clients repeated each request for a hold until its answer was definite, so the known holds are all holds.
    if usize::try_from(stored)? != known {
        findings.push(format!("{stored} holds are stored, {known} were ordered"));
    }
    Ok(findings)
}

async fn check(client: &Client, life: &Life) -> anyhow::Result<()> {
    let expected = life.status().map_err(anyhow::Error::msg)?;
    let hold = show(client, "holds", &life.hold).await?;
    let captured = decimal(life.captured());
    anyhow::ensure!(
        hold["status"] == expected && hold["captured"] == captured && hold["remaining"] == "0.00",
        "it should be {expected} with {captured} captured, but it is {hold}"
    );
    if let Fate::Rejected { code } = life.hold.fate() {
        anyhow::ensure!(hold["reject_code"] == code, "its client was answered {code}, but it is {hold}");
    }
    for record in life.transfers() {
        let transfer = show(client, "transfers", record).await?;
        as_answered(life, record, &transfer)?;
    }
    Ok(())
}

fn as_answered(life: &Life, record: &Record, transfer: &Value) -> anyhow::Result<()> {
    let fate = record.fate();
    let (reversed, reversals) = life.reversed(record.order.id);
    let is_as_told = match &fate {
        Fate::Posted if reversed > 0 => {
            let status = if reversed == record.order.amount { "reversed" } else { "posted" };
            transfer["status"] == status
                && transfer["reversed_amount"] == decimal(reversed)
                && transfer["reversed_by"].as_array().is_some_and(|by| by.len() == reversals)
        }
        Fate::Posted => transfer["status"] == "posted",
        Fate::Rejected { code } => transfer["status"] == "rejected" && transfer["reject_code"] == *code,
        Fate::Absent | Fate::Open | Fate::Contradiction(_) => false,
    };
    anyhow::ensure!(
        is_as_told && transfer["amount"] == decimal(record.order.amount),
        "answered {fate:?}, reversed {reversed} by {reversals}, and is {transfer}"
    );
    Ok(())
}

async fn show(client: &Client, what: &str, record: &Record) -> anyhow::Result<Value> {
    let path = format!("/v1/{what}/{}?debit={}", record.order.id, escaped(&record.order.debit));
    client.get(client.next_router(), &path).await
}
