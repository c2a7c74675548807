//! Tests of databases, nodes, routers and maps that are not the ones their users expect (`docs/adr/0008`). Each must be refused by name
//! before it does harm, and no acknowledged operation may be lost or executed twice.
//!
//! Most tests start PostgreSQL, nodes and routers themselves, through [`ShardSetup`], so that they can stop, swap
//! and replace each of them.

mod added_shard;
mod clocks;
mod earlier_state;
mod migrations;
mod promotion;
mod restore;
mod routers;
mod settings;
mod standbys;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::ensure;
use http::Method;
use serde_json::Value;
use shard_map::{ClusterId, Shard, ShardMap, SlotRange};
use testkit::{
    client::{Answer, Client, account_path},
    cluster::Placement,
    history::payment_body,
    node::{Folder, Node, NodeConfig},
    postgres::Postgres,
    proxy::TcpProxy,
    router::{Router, RouterConfig},
    seed::Seed,
    wait::until,
    workload::open_account,
};
use tokio::task::JoinSet;
use uuid::Uuid;

/// The time within which a node or router must notice a change on a busy machine. An idle machine takes a second or two.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// How long an order in the background may take. A failover or a restore may take place meanwhile, and Patroni first waits until the key of
/// the former leader expires.
const ORDERS_WITHIN: Duration = Duration::from_secs(90);

/// The pause of a client in the background before its next request.
const PAUSE: Duration = Duration::from_millis(50);

/// The part of `/readyz` that a node returns while neither reads nor writes work.
const UNREADY: &str = "\"status\":\"unready\"";

/// Checks that the text contains each of the words.
fn says(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is missing in: {text}");
    }
    Ok(())
}

/// Waits until the node's `/readyz?verbose` contains each of the words, and returns it.
async fn node_says(node: &Node, words: &[&str]) -> anyhow::Result<serde_json::Value> {
    until(&format!("the node says {words:?}"), NOTICED_WITHIN, async || {
        let readiness = node.readiness().await?;
        says(&readiness.to_string(), words)?;
        Ok(Some(readiness))
    })
    .await
}

/// The seconds that `shard-node init` waits for other nodes. Within them, nodes that were just started look at their databases.
const INIT_WAITS: &str = "30";

/// Databases `s0`, `s1` and so on, and the configuration of a node for each. Only PostgreSQL runs at first.
pub struct ShardSetup {
    pub nodes: Vec<NodeConfig>,
    pub map: ShardMap,
    /// A proxy between the nodes and PostgreSQL, if the test requests one.
    pub proxy: Option<TcpProxy>,
    pub postgres: Postgres,
    pub folder: Folder,
}

impl ShardSetup {
    pub async fn with_shards(count: u16) -> anyhow::Result<Self> {
        let (folder, postgres) = server().await?;
        Self::assemble(folder, postgres, None, count).await
    }

    /// Builds a set-up whose nodes reach their databases through a proxy.
    pub async fn behind_a_proxy(count: u16) -> anyhow::Result<Self> {
        let (folder, postgres) = server().await?;
        let proxy = TcpProxy::start(postgres.address(), Seed::announce("identity").random()).await?;
        Self::assemble(folder, postgres, Some(proxy), count).await
    }

    async fn assemble(
        folder: Folder,
        postgres: Postgres,
        proxy: Option<TcpProxy>,
        count: u16,
    ) -> anyhow::Result<Self> {
        let mut urls = Vec::new();
        for number in 0..count {
            let direct = postgres.create_database(&format!("s{number}"), "").await?;
            urls.push(proxy.as_ref().map_or(Ok(direct.clone()), |proxy| proxy.through(&direct))?);
        }
        Ok(Self { proxy, ..Self::of_databases(&urls, folder, postgres)? })
    }

