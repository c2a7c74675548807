//! The replay's requests: accounts and transfers in batches over a router's HTTP API, each repeated under the same ids until
//! its outcome is certain.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use indicatif::ProgressBar;
use ledger::format_minor;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    bank::{Partner, SCALE, Transaction},
    plan::{Customer, Plan, account_id, batches},
};
use crate::http_client::{HttpClient, Problem};

/// Namespace of the transfers' ids: they are version 5 UUIDs of the bank's trans_id, the same in every replay.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d0c_9f0a_7f0b_4c55_9d6e_61d9_2f2b_1993);
const ASSET: &str = "CZK";
const BATCH: usize = 1_000;
/// A batch is sent again while its outcome is uncertain: some minutes in all, enough for a shard to come back.
const ATTEMPTS: usize = 60;
const FIRST_PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 5_000;

pub struct Sender {
    client: HttpClient,
    /// Any of these will do; attempts take turns.
    routers: Vec<String>,
}

/// What became of the accounts or transfers sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// New in this run.
    pub done: u64,
    /// Done in an earlier run.
    pub replayed: u64,
    /// Refused, by code.
    pub refused: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct BatchAnswer {
    results: Vec<ItemAnswer>,
}

/// One item's result. Accounts and transfers differ in what else they carry, which is of no interest here.
#[derive(Debug, Deserialize)]
struct ItemAnswer {
    id: String,
    status: Option<String>,
    #[serde(default)]
    replayed: bool,
    code: Option<String>,
    field: Option<String>,
    detail: Option<String>,
}

/// What an item's answer means for the replay.
enum Fate {
    Done,
    Replayed,
    Refused(String),
    /// Pending, or not executed for want of a shard: send it again.
    Uncertain,
}

impl Sender {
    /// Finds the routers that answer at all: a wrong address is worth telling at once.
    pub async fn connect(client: HttpClient, urls: &[String]) -> anyhow::Result<Self> {
        let mut routers = Vec::new();
        let mut unreachable = anyhow!("no router is named");
        for url in urls {
            match client.send(Method::GET, &format!("{url}/v1/accounts/{}", Partner::Cash), Bytes::new()).await {
                Ok(_) => routers.push(url.clone()),
                Err(error) => unreachable = error,
            }
        }
        if routers.is_empty() { Err(unreachable) } else { Ok(Self { client, routers }) }
    }

    /// Opens the partners' and the customers' accounts.
    pub async fn open_accounts(&self, plan: &Plan, progress: &ProgressBar) -> anyhow::Result<Tally> {
        let partners = plan.partners.iter().map(|partner| {
            let metadata = json!({"source": "bank"});
            json!({"id": partner.to_string(), "asset": ASSET, "overdraft": "unlimited", "metadata": metadata})
        });
        let customers = plan.customers.iter().map(|customer| {
            let overdraft = format_minor(customer.overdraft(), SCALE);
            let metadata = json!({"bank_account": customer.account.to_string()});
            json!({"id": customer.id(), "asset": ASSET, "overdraft": overdraft, "metadata": metadata})
        });
        let accounts: Vec<serde_json::Value> = partners.chain(customers).collect();
        let mut tally = Tally::default();
        for batch in accounts.chunks(BATCH) {
            let body = serde_json::to_vec(&json!({ "accounts": batch }))?;
            self.send("/v1/accounts:batch", body.into(), batch.len(), ItemAnswer::account_fate, &mut tally)
                .await
                .context("opening the bank's accounts")?;
            progress.inc(batch.len() as u64);
        }
        Ok(tally)
    }

    /// Sends every transfer of the plan, batch after batch: the next one leaves when the last one's outcome is certain.
    pub async fn send_transfers(&self, plan: &Plan, progress: &ProgressBar) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        for batch in batches(&plan.transactions, BATCH) {
            let transfers: Vec<serde_json::Value> = batch.iter().copied().map(transfer).collect();
            let body = serde_json::to_vec(&json!({ "transfers": transfers }))?;
            self.send("/v1/transfers:batch", body.into(), batch.len(), ItemAnswer::transfer_fate, &mut tally)
                .await
                .with_context(|| batch.first().map_or_else(String::new, |t| format!("replaying {}", t.date)))?;
            progress.inc(batch.len() as u64);
        }
        Ok(tally)
    }

    /// What the ledger says the account's balance is.
    pub async fn posted(&self, customer: &Customer) -> anyhow::Result<i64> {
        #[derive(Deserialize)]
        struct Account {
            posted: String,
        }
        let account: Account = self.client.get(&format!("{}/v1/accounts/{}", self.routers[0], customer.id())).await?;
        let minor = ledger::parse_minor(account.posted.trim_start_matches('-'), SCALE)
            .with_context(|| format!("balance {:?} of {}", account.posted, customer.id()))?;
        Ok(if account.posted.starts_with('-') { -minor } else { minor })
    }

    async fn send(
        &self,
        path: &str,
        body: Bytes,
        items: usize,
        fate: fn(&ItemAnswer) -> anyhow::Result<Fate>,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        // What was done by this run's own earlier attempt is not a replay.
        let mut own: Vec<bool> = vec![false; items];
        let mut pause_ms = FIRST_PAUSE_MS;
        for router in self.routers.iter().cycle().take(ATTEMPTS) {
            if let Some(results) = self.post(&format!("{router}{path}"), body.clone()).await? {
                ensure!(results.len() == items, "{path} answered {} results for {items} items", results.len());
                let fates = results.iter().map(fate).collect::<anyhow::Result<Vec<Fate>>>()?;
                for (own, fate) in own.iter_mut().zip(&fates) {
                    *own |= matches!(fate, Fate::Done | Fate::Uncertain);
                }
                if !fates.iter().any(|fate| matches!(fate, Fate::Uncertain)) {
                    tally.add(fates, &own);
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (pause_ms * 2).min(LONGEST_PAUSE_MS);
        }
        bail!("{path}: the outcome is still uncertain after {ATTEMPTS} attempts")
    }

    /// One attempt. `None`: nothing certain came back, try again.
    async fn post(&self, url: &str, body: Bytes) -> anyhow::Result<Option<Vec<ItemAnswer>>> {
        let Ok((status, answer)) = self.client.send(Method::POST, url, body).await else {
            return Ok(None);
        };
        if status.is_success() {
            return Ok(Some(serde_json::from_slice::<BatchAnswer>(&answer).context("the router's answer")?.results));
        }
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Ok(None);
        }
        match serde_json::from_slice::<Problem>(&answer) {
            Ok(problem) => Err(problem.into()),
            Err(_) => bail!("{url} answered {status}"),
        }
    }
}

