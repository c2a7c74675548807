//! The stage of a test of the contract: a cluster, and functions that open accounts as the test needs them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{
    audit::sagas_end,
    client::account_path,
    cluster::{Cluster, Placement},
    database, shared,
};
use uuid::Uuid;

use super::api::{Api, Call, Reply};

/// Counts the rows of the tables that hold the orders of clients.
const ROWS: &str = "SELECT (SELECT count(*) FROM account) + (SELECT count(*) FROM journal)";

pub struct Stage {
    pub api: Api,
    pub cluster: Cluster,
    placement: Placement,
    /// A word in the ids of this test's accounts, which no other test uses.
    word: String,
    names: AtomicUsize,
}

/// A shard of the cluster by index.
pub type Shard = usize;

impl Stage {
    /// The cluster of three shards behind two routers that tests share. Other tests write to it meanwhile.
    pub async fn shared() -> anyhow::Result<Self> {
        Self::on(shared::cluster().await?).await
    }

    /// A cluster of the same size on which no other test writes meanwhile, for tests that count rows or need all that a cluster can do.
    pub async fn quiet() -> anyhow::Result<Self> {
        Self::on(shared::quiet_cluster().await?).await
    }

    /// A new cluster, for tests that freeze or kill its processes.
    pub async fn new() -> anyhow::Result<Self> {
        Self::on(Cluster::start(shared::SHARDS, shared::ROUTERS).await?).await
    }

    async fn on(cluster: Cluster) -> anyhow::Result<Self> {
        let api = Api::connect(cluster.status().routers.iter().map(|router| router.url.clone()).collect()).await?;
        let placement = cluster.placement()?;
        // The last digits of the id are random.
        let word = Uuid::now_v7().simple().to_string().split_off(20);
        Ok(Self { api, cluster, placement, word, names: AtomicUsize::new(0) })
    }

    /// Checks what every test must leave behind: no process has panicked, all sagas have ended, and `shardctl verify` and the rebuild of
    /// every projection find nothing. The requests of other tests do not disturb these checks.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.no_task_panicked().await?;
        sagas_end(&self.cluster).await?;
        self.cluster.verify_and_finish().await
    }

    /// Letters and digits that are in no id of another test.
    pub fn word(&self) -> &str {
        &self.word
    }

    /// Returns a new account id that lives on this shard.
    pub fn name(&self, shard: Shard) -> anyhow::Result<String> {
        let name = format!("{}n{}", self.word, self.names.fetch_add(1, Relaxed));
        self.placement.account_on(&format!("s{shard}"), &name, 0)
    }

    /// Opens an account as `wanted` says: an asset, then any of `posted=…` (may be negative), `overdraft=…`, `max=…`, `frozen`,
    /// `closed`. `none` leaves the account unopened. Returns its id.
    pub async fn account(&self, shard: Shard, wanted: &str) -> anyhow::Result<String> {
        let id = self.name(shard)?;
        let mut words = wanted.split_whitespace();
        let asset = words.next().filter(|word| *word != "none");
        let Some(asset) = asset else { return Ok(id) };
        let (mut posted, mut limits, mut status) = ("0", json!({"overdraft": "0"}), None);
        for word in words {
            match word.split_once('=') {
                Some(("posted", amount)) => posted = amount,
                Some(("overdraft", limit)) => limits["overdraft"] = json!(limit),
                Some(("max", limit)) => limits["max_balance"] = json!(limit),
                _ => status = Some(word),
            }
        }
        // The money moves first, because limits and status may forbid it.
        self.open(&id, asset, json!({"overdraft": "unlimited"})).await?;
        if posted != "0" {
            let other = self.name(shard)?;
            self.open(&other, asset, json!({"overdraft": "unlimited"})).await?;
            let (debit, credit, amount) = match posted.strip_prefix('-') {
                Some(amount) => (&id, &other, amount),
                None => (&other, &id, posted),
            };
            self.pay(debit, credit, amount, asset).await?;
        }
        if let Some(status) = status {
            limits["status"] = json!(status);
        }
        self.api
            .expect(Call::patch(&account_path(&id), &limits), &format!("200 {}", status.unwrap_or("open")))
            .await?;
        Ok(id)
    }

    pub async fn open(&self, id: &str, asset: &str, with: Value) -> anyhow::Result<Reply> {
        let mut body = json!({"id": id, "asset": asset});
        for (name, value) in with.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        self.api.expect(Call::post("/v1/accounts", &body), "201 open").await
    }

    /// Orders a transfer that must be posted.
    pub async fn pay(&self, debit: &str, credit: &str, amount: &str, asset: &str) -> anyhow::Result<Reply> {
        self.api.expect(order(debit, credit, amount, asset), "201 posted").await
    }

    pub async fn show(&self, account: &str) -> anyhow::Result<Value> {
        Ok(self.api.send(Call::get(&account_path(account))).await?.body)
    }

    /// The posted amount of an account.
    pub async fn posted(&self, account: &str) -> anyhow::Result<String> {
        let account = self.show(account).await?;
        account["posted"].as_str().map(str::to_owned).with_context(|| account.to_string())
    }

    /// The number of rows in all databases together.
    pub async fn rows(&self) -> anyhow::Result<i64> {
        let mut rows = 0;
        for shard in &self.cluster.status().shards {
            rows += database::number(&shard.dsn, ROWS).await?;
        }
        Ok(rows)
    }

    /// Checks in the metrics of all processes that no task has panicked.
    async fn no_task_panicked(&self) -> anyhow::Result<()> {
        let client = self.cluster.client();
        let status = self.cluster.status();
        let routers = status.routers.iter().map(|router| &router.admin_url);
        for admin in routers.chain(status.shards.iter().map(|shard| &shard.node_admin_url)) {
            let metrics = client.request(http::Method::GET, &format!("{admin}/metrics"), None).await?.text();
            ensure!(metrics.contains("shardledger_"), "{admin} has no metrics: {metrics}");
            let panics = metrics.lines().filter(|line| line.starts_with("shardledger_task_panics_total"));
            let panics: Vec<&str> = panics.filter(|line| !line.ends_with(" 0")).collect();
            expect!(panics.is_empty(), "{admin}: {panics:?}");
        }
        Ok(())
    }
}

/// An order under a new id.
pub fn order(debit: &str, credit: &str, amount: &str, asset: &str) -> Call {
    Call::post("/v1/transfers", &terms(Uuid::now_v7(), debit, credit, amount, asset))
}

/// The body of an order.
pub fn terms(id: Uuid, debit: &str, credit: &str, amount: &str, asset: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": asset})
}

/// Puts a role in the place of each account's name. The longest name is replaced first, because a name may begin with another one.
pub fn with_roles(text: String, mut roles: Vec<(&str, &str)>) -> String {
    roles.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    roles.into_iter().fold(text, |text, (name, role)| {
        text.replace(&name.replace('{', "%7B").replace('}', "%7D"), role).replace(name, role)
    })
}

/// Collects the failures of the rows of a table, so that one run shows all of them.
#[derive(Debug, Default)]
pub struct Findings(Vec<String>);

impl Findings {
    pub fn note<T>(&mut self, what: impl std::fmt::Display, result: anyhow::Result<T>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {error:#}"));
        }
    }

    pub fn conclude(self) -> anyhow::Result<()> {
        ensure!(self.0.is_empty(), "{} findings:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }
}

#[test]
fn a_name_that_begins_with_another_one_has_its_own_role() {
    let text = with_roles("a1 a a1".to_owned(), vec![("a", "DEBIT"), ("a1", "CREDIT")]);
    assert_eq!(text, "CREDIT DEBIT CREDIT");
}