    /// Builds a set-up with one shard for each URL of a database. The shards divide the slots evenly. `postgres` is the server of at
    /// least one of the databases.
    pub fn of_databases(urls: &[String], folder: Folder, postgres: Postgres) -> anyhow::Result<Self> {
        let cluster = ClusterId::generate();
        let (mut nodes, mut shards) = (Vec::new(), Vec::new());
        for ((number, slots), url) in (0..).zip(SlotRange::split_evenly(u16::try_from(urls.len())?)).zip(urls) {
            let id = format!("s{number}");
            let node = NodeConfig::write_in(&folder, &id, cluster, &id, url)?;
            shards.push(Shard { id, number, nodes: vec![node.url()], slots: vec![slots] });
            nodes.push(node);
        }
        let map = ShardMap::new(cluster, 1, shards)?;
        Ok(Self { nodes, map, proxy: None, postgres, folder })
    }

    /// Starts all nodes and initialises every database. Returns the nodes once they serve.
    pub async fn found(&self) -> anyhow::Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for config in &self.nodes {
            nodes.push(Node::start_waiting(config).await?);
        }
        for config in &self.nodes {
            self.init(config, &self.map)?;
        }
        for node in &nodes {
            node.becomes_ready().await?;
        }
        Ok(nodes)
    }

    /// Keeps the present state of a shard's database as another database. The copy records its own oid, because a
    /// restored backup or volume keeps the oid and [`Postgres::copy`] does not.
    pub async fn snapshot(&self, shard: &str, name: &str) -> anyhow::Result<()> {
        self.postgres.copy(shard, name).await?;
        let own_oid = "(SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database())";
        self.postgres.sql(name, &format!("UPDATE shardledger.shard_identity SET database_oid = {own_oid}")).await
    }

    /// Runs `shard-node init` with this map and returns its output.
    pub fn init(&self, node: &NodeConfig, map: &ShardMap) -> anyhow::Result<String> {
        let path = self.write_map(&format!("init-{}", node.shard), map)?;
        node.run(&["init", "--map", &path.display().to_string(), "--wait", INIT_WAITS])?.successful()
    }

    pub fn write_map(&self, name: &str, map: &ShardMap) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(format!("{name}.map.toml"));
        std::fs::write(&path, map.to_toml())?;
        Ok(path)
    }

    /// Starts a router with the map that the shards were founded with.
    pub async fn router(&self, name: &str) -> anyhow::Result<Router> {
        Router::start(&self.router_config(name, &self.map, "")?).await
    }

    pub fn router_config(&self, name: &str, map: &ShardMap, more: &str) -> anyhow::Result<RouterConfig> {
        RouterConfig::write(&self.folder, name, &self.write_map(name, map)?, more)
    }

    pub fn placement(&self) -> anyhow::Result<Placement> {
        Placement::new(&self.map.to_toml())
    }

    /// The URL of a shard's database, without the proxy.
    pub fn database(&self, shard: &str) -> String {
        self.postgres.url(shard)
    }
}

