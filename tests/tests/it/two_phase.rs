//! Tests of transfers, holds, captures and reversals that compete. One of the competing requests must win, each client must learn the
//! outcome, and no money may be made, lost or stuck.

mod closing;
mod coordinators;
mod races;

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use http::Method;
use serde_json::Value;
use testkit::{
    audit::sagas_end,
    client::{Answer, Client, account_path, hold_path, transfer_path},
    cluster::{Cluster, Placement},
    history::{hold_body, payment_body},
    wait::until,
    workload::open_account,
};
use uuid::Uuid;

/// The time within which a request must have a definite answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The shard of every payer, and the shard of payees that are on another one.
pub const SOURCE: &str = "s0";
pub const ELSEWHERE: &str = "s1";

/// A client for accounts and holds on a cluster, which other tests may share. It repeats requests until their answers are definite.
pub struct Bank<'a> {
    pub cluster: &'a Cluster,
    pub client: Client,
    placement: Placement,
    treasury: String,
    /// A word in the ids of these accounts, which no other test uses.
    name: String,
    opened: AtomicUsize,
}

/// A hold, with the accounts by which it is found.
#[derive(Debug, Clone)]
pub struct Held {
    pub id: Uuid,
    pub debit: String,
    pub credit: String,
}

impl<'a> Bank<'a> {
    pub async fn open(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let placement = cluster.placement()?;
        let name = Uuid::now_v7().simple().to_string();
        let treasury = placement.account_on(SOURCE, &format!("treasury.{name}"), 0)?;
        let client = cluster.client();
        open_account(&client, &treasury, "unlimited").await?;
        Ok(Self { cluster, client, placement, treasury, name, opened: AtomicUsize::new(0) })
    }

    /// Opens an account on a shard and pays this amount into it.
    pub async fn account(&self, shard: &str, funds: &str) -> anyhow::Result<String> {
        let n = self.opened.fetch_add(1, Relaxed);
        let id = self.placement.account_on(shard, &format!("a{n}.{}", self.name), 0)?;
        open_account(&self.client, &id, "0.00").await?;
        if funds != "0.00" {
            self.pay(&self.treasury, &id, funds).await?;
        }
        Ok(id)
    }

    pub async fn pay(&self, debit: &str, credit: &str, amount: &str) -> anyhow::Result<Uuid> {
        let id = Uuid::now_v7();
        let order = payment_body(id, debit, credit, amount);
        let answer = self.send("/v1/transfers", &order).await?;
        expect!(matches!(answer.status, 200 | 201), "{}", answer.text());
        Ok(id)
    }

    pub async fn hold(&self, debit: &str, credit: &str, amount: &str, seconds: Option<u32>) -> anyhow::Result<Held> {
        let (id, debit, credit) = (Uuid::now_v7(), debit.to_owned(), credit.to_owned());
        let order = hold_body(id, &debit, &credit, amount, seconds);
        let answer = self.send("/v1/holds", &order).await?;
        expect!(matches!(answer.status, 200 | 201), "{}", answer.text());
        Ok(Held { id, debit, credit })
    }

    /// Sends an order through one router after the other, until its answer is definite.
    pub async fn send(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send_as(Method::POST, path, body).await
    }

    pub async fn send_as(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Answer> {
        until(&format!("{path} has a definite answer"), PATIENCE, async || {
            let answer = self.client.call(self.client.next_router(), method.clone(), path, Some(body)).await?;
            Ok((!matches!(answer.status, 202 | 429 | 500..)).then_some(answer))
        })
        .await
    }

    pub async fn show(&self, held: &Held) -> anyhow::Result<Value> {
        self.client.get(self.client.next_router(), &held.path("")).await
    }

    pub async fn transfer(&self, id: Uuid, debit: &str) -> anyhow::Result<Value> {
        self.client.get(self.client.next_router(), &transfer_path(id, debit, "")).await
    }

    /// The posted and held amounts of an account.
    pub async fn balance(&self, account: &str) -> anyhow::Result<(String, String)> {
        let found = self.client.get(self.client.next_router(), &account_path(account)).await?;
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        Ok((text("posted"), text("held")))
    }
}

impl Held {
    /// The path of the hold, or of an action on it.
    pub fn path(&self, action: &str) -> String {
        hold_path(self.id, &self.debit, action)
    }
}

/// Checks that all sagas have ended, and that `shardctl verify` and the rebuild of every projection find nothing.
pub async fn finish(cluster: Cluster) -> anyhow::Result<()> {
    sagas_end(&cluster).await?;
    cluster.verify_and_finish().await
}
