//! The audit of a run. It compares the answers that clients got with what the databases hold, id by id.
//!
//! The audit reads the tables and not the API, so that a fault in the reading path cannot hide one in the writing path. Most of what the
//! API shows of holds and reversals is derived, so the audit reads those through the API as well. `shardctl verify` then compares the
//! shards with each other.

mod books;
mod lives;
mod rest;

use std::{collections::HashMap, fmt::Write};

use anyhow::{bail, ensure};
use uuid::Uuid;

use self::{
    books::{Books, StoredTransfer, TransferStatus},
    rest::{comes_to_rest, holds_expire},
};
pub use self::{
    rest::sagas_end,
    rest::{all_folded, all_rebuild, rebuilds},
};
use crate::{
    cluster::Cluster,
    history::{Fate, Record},
    workload::History,
};

/// The number of findings of a kind that are printed.
const SHOWN: usize = 20;

/// The numbers of orders and holds in a run without findings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub posted: usize,
    pub rejected: usize,
    pub absent: usize,
    pub cross_shard: usize,
    pub holds: usize,
    /// Orders with at least one answer whose outcome was unknown.
    pub was_unknown: usize,
}

/// Waits until the cluster is quiet, compares the history with it, and checks the invariants.
pub async fn audit(cluster: &Cluster, history: &History) -> anyhow::Result<Summary> {
    ensure!(history.anomalies.is_empty(), "clients saw forbidden answers:\n{}", shown(&history.anomalies));
    sagas_end(cluster).await?;
    holds_expire(cluster).await?;
    comes_to_rest(cluster).await?;
    let books = Books::read(cluster.status()).await?;
    let mut summary = compare(history.opening.iter().chain(&history.records), &books)?;
    let findings = lives::findings(cluster, &history.lives).await?;
    ensure!(findings.is_empty(), "{} findings about holds:\n{}", findings.len(), shown(&findings));
    summary.holds = history.lives.len();
    cluster.verify().await?;
    all_rebuild(cluster).await?;
    Ok(summary)
}

fn compare<'r>(records: impl IntoIterator<Item = &'r Record>, books: &Books) -> anyhow::Result<Summary> {
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
            findings.push(format!("{id}: no client ordered it: {stored:?}"));
        }
    }
    for id in books.registers.keys().filter(|id| !known.contains_key(id)) {
        findings.push(format!("{id}: no client ordered it, and it has a register"));
    }
    // Each final balance is the sum of the acknowledged transfers, to the last minor unit.
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

/// The outcome of an order on which clients and databases agree.
enum Judged {
    Posted { cross_shard: bool },
    Rejected,
    Absent,
}