fn transfer(transaction: &Transaction) -> serde_json::Value {
    let (account, partner) = (account_id(transaction.account), transaction.partner.to_string());
    let (debit, credit) = if transaction.change < 0 { (account, partner) } else { (partner, account) };
    let mut metadata = json!({"date": transaction.date.to_string()});
    for (key, value) in [("operation", &transaction.operation), ("k_symbol", &transaction.symbol)] {
        if !value.is_empty() {
            metadata[key] = json!(value);
        }
    }
    json!({
        "id": Uuid::new_v5(&NAMESPACE, transaction.id.to_string().as_bytes()),
        "debit": debit,
        "credit": credit,
        "amount": format_minor(transaction.change.abs(), SCALE),
        "asset": ASSET,
        "metadata": metadata,
    })
}

// === impl ItemAnswer ===

impl ItemAnswer {
    fn transfer_fate(&self) -> anyhow::Result<Fate> {
        self.clash()?;
        match (self.status.as_deref(), &self.code) {
            (Some("posted" | "reversed"), _) if self.replayed => Ok(Fate::Replayed),
            (Some("posted" | "reversed"), _) => Ok(Fate::Done),
            (Some("rejected"), Some(code)) => Ok(Fate::Refused(code.clone())),
            (_, Some(code)) if code == "account_not_found" => Ok(Fate::Refused(code.clone())),
            _ => Ok(Fate::Uncertain),
        }
    }

    fn account_fate(&self) -> anyhow::Result<Fate> {
        self.clash()?;
        match &self.code {
            None if self.replayed => Ok(Fate::Replayed),
            None => Ok(Fate::Done),
            Some(_) => Ok(Fate::Uncertain),
        }
    }

    /// The id is taken by something else: another file was replayed here, or the accounts were opened by hand.
    fn clash(&self) -> anyhow::Result<()> {
        match self.code.as_deref() {
            Some("idempotency_mismatch" | "account_exists") => bail!(
                "{} exists with another {}: this ledger holds something else under the bank's ids",
                self.id,
                self.field.as_deref().unwrap_or("content")
            ),
            Some(code) if code.starts_with("invalid_") => {
                bail!("{}: {code}: {}", self.id, self.detail.as_deref().unwrap_or_default())
            }
            _ => Ok(()),
        }
    }
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, fates: Vec<Fate>, own: &[bool]) {
        for (fate, own) in fates.into_iter().zip(own) {
            match fate {
                Fate::Replayed if !own => self.replayed += 1,
                Fate::Done | Fate::Replayed => self.done += 1,
                Fate::Refused(code) => *self.refused.entry(code).or_default() += 1,
                Fate::Uncertain => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> ItemAnswer {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn answers_are_told_apart() {
        let done = answer(r#"{"id": "1", "status": "posted", "replayed": false}"#);
        assert!(matches!(done.transfer_fate(), Ok(Fate::Done)));
        let replayed = answer(r#"{"id": "1", "status": "posted", "replayed": true}"#);
        assert!(matches!(replayed.transfer_fate(), Ok(Fate::Replayed)));
        let refused = answer(r#"{"id": "1", "status": "rejected", "replayed": true, "code": "insufficient_funds"}"#);
        assert!(matches!(refused.transfer_fate(), Ok(Fate::Refused(code)) if code == "insufficient_funds"));
        for uncertain in [
            r#"{"id": "1", "status": "pending", "replayed": false}"#,
            r#"{"id": "1", "status": "failed", "replayed": false, "code": "shard_unavailable"}"#,
        ] {
            assert!(matches!(answer(uncertain).transfer_fate(), Ok(Fate::Uncertain)), "{uncertain}");
        }
        let clash = answer(r#"{"id": "1", "status": "failed", "code": "idempotency_mismatch", "field": "amount"}"#);
        assert!(clash.transfer_fate().is_err());
    }

    #[test]
    fn what_an_earlier_attempt_did_is_no_replay() {
        let mut tally = Tally::default();
        tally.add(vec![Fate::Replayed, Fate::Replayed, Fate::Done], &[true, false, true]);
        assert_eq!((tally.done, tally.replayed), (2, 1));
    }
}
