//! Payments between two accounts. The tests check that every acknowledged payment took effect once.

use anyhow::ensure;
use http::Method;
use serde_json::{Value, json};
use testkit::{
    client::{Answer, Client, account_path},
    cluster::Placement,
    history::ASSET,
    wait::until,
    workload::open_account,
};
use uuid::Uuid;

use super::NOTICED_WITHIN;

/// An account without limit, an account that is paid, and the ids of all acknowledged payments.
pub struct Payments {
    pub payer: String,
    pub payee: String,
    pub acknowledged: Vec<Uuid>,
}

/// The amount of each payment.
const AMOUNT: u32 = 1;

impl Payments {
    /// Opens the payer on one shard and the payee on another, or both on one.
    pub async fn open(
        client: &Client,
        placement: &Placement,
        payer_on: &str,
        payee_on: &str,
    ) -> anyhow::Result<Self> {
        let payer = placement.account_on(payer_on, "payer", 0)?;
        let payee = placement.account_on(payee_on, "payee", 0)?;
        Self::between(client, payer, payee).await
    }

    pub async fn between(client: &Client, payer: String, payee: String) -> anyhow::Result<Self> {
        open_account(client, &payer, "unlimited").await?;
        open_account(client, &payee, "0.00").await?;
        Ok(Self { payer, payee, acknowledged: Vec::new() })
    }

    /// Makes new payments, each acknowledged.
    pub async fn make(&mut self, client: &Client, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let id = Uuid::now_v7();
            // The router may not have reached the shards yet; it then executes nothing.
            let status = until("a payment is acknowledged", NOTICED_WITHIN, async || {
                let answer = self.send(client, id).await?;
                let status = answer.status;
                ensure!(status == 201 || status == 200, "{status} {}", answer.text());
                Ok(Some(status))
            })
            .await?;
            ensure!(status == 201 || status == 200);
            self.acknowledged.push(id);
        }
        Ok(())
    }

    /// Sends a payment, under a new id or under one that was used before.
    pub async fn send(&self, client: &Client, id: Uuid) -> anyhow::Result<Answer> {
        let order = json!({"id": id, "debit": self.payer, "credit": self.payee, "amount": format!("{AMOUNT}.00"), "asset": ASSET});
        Ok(client.call(0, Method::POST, "/v1/transfers", Some(&order)).await?)
    }

    pub async fn read(&self, client: &Client, account: &str) -> anyhow::Result<Answer> {
        Ok(client.call(0, Method::GET, &account_path(account), None).await?)
    }

    /// Checks that every acknowledged payment took effect exactly once: resent, each is answered from its stored
    /// result, and both balances are the sum of all.
    pub async fn are_there_once(&self, client: &Client) -> anyhow::Result<()> {
        for id in &self.acknowledged {
            let again = self.reached(async || self.send(client, *id).await).await?;
            ensure!(again.status == 200 && again.is_replay(), "{id}: {} {}", again.status, again.text());
        }
        self.are_posted(client, self.acknowledged.len()).await
    }

    /// Checks that the balances are those of this many payments.
    pub async fn are_posted(&self, client: &Client, count: usize) -> anyhow::Result<()> {
        let amount = format!("{}.00", count * AMOUNT as usize);
        for (account, balance) in [(&self.payer, format!("-{amount}")), (&self.payee, amount)] {
            let answer = self.reached(async || self.read(client, account).await).await?;
            ensure!(answer.status == 200, "{account}: {} {}", answer.status, answer.text());
            ensure!(answer.json()?["posted"] == *balance, "{account} should have {balance}: {}", answer.text());
        }
        Ok(())
    }

    /// Repeats the request while the router reports that it cannot reach the shard.
    async fn reached(&self, ask: impl AsyncFn() -> anyhow::Result<Answer>) -> anyhow::Result<Answer> {
        until("the router reaches the shard", NOTICED_WITHIN, async || {
            let answer = ask().await?;
            ensure!(!is_unavailable(&answer), "{}", answer.text());
            Ok(Some(answer))
        })
        .await
    }
}

/// Whether the answer says that the shard is not served and nothing was executed.
pub fn is_unavailable(answer: &Answer) -> bool {
    answer.status == 503 && answer.json().is_ok_and(|body| body["executed"] == Value::Bool(false))
}

/// Checks that a refused shard executes nothing and answers no read.
pub async fn are_refused(payments: &Payments, client: &Client) -> anyhow::Result<()> {
    for id in payments.acknowledged.iter().copied().chain([Uuid::now_v7()]) {
        let answer = payments.send(client, id).await?;
        ensure!(is_unavailable(&answer), "{id}: {} {}", answer.status, answer.text());
    }
    let read = payments.read(client, &payments.payer).await?;
    ensure!(read.status == 503, "{} {}", read.status, read.text());
    Ok(())
}
