//! The verdict on a run: what clients were told, held against what the databases hold, id by id.
//!
//! It reads the tables themselves and not the API, so that a fault in the reading path cannot hide one in the writing path.
//! `shardctl verify` then checks the books of the shards among themselves.

mod books;

use std::{collections::HashMap, fmt::Write, time::Duration};

use anyhow::{Context, bail, ensure};
use http::Method;
use uuid::Uuid;

use self::books::{Books, StoredTransfer, TransferStatus};
use crate::{
    cluster::Cluster,
    history::{Fate, Record},
    wait::until,
    workload::History,
};

/// I7: all sagas are terminal this long after healing, nobody restarting anything.
const SAGAS_END_WITHIN: Duration = Duration::from_secs(30);
/// As many findings of a kind are worth printing.
const SHOWN: usize = 20;

/// What a clean run consisted of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub posted: usize,
    pub rejected: usize,
    pub absent: usize,
    pub cross_shard: usize,
    /// Orders of which at least one answer was unknown: the reason for all this.
    pub was_unknown: usize,
}

/// Waits until the cluster is quiet, reads it, and checks the history against it; then the invariants.
pub async fn audit(cluster: &Cluster, history: &History) -> anyhow::Result<Summary> {
    ensure!(history.anomalies.is_empty(), "clients saw what must not be:\n{}", shown(&history.anomalies));
    sagas_end(cluster).await?;
    let books = Books::read(cluster.status()).await?;
    let summary = compare(&history.records, &books)?;
    cluster.verify().await?;
    Ok(summary)
}

/// I7, by the databases; then by the routers' own word.
pub async fn sagas_end(cluster: &Cluster) -> anyhow::Result<()> {
    until("all sagas have ended", SAGAS_END_WITHIN, async || {
        let pending = books::pending(cluster.status()).await?;
        Ok((pending == 0).then_some(()))
    })
    .await?;
    let client = cluster.client();
    for router in &cluster.status().routers {
        let url = format!("{}/admin/sagas", router.admin_url);
        let answer = client.request(Method::GET, &url, None).await?.json()?;
        let listed = answer["data"].as_array().with_context(|| format!("{url} answered {answer}"))?;
        ensure!(answer["partial"] == false, "{url} could not ask every shard: {answer}");
        ensure!(listed.is_empty(), "{url} lists sagas that have ended: {answer}");
    }
    Ok(())
}

fn compare(records: &[Record], books: &Books) -> anyhow::Result<Summary> {
    let mut findings: Vec<String> = Vec::new();
    let mut summary = Summary::default();
    let mut expected: HashMap<&str, i64> = HashMap::new();
    let mut known: HashMap<Uuid, &Record> = HashMap::new();
    for record in records {
        if known.insert(record.order.id, record).is_some() {
            bail!("the run used the id {} twice, which makes it invalid", record.order.id);
        }
        let found = books.transfers.get(&record.order.id).map_or(&[][..], Vec::as_slice);
        match judge(record, found, books) {
            Ok(Judged::Posted { cross_shard }) => {
                summary.posted += 1;
                summary.cross_shard += usize::from(cross_shard);
                *expected.entry(&record.order.debit).or_default() -= record.order.amount;
                *expected.entry(&record.order.credit).or_default() += record.order.amount;
            }
            Ok(Judged::Rejected) => summary.rejected += 1,
            Ok(Judged::Absent) => summary.absent += 1,
            Err(finding) => findings.push(format!("{}: {finding}; {record:?}", record.order.id)),
        }
        let unknown =
            |attempt: &crate::history::Attempt| matches!(attempt.verdict, crate::client::Verdict::Unknown { .. });
        summary.was_unknown += usize::from(record.attempts.iter().any(unknown));
    }
    for (id, stored) in &books.transfers {
        if !known.contains_key(id) {
            findings.push(format!("{id}: nobody ordered it: {stored:?}"));
        }
    }
    for id in books.registers.keys().filter(|id| !known.contains_key(id)) {
        findings.push(format!("{id}: nobody ordered it, and it has a register"));
    }
    // The final read: each balance is the sum of what was acknowledged, to the last minor unit.
    for (account, posted) in &books.balances {
        let sum = expected.remove(account.as_str()).unwrap_or_default();
        if sum != *posted {
            findings.push(format!("{account}: holds {posted}, the acknowledged transfers come to {sum}"));
        }
    }
    findings.extend(expected.keys().map(|account| format!("{account}: is on no shard")));
    ensure!(findings.is_empty(), "{} findings:\n{}", findings.len(), shown(&findings));
    Ok(summary)
}

/// What an order came to, agreed upon by client and database.
enum Judged {
    Posted { cross_shard: bool },
    Rejected,
    Absent,
}

fn judge(record: &Record, found: &[StoredTransfer], books: &Books) -> Result<Judged, String> {
    let fate = record.fate();
    let registers = books.registers.get(&record.order.id).map_or(&[][..], Vec::as_slice);
    let stored = match (&fate, found) {
        (Fate::Open, _) => return Err("no definite answer was ever got, so the run proves nothing".to_owned()),
        (Fate::Contradiction(answers), _) => return Err(format!("the answers contradict each other: {answers}")),
        (Fate::Absent, []) if registers.is_empty() => return Ok(Judged::Absent),
        // I6
        (Fate::Absent, _) => {
            return Err(format!("answered \"not executed\", yet there: {found:?}, registers {registers:?}"));
        }
        // I3
        (_, []) => return Err("acknowledged and lost".to_owned()),
        (_, [stored]) => stored,
        // I4
        (_, several) => return Err(format!("there {} times: {several:?}", several.len())),
    };
    let order = &record.order;
    if (&stored.debit, &stored.credit, stored.amount) != (&order.debit, &order.credit, order.amount) {
        return Err(format!("stored with other content: {stored:?}"));
    }
    if let Some(register) = registers.iter().find(|register| register.shard == stored.shard) {
        return Err(format!("its register is on its own shard: {register:?}"));
    }
    let credited: Vec<bool> = registers.iter().map(|register| register.credited).collect();
    match (fate, stored.status) {
        (Fate::Posted, TransferStatus::Posted) => match (stored.cross_shard, &credited[..]) {
            (false, []) | (true, [true]) => Ok(Judged::Posted { cross_shard: stored.cross_shard }),
            _ => Err(format!("posted, with registers {registers:?}")),
        },
        (Fate::Rejected { .. }, TransferStatus::Rejected) => match &credited[..] {
            [] | [false] => Ok(Judged::Rejected),
            _ => Err(format!("rejected, with registers {registers:?}")),
        },
        (fate, status) => Err(format!("answered {fate:?}, stored as {status:?}")),
    }
}

fn shown(findings: &[String]) -> String {
    let mut text = String::new();
    for finding in findings.iter().take(SHOWN) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {finding}");
    }
    text
}