fn judge(record: &Record, found: &[StoredTransfer], books: &Books) -> Result<Judged, String> {
    let fate = record.fate();
    let registers = books.registers.get(&record.order.id).map_or(&[][..], Vec::as_slice);
    let stored = match (&fate, found) {
        (Fate::Open, _) => return Err("no answer was definite, so the run proves nothing".to_owned()),
        (Fate::Contradiction(answers), _) => return Err(format!("the answers contradict each other: {answers}")),
        (Fate::Absent, []) if registers.is_empty() => return Ok(Judged::Absent),
        // INV-5: a request answered "not executed" never has an effect.
        (Fate::Absent, _) => {
            return Err(format!("answered \"not executed\", yet stored: {found:?}, registers {registers:?}"));
        }
        // INV-16: what was acknowledged is never lost.
        (_, []) => return Err("acknowledged and lost".to_owned()),
        (_, [stored]) => stored,
        // INV-4: an id is executed at most once.
        (_, several) => return Err(format!("stored {} times: {several:?}", several.len())),
    };
    let order = &record.order;
    if (&stored.debit, &stored.credit, stored.amount) != (&order.debit, &order.credit, order.amount) {
        return Err(format!("stored with other content: {stored:?}"));
    }
    if let Some(register) = registers.iter().find(|register| !books.has_moved && register.shard == stored.shard) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        books::{StoredRegister, StoredTransfer},
        *,
    };
    use crate::{
        client::Verdict,
        history::{Attempt, Order},
    };

    fn record(id: u128, verdict: Verdict) -> Record {
        let order = Order { id: Uuid::from_u128(id), debit: "a".to_owned(), credit: "b".to_owned(), amount: 7 };
        let attempt = Attempt { invoked: Duration::ZERO, returned: Duration::ZERO, router: 0, verdict };
        Record { order, attempts: vec![attempt] }
    }

    fn posted(shard: &str, cross_shard: bool) -> StoredTransfer {
        let (debit, credit) = ("a".to_owned(), "b".to_owned());
        let status = TransferStatus::Posted;
        StoredTransfer { shard: shard.to_owned(), debit, credit, amount: 7, cross_shard, status }
    }

    fn not_executed() -> Verdict {
        Verdict::NotExecuted { code: "overloaded".to_owned() }
    }

    /// Transfer 1 is local and transfer 2 crosses shards; both are posted. Transfer 3 was never executed.
    fn sound() -> (Vec<Record>, Books) {
        let records = vec![record(1, Verdict::Posted), record(2, Verdict::Posted), record(3, not_executed())];
        let mut books = Books::default();
        books.transfers.insert(Uuid::from_u128(1), vec![posted("s0", false)]);
        books.transfers.insert(Uuid::from_u128(2), vec![posted("s0", true)]);
        let register = StoredRegister { shard: "s1".to_owned(), credited: true };
        books.registers.insert(Uuid::from_u128(2), vec![register]);
        books.balances = vec![("a".to_owned(), -14), ("b".to_owned(), 14)];
        (records, books)
    }

    #[test]
    fn a_sound_run_passes() {
        let (records, books) = sound();
        let summary = compare(&records, &books).unwrap();
        assert_eq!((summary.posted, summary.cross_shard, summary.absent), (2, 1, 1));
    }

    /// Words of the finding that a damage to a sound run must cause, and the damage.
    type Damage = (&'static str, fn(&mut Vec<Record>, &mut Books));

    #[test]
    fn every_kind_of_damage_is_found() {
        let damages: [Damage; 11] = [
            ("acknowledged and lost", |_, books| drop(books.transfers.remove(&Uuid::from_u128(1)))),
            ("yet stored", |_, books| drop(books.transfers.insert(Uuid::from_u128(3), vec![posted("s0", false)]))),
            ("stored 2 times", |_, books| {
                books.transfers.insert(Uuid::from_u128(1), vec![posted("s0", false), posted("s1", false)]);
            }),
            ("with registers []", |_, books| books.registers.clear()),
            ("with registers", |_, books| {
                books.registers.values_mut().flatten().for_each(|register| register.credited = false);
            }),
            ("its own shard", |_, books| {
                books.registers.values_mut().flatten().for_each(|register| "s0".clone_into(&mut register.shard));
            }),
            ("other content", |_, books| books.transfers.values_mut().flatten().for_each(|found| found.amount = 8)),
            ("stored as Rejected", |_, books| {
                books.transfers.values_mut().flatten().for_each(|found| found.status = TransferStatus::Rejected);
            }),
            ("no client ordered it", |_, books| {
                books.transfers.insert(Uuid::from_u128(9), vec![posted("s0", false)]);
            }),
            ("b: holds 15", |_, books| books.balances[1].1 += 1),
            ("proves nothing", |records, _| {
                records[0].attempts[0].verdict = Verdict::Unknown { why: "reset".to_owned() };
            }),
        ];
        for (words, damage) in damages {
            let (mut records, mut books) = sound();
            damage(&mut records, &mut books);
            let found = compare(&records, &books).unwrap_err().to_string();
            assert!(found.contains(words), "{words}: {found}");
        }
    }
}
