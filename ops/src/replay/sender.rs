//! The requests of a replay: batches of accounts and transfers over a router's HTTP API. Each batch is repeated under the same ids until its
//! outcome is certain.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use indicatif::ProgressBar;
use ledger::format_minor;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    bank::{Partner, SCALE, Transaction},
    plan::{Customer, ReplayPlan, account_id, batches},
};
use crate::http_client::{BatchAnswer, HttpClient, ItemAnswer, problem_of};

/// Namespace of the transfers' ids, which are version 5 UUIDs of the bank's trans_id and the same in every replay.
const NAMESPACE: Uuid = Uuid::from_u128(0x5d0c_9f0a_7f0b_4c55_9d6e_61d9_2f2b_1993);
const ASSET: &str = "CZK";
const BATCH: usize = 1_000;
/// The most attempts to send a batch while its outcome is uncertain. They take some minutes in all, which is enough for a shard to recover.
const ATTEMPTS: usize = 60;
const FIRST_PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 5_000;

pub struct ReplaySender {
    client: HttpClient,
    /// The routers. Attempts use them in turn.
    routers: Vec<String>,
}

/// The outcomes of the accounts or transfers that were sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SentTally {
    /// Items that this run put into the ledger.
    pub done: u64,
    /// Items that an earlier run put into the ledger.
    pub replayed: u64,
    /// Refused items, by code.
    pub refused: BTreeMap<String, u64>,
}

/// The meaning of an item's answer for the replay.
enum ReplayFate {
    Done,
    Replayed,
    Refused(String),
    /// The item is pending, or was not executed because a shard is unavailable. It is sent again.
    Uncertain,
}

impl ReplaySender {
    /// Keeps the routers that answer.
    pub async fn connect(client: HttpClient, urls: &[String]) -> anyhow::Result<Self> {
        let routers = client.reachable_routers(urls, &format!("/v1/accounts/{}", Partner::Cash)).await?;
        Ok(Self { client, routers })
    }

    /// Opens the partners' and the customers' accounts.
    pub async fn open_accounts(&self, plan: &ReplayPlan, progress: &ProgressBar) -> anyhow::Result<SentTally> {
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
        let mut tally = SentTally::default();
        for batch in accounts.chunks(BATCH) {
            let body = serde_json::to_vec(&json!({ "accounts": batch }))?;
            self.send("/v1/accounts:batch", body.into(), batch.len(), ItemAnswer::account_fate, &mut tally)
                .await
                .context("opening the bank's accounts")?;
            progress.inc(batch.len() as u64);
        }
        Ok(tally)
    }

