//! Requests that are sent until they are answered for certain, and accounts with money in them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::{
    client::{Answer, Client, NoAnswer, account_path, escaped},
    cluster::{Cluster, Placement},
    history::ASSET,
    workload::open_account,
};
use uuid::Uuid;

/// How long a request may take to be answered for certain, after everything has died once or twice.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time limit of one attempt. It is short, so that the next attempt goes to a router that lives.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(25);

/// One HTTP request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub path: String,
    pub body: Value,
}

/// A transfer or hold, and the account that it belongs to.
#[derive(Debug, Clone)]
pub struct Named {
    pub id: Uuid,
    pub debit: String,
}

/// Speaks to all routers of a cluster.
#[derive(Clone)]
pub struct Teller {
    client: Arc<Client>,
    placement: Placement,
    /// Distinguishes the accounts of one teller from those of another on the same cluster.
    name: String,
    opened: Arc<AtomicUsize>,
}

impl Request {
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body }
    }

    pub fn payment(id: Uuid, debit: &str, credit: &str, amount: &str) -> Self {
        Self::post("/v1/transfers", payment(id, debit, credit, amount))
    }

    pub fn hold(id: Uuid, debit: &str, credit: &str, amount: &str, expires_in_s: Option<u32>) -> Self {
        let mut body = payment(id, debit, credit, amount);
        body["expires_in_s"] = json!(expires_in_s);
        Self::post("/v1/holds", body)
    }
}

pub fn payment(id: Uuid, debit: &str, credit: &str, amount: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": ASSET})
}

impl Named {
    pub fn hold_path(&self, action: &str) -> String {
        format!("/v1/holds/{}{action}?debit={}", self.id, escaped(&self.debit))
    }

    pub fn transfer_path(&self, action: &str) -> String {
        format!("/v1/transfers/{}{action}?debit={}", self.id, escaped(&self.debit))
    }
}

impl Teller {
    pub fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        Ok(Self {
            client: Arc::new(cluster.client().with_timeout(ATTEMPT)),
            placement: cluster.placement()?,
            name: Uuid::now_v7().simple().to_string(),
            opened: Arc::default(),
        })
    }

    /// The id of an account on a shard. No other account has it.
    pub fn new_id(&self, shard: &str) -> anyhow::Result<String> {
        let n = self.opened.fetch_add(1, Relaxed);
        self.placement.account_on(shard, &format!("a{n}.{}", self.name), 0)
    }

    /// A new account on a shard, with so much in it.
    pub async fn account(&self, shard: &str, funds: &str) -> anyhow::Result<String> {
        let id = self.new_id(shard)?;
        open_account(&self.client, &id, "0.00").await?;
        if funds != "0.00" {
            let bank = self.new_id(shard)?;
            open_account(&self.client, &bank, "unlimited").await?;
            self.must(&Request::payment(Uuid::now_v7(), &bank, &id, funds), "posted").await?;
        }
        Ok(id)
    }

    /// Sends a request through one router after the other, beginning with `first`, until it is answered for certain.
    pub async fn ask(&self, first: usize, request: &Request) -> anyhow::Result<Answer> {
        let begun = Instant::now();
        for router in first.. {
            let last = match self.ask_once(router % self.routers(), request).await {
                Ok(answer) if is_certain(&answer) => return Ok(answer),
                Ok(answer) => format!("{} {}", answer.status, answer.text()),
                Err(lost) => lost.to_string(),
            };
            ensure!(begun.elapsed() < PATIENCE, "{request:?} has no certain answer, the last was {last}");
            tokio::time::sleep(PAUSE).await;
        }
        bail!("a router has every number")
    }

    /// [`Teller::ask`] where the answer is known beforehand.
    pub async fn must(&self, request: &Request, says: &str) -> anyhow::Result<()> {
        let answer = self.ask(0, request).await?;
        ensure!(said(&answer) == says, "{request:?} was answered {} {}", answer.status, answer.text());
        Ok(())
    }

    /// Asks one router once.
    async fn ask_once(&self, router: usize, request: &Request) -> Result<Answer, NoAnswer> {
        let Request { method, path, body } = request;
        self.client.call(router, method.clone(), path, Some(body)).await
    }

    pub fn routers(&self) -> usize {
        self.client.routers()
    }

    pub async fn show_hold(&self, hold: &Named) -> anyhow::Result<Value> {
        self.client.get(self.client.next_router(), &hold.hold_path("")).await
    }

    /// What an account has, as (posted, held).
    pub async fn balance(&self, account: &str) -> anyhow::Result<(String, String)> {
        let found = self.client.get(self.client.next_router(), &account_path(account)).await?;
        let text =
            |name: &str| found[name].as_str().map(str::to_owned).with_context(|| format!("no {name}: {found}"));
        Ok((text("posted")?, text("held")?))
    }
}

fn is_certain(answer: &Answer) -> bool {
    !matches!(answer.status, 202 | 429 | 500..) && answer.code() != "undetermined"
}

/// `posted`, `insufficient_funds` … of an answer: its status, or the code of its refusal. Of a batch: what all of its items say.
pub fn said(answer: &Answer) -> String {
    let body = answer.json().unwrap_or_default();
    if let Some(items) = body["results"].as_array() {
        let mut statuses: Vec<&str> = items.iter().filter_map(|item| item["status"].as_str()).collect();
        statuses.dedup();
        return statuses.join(", ");
    }
    body["code"].as_str().or(body["status"].as_str()).unwrap_or_default().to_owned()
}

/// What must be the same whenever a request is answered.
pub fn content(answer: &Answer) -> anyhow::Result<Value> {
    let mut body = answer.json()?;
    if let Some(members) = body.as_object_mut() {
        members.remove("request_id");
    }
    for item in body["results"].as_array_mut().into_iter().flatten() {
        item.as_object_mut().map(|members| members.remove("replayed"));
    }
    Ok(body)
}