async fn server() -> anyhow::Result<(Folder, Postgres)> {
    let folder = Folder::create()?;
    let postgres = Postgres::start(&folder, "postgres").await?;
    Ok((folder, postgres))
}

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

    /// Opens two accounts with these ids.
    pub async fn between(client: &Client, payer: String, payee: String) -> anyhow::Result<Self> {
        open_account(client, &payer, "unlimited").await?;
        open_account(client, &payee, "0.00").await?;
        Ok(Self::of(payer, payee))
    }

    /// No payment so far between two accounts, which must be open.
    pub fn of(payer: String, payee: String) -> Self {
        Self { payer, payee, acknowledged: Vec::new() }
    }

    /// Makes new payments until each is acknowledged.
    pub async fn make(&mut self, client: &Client, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let id = Uuid::now_v7();
            // A router that has not reached the shards yet executes nothing.
            let status = until("a payment is acknowledged", NOTICED_WITHIN, async || {
                let answer = self.send(client, id).await?;
                let status = answer.status;
                expect!(status == 201 || status == 200, "{status} {}", answer.text());
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
        let order = payment_body(id, &self.payer, &self.payee, &format!("{AMOUNT}.00"));
        Ok(client.call(0, Method::POST, "/v1/transfers", Some(&order)).await?)
    }

    pub async fn read(&self, client: &Client, account: &str) -> anyhow::Result<Answer> {
        Ok(client.call(0, Method::GET, &account_path(account), None).await?)
    }

    /// Checks that every acknowledged payment took effect exactly once. Each is sent again and must be answered from its stored result, and
    /// both balances must be the sum of all.
    pub async fn are_there_once(&self, client: &Client) -> anyhow::Result<()> {
        for id in &self.acknowledged {
            let again = self.reached(async || self.send(client, *id).await).await?;
            expect!(again.status == 200 && again.is_replay(), "{id}: {} {}", again.status, again.text());
        }
        self.are_posted(client, self.acknowledged.len()).await
    }

    /// Checks that the balances are those of this many payments.
    pub async fn are_posted(&self, client: &Client, count: usize) -> anyhow::Result<()> {
        let amount = format!("{}.00", count * AMOUNT as usize);
        for (account, balance) in [(&self.payer, format!("-{amount}")), (&self.payee, amount)] {
            let answer = self.reached(async || self.read(client, account).await).await?;
            expect!(answer.status == 200, "{account}: {} {}", answer.status, answer.text());
            ensure!(answer.json()?["posted"] == *balance, "{account} should have {balance}: {}", answer.text());
        }
        Ok(())
    }

    /// Repeats the request while the router reports that it cannot reach the shard.
    async fn reached(&self, ask: impl AsyncFn() -> anyhow::Result<Answer>) -> anyhow::Result<Answer> {
        until("the router reaches the shard", NOTICED_WITHIN, async || {
            let answer = ask().await?;
            expect!(!is_unavailable(&answer), "{}", answer.text());
            Ok(Some(answer))
        })
        .await
    }
}

/// Tells clients in the background when to stop, and counts what they have done.
#[derive(Clone, Default)]
pub struct Progress {
    is_over: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
}

impl Progress {
    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Counts one completed order.
    pub fn count(&self) {
        self.done.fetch_add(1, Relaxed);
    }
}

/// Clients that send orders until they are told to stop. Each returns what was acknowledged to it.
pub struct BackgroundClients<T> {
    progress: Progress,
    tasks: JoinSet<anyhow::Result<Vec<T>>>,
}

impl<T: Send + 'static> BackgroundClients<T> {
    /// Starts a client for each plan.
    pub fn start<P, F>(plans: impl IntoIterator<Item = P>, client: impl Fn(P, Progress) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<Vec<T>>> + Send + 'static,
    {
        let (progress, mut tasks) = (Progress::default(), JoinSet::new());
        for plan in plans {
            tasks.spawn(client(plan, progress.clone()));
        }
        Self { progress, tasks }
    }

    /// Waits until the clients have completed this many more orders.
    pub async fn complete(&self, more: usize) -> anyhow::Result<()> {
        let done = || self.progress.done.load(Relaxed);
        let goal = done() + more;
        until(
            &format!("{more} more orders are completed"),
            ORDERS_WITHIN,
            async || Ok((done() >= goal).then_some(())),
        )
        .await
    }

    /// Stops the clients and returns everything that was acknowledged.
    pub async fn finish(mut self) -> anyhow::Result<Vec<T>> {
        self.progress.is_over.store(true, Relaxed);
        let mut acknowledged = Vec::new();
        while let Some(client) = self.tasks.join_next().await {
            acknowledged.extend(client??);
        }
        Ok(acknowledged)
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
        expect!(is_unavailable(&answer), "{id}: {} {}", answer.status, answer.text());
    }
    let read = payments.read(client, &payments.payer).await?;
    read.expect_status(503)?;
    Ok(())
}