    /// Sends every transfer of the plan in batches. The next batch is sent when the outcome of the previous batch is certain.
    pub async fn send_transfers(&self, plan: &ReplayPlan, progress: &ProgressBar) -> anyhow::Result<SentTally> {
        let mut tally = SentTally::default();
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

    /// The account's balance in the ledger, in minor units.
    pub async fn posted(&self, customer: &Customer) -> anyhow::Result<i64> {
        #[derive(Deserialize)]
        struct AccountBalance {
            posted: String,
        }
        let account: AccountBalance =
            self.client.get(&format!("{}/v1/accounts/{}", self.routers[0], customer.id())).await?;
        let minor = ledger::parse_minor(account.posted.trim_start_matches('-'), SCALE)
            .with_context(|| format!("balance {:?} of {}", account.posted, customer.id()))?;
        Ok(if account.posted.starts_with('-') { -minor } else { minor })
    }

    async fn send(
        &self,
        path: &str,
        body: Bytes,
        items: usize,
        fate: fn(&ItemAnswer) -> anyhow::Result<ReplayFate>,
        tally: &mut SentTally,
    ) -> anyhow::Result<()> {
        // An item that an earlier attempt of this run executed is no replay.
        let mut own: Vec<bool> = vec![false; items];
        let mut pause_ms = FIRST_PAUSE_MS;
        for router in self.routers.iter().cycle().take(ATTEMPTS) {
            if let Some(results) = self.post(&format!("{router}{path}"), body.clone()).await? {
                ensure!(results.len() == items, "{path} answered {} results for {items} items", results.len());
                let fates = results.iter().map(fate).collect::<anyhow::Result<Vec<ReplayFate>>>()?;
                for (own, fate) in own.iter_mut().zip(&fates) {
                    *own |= matches!(fate, ReplayFate::Done | ReplayFate::Uncertain);
                }
                if !fates.iter().any(|fate| matches!(fate, ReplayFate::Uncertain)) {
                    tally.add(fates, &own);
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (pause_ms * 2).min(LONGEST_PAUSE_MS);
        }
        bail!("{path}: the outcome is still uncertain after {ATTEMPTS} attempts")
    }

    /// Makes one attempt. `None`: no outcome is certain, and the batch is sent again.
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
        Err(problem_of(url, status, &answer))
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
    fn transfer_fate(&self) -> anyhow::Result<ReplayFate> {
        self.clash()?;
        match (self.status.as_deref(), &self.code) {
            (Some("posted" | "reversed"), _) if self.replayed => Ok(ReplayFate::Replayed),
            (Some("posted" | "reversed"), _) => Ok(ReplayFate::Done),
            (Some("rejected"), Some(code)) => Ok(ReplayFate::Refused(code.clone())),
            (_, Some(code)) if code == "account_not_found" => Ok(ReplayFate::Refused(code.clone())),
            _ => Ok(ReplayFate::Uncertain),
        }
    }

    fn account_fate(&self) -> anyhow::Result<ReplayFate> {
        self.clash()?;
        match &self.code {
            None if self.replayed => Ok(ReplayFate::Replayed),
            None => Ok(ReplayFate::Done),
            Some(_) => Ok(ReplayFate::Uncertain),
        }
    }

    /// Fails if something else uses the id, because another file was replayed here or the accounts were opened by hand.
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

// === impl SentTally ===

impl SentTally {
    fn add(&mut self, fates: Vec<ReplayFate>, own: &[bool]) {
        for (fate, own) in fates.into_iter().zip(own) {
            match fate {
                ReplayFate::Replayed if !own => self.replayed += 1,
                ReplayFate::Done | ReplayFate::Replayed => self.done += 1,
                ReplayFate::Refused(code) => *self.refused.entry(code).or_default() += 1,
                ReplayFate::Uncertain => {}
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
        assert!(matches!(done.transfer_fate(), Ok(ReplayFate::Done)));
        let replayed = answer(r#"{"id": "1", "status": "posted", "replayed": true}"#);
        assert!(matches!(replayed.transfer_fate(), Ok(ReplayFate::Replayed)));
        let refused = answer(r#"{"id": "1", "status": "rejected", "replayed": true, "code": "insufficient_funds"}"#);
        assert!(matches!(refused.transfer_fate(), Ok(ReplayFate::Refused(code)) if code == "insufficient_funds"));
        for uncertain in [
            r#"{"id": "1", "status": "pending", "replayed": false}"#,
            r#"{"id": "1", "status": "failed", "replayed": false, "code": "shard_unavailable"}"#,
        ] {
            assert!(matches!(answer(uncertain).transfer_fate(), Ok(ReplayFate::Uncertain)), "{uncertain}");
        }
        let clash = answer(r#"{"id": "1", "status": "failed", "code": "idempotency_mismatch", "field": "amount"}"#);
        assert!(clash.transfer_fate().is_err());
    }

    #[test]
    fn what_an_earlier_attempt_did_is_no_replay() {
        let mut tally = SentTally::default();
        tally.add(vec![ReplayFate::Replayed, ReplayFate::Replayed, ReplayFate::Done], &[true, false, true]);
        assert_eq!((tally.done, tally.replayed), (2, 1));
    }
}
