//! A random history between accounts of two shards, and its statements.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::seed::Random;
use uuid::Uuid;

use super::{Setting, statement_path, text};

const ROUNDS: usize = 6;
const TRANSFERS_A_ROUND: usize = 100;

/// A transfer that was ordered and posted.
#[derive(Debug)]
pub struct Paid {
    pub id: Uuid,
    pub debit: String,
    pub credit: String,
    pub round: usize,
}

/// What happened, and the statements of all accounts that it happened to, oldest entry first.
pub struct History {
    pub paid: Vec<Paid>,
    pub statements: BTreeMap<String, Vec<Value>>,
    /// Times before, between and at entries.
    pub instants: Vec<String>,
}

impl History {
    /// More than one waypoint of some accounts, transfers between shards and on one, and holds.
    pub async fn write(setting: &Setting, random: &mut Random) -> anyhow::Result<Self> {
        let mut accounts: Vec<String> = (0..6).map(|n| format!("bank:{n}")).collect();
        accounts.extend((0..4).map(|n| format!("{{shop42}}:{n}")));
        accounts.push("-minus".to_owned());
        let mut instants = vec!["2020-01-01T00:00:00.000000Z".to_owned()];
        for (index, id) in accounts.iter().enumerate() {
            let opened = setting.open(id, json!({})).await?;
            if index % 4 == 0 {
                instants.push(text(&opened, "created_at")?.to_owned());
            }
        }
        let mut paid = Vec::new();
        for round in 0..ROUNDS {
            let mut batch = Vec::new();
            for _ in 0..TRANSFERS_A_ROUND {
                let payer = random.below(accounts.len());
                let payee = (payer + 1 + random.below(accounts.len() - 1)) % accounts.len();
                let (id, debit, credit) = (Uuid::now_v7(), accounts[payer].clone(), accounts[payee].clone());
                let amount = format!("{}.{:02}", random.below(50), 1 + random.below(99));
                let metadata = json!({"round": round.to_string(), "note": format!("\"n{payer}\",\n=1+1")});
                batch.push(json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "EUR", "metadata": metadata}));
                paid.push(Paid { id, debit, credit, round });
            }
            let answer = setting.post("/v1/transfers:batch", json!({"transfers": batch}), "200").await?;
            let results = answer["results"].as_array().context("no results")?;
            ensure!(results.iter().all(|result| result["status"] == "posted"), "{answer}");
            let hold = json!({"id": Uuid::now_v7(), "debit": "{shop42}:0", "credit": "bank:0", "amount": "3.00", "asset": "EUR",
                "metadata": {"round": round.to_string()}});
            let hold = setting.post("/v1/holds", hold, "201 held").await?;
            instants.push(text(&hold, "created_at")?.to_owned());
        }
        let mut statements = BTreeMap::new();
        for id in accounts {
            let entries = setting.walk(&statement_path(&id), &setting.operator).await?;
            for _ in 0..2 {
                instants.push(text(&entries[random.below(entries.len())], "created_at")?.to_owned());
            }
            statements.insert(id, entries);
        }
        Ok(Self { paid, statements, instants })
    }

    /// Both accounts' entries have the metadata of their transfer, wherever the other account lives.
    pub fn entries_have_the_metadata_of_their_transfers(&self) -> anyhow::Result<()> {
        for Paid { id, debit, credit, round } in &self.paid {
            for account in [debit, credit] {
                let entry = self.statements[account].iter().find(|entry| entry["transfer_id"] == id.to_string());
                let entry = entry.with_context(|| format!("no entry of {id} for {account}"))?;
                ensure!(
                    entry["metadata"]["round"].as_str() == Some(round.to_string().as_str()),
                    "{account}: {entry}"
                );
            }
        }
        let holds = self.statements["{shop42}:0"].iter().filter(|entry| entry["kind"] == "held");
        let rounds: Vec<&Value> = holds.map(|entry| &entry["metadata"]["round"]).collect();
        ensure!(rounds == ["0", "1", "2", "3", "4", "5"], "{rounds:?}");
        let opened = &self.statements["bank:0"][0];
        ensure!(opened["kind"] == "opened" && opened.get("metadata").is_none(), "{opened}");
        Ok(())
    }
}
