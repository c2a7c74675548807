//! A client that repeats requests until their answers are definite, and that opens accounts with money.

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
    client::{Answer, Client, NoAnswer, account_path, hold_path, transfer_path},
    cluster::{Cluster, Placement},
    history::{hold_body, payment_body},
    workload::open_account,
};
use uuid::Uuid;

/// The time within which a request must have a definite answer, after processes have died once or twice.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time limit of one attempt. It is short, so that the next attempt soon goes to a living router.
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

/// A client of all routers of a cluster.
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

    pub fn delete(path: String) -> Self {
        Self { method: Method::DELETE, path, body: json!({}) }
    }

    /// The request with one more member in its body.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.body[name] = value;
        self
    }

    pub fn payment(id: Uuid, debit: &str, credit: &str, amount: &str) -> Self {
        Self::post("/v1/transfers", payment_body(id, debit, credit, amount))
    }

    pub fn hold(id: Uuid, debit: &str, credit: &str, amount: &str, expires_in_s: Option<u32>) -> Self {
        Self::post("/v1/holds", hold_body(id, debit, credit, amount, expires_in_s))
    }
}

impl Named {
    pub fn hold_path(&self, action: &str) -> String {
        hold_path(self.id, &self.debit, action)
    }

    pub fn transfer_path(&self, action: &str) -> String {
        transfer_path(self.id, &self.debit, action)
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

    /// Returns the id for a new account on a shard.
    pub fn new_id(&self, shard: &str) -> anyhow::Result<String> {
        let n = self.opened.fetch_add(1, Relaxed);
        self.placement.account_on(shard, &format!("a{n}.{}", self.name), 0)
    }

    /// Opens an account on a shard and pays this amount into it.
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

    /// Sends a request through one router after the other, beginning with `first`, until its answer is definite.
    pub async fn ask(&self, first: usize, request: &Request) -> anyhow::Result<Answer> {
        let begun = Instant::now();
        for router in first.. {
            let last = match self.ask_once(router % self.routers(), request).await {
                Ok(answer) if is_certain(&answer) => return Ok(answer),
                Ok(answer) => format!("{} {}", answer.status, answer.text()),
                Err(lost) => lost.to_string(),
            };
            ensure!(begun.elapsed() < PATIENCE, "{request:?} has no definite answer, the last was {last}");
            tokio::time::sleep(PAUSE).await;
        }
        bail!("unreachable: the range of attempts has no end")
    }

    /// [`Teller::ask`] with a check of the answer's outcome.
    pub async fn must(&self, request: &Request, says: &str) -> anyhow::Result<()> {
        let answer = self.ask(0, request).await?;
        ensure!(
            answer.outcome() == says,
            "{request:?} should be answered {says}, not {} {}",
            answer.status,
            answer.text()
        );
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

    /// The posted and held amounts of an account.
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

/// The part of an answer that is the same each time the request is answered.
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
