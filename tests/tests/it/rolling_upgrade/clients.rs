//! Clients that run together with the mixed load. They send orders again that the version before has answered, read accounts and
//! statements, and measure how long a shard accepts no payments.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::{
    client::{Answer, Client, Verdict, account_path, hold_path},
    cluster::Cluster,
    history::{Attempt, Capture, Life, Order, Record, RunClock, decimal},
    workload::{History, open_account},
};
use tokio::task::JoinSet;
use uuid::Uuid;

/// The number of transfers from each shard to each shard before the upgrade.
const TRANSFERS: usize = 3;
/// The amount of an order in minor units.
const AMOUNT: i64 = 200;
/// The pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause before a payment is sent again.
const AGAIN: Duration = Duration::from_millis(20);

/// Orders that were answered before the upgrade.
pub struct OldOrders {
    orders: Vec<OldOrder>,
    history: History,
}

struct OldOrder {
    path: String,
    body: Value,
    first: Answer,
}

impl OldOrders {
    /// Places transfers and captured holds from each shard to each shard.
    pub async fn place(cluster: &Cluster) -> anyhow::Result<Self> {
        let (client, placement) = (cluster.client(), cluster.placement()?);
        let mut old = Self { orders: Vec::new(), history: History::default() };
        let mut accounts = Vec::new();
        for shard in &cluster.status().shards {
            let account = placement.account_on(&shard.id, "before", 0)?;
            open_account(&client, &account, "unlimited").await?;
            let other = placement.account_on(&shard.id, "before", 1)?;
            open_account(&client, &other, "unlimited").await?;
            accounts.push((account, other));
        }
        for (debit, _) in &accounts {
            for (_, credit) in &accounts {
                let order =
                    || Order { id: Uuid::now_v7(), debit: debit.clone(), credit: credit.clone(), amount: AMOUNT };
                for _ in 0..TRANSFERS {
                    let order = order();
                    old.ask(&client, "/v1/transfers".to_owned(), order.to_json()).await?;
                    old.history.records.push(posted(order));
                }
                let (hold, capture) = (order(), order());
                let amount = decimal(AMOUNT);
                old.ask(&client, "/v1/holds".to_owned(), hold.to_json()).await?;
                let path = hold_path(hold.id, debit, "/capture");
                old.ask(&client, path, json!({"id": capture.id, "amount": amount, "final": true})).await?;
                let capture = posted(capture);
                old.history.records.push(capture.clone());
                let mut life = Life::new(posted(hold));
                life.captures.push(Capture { record: capture, finalizes: true });
                old.history.lives.push(life);
            }
        }
        Ok(old)
    }

    async fn ask(&mut self, client: &Client, path: String, body: Value) -> anyhow::Result<()> {
        let first = client.call(client.next_router(), Method::POST, &path, Some(&body)).await?;
        ensure!(first.status == 201, "{path} was answered {} {}", first.status, first.text());
        self.orders.push(OldOrder { path, body, first });
        Ok(())
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    /// Sends each order once more to each router, and compares the answers with the first ones.
    pub async fn are_answered_as_before(&self, client: &Client) -> anyhow::Result<usize> {
        for router in 0..client.routers() {
            for order in &self.orders {
                let again = client.call(router, Method::POST, &order.path, Some(&order.body)).await?;
                ensure!(again.status == 200, "{} was answered {} {}", order.path, again.status, again.text());
                order.compare(&again)?;
            }
        }
        Ok(self.orders.len())
    }
}

impl OldOrder {
    /// INV-6: the replay of an order has the same answer as the order.
    fn compare(&self, again: &Answer) -> anyhow::Result<()> {
        let is_same = again.body == self.first.body && again.is_replay();
        ensure!(is_same, "INV-6: {} was answered {}, its replay {}", self.path, self.first.text(), again.text());
        Ok(())
    }
}

fn posted(order: Order) -> Record {
    let at = Duration::ZERO;
    Record { order, attempts: vec![Attempt { invoked: at, returned: at, router: 0, verdict: Verdict::Posted }] }
}

/// The clients while they run.
pub struct OtherClients {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<anyhow::Result<Seen>>,
}

/// What the clients have seen.
#[derive(Default)]
pub struct Seen {
    pub history: History,
    pub replays: usize,
    pub reads: usize,
    /// The longest time between two acknowledged payments, for each shard.
    pub gaps: Vec<(String, Duration)>,
}

impl OtherClients {
    pub async fn start(cluster: &Cluster, client: &Arc<Client>, old: &Arc<OldOrders>) -> anyhow::Result<Self> {
        let placement = cluster.placement()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        tasks.spawn(replay(Arc::clone(client), Arc::clone(old), Arc::clone(&stop)));
        for shard in &cluster.status().shards {
            let pair =
                [placement.account_on(&shard.id, "watched", 0)?, placement.account_on(&shard.id, "watched", 1)?];
            for account in &pair {
                open_account(client, account, "unlimited").await?;
            }
            tasks.spawn(read(Arc::clone(client), pair[0].clone(), Arc::clone(&stop)));
            tasks.spawn(pay(Arc::clone(client), shard.id.clone(), pair, Arc::clone(&stop)));
        }
        Ok(Self { stop, tasks })
    }

    pub async fn finish(mut self) -> anyhow::Result<Seen> {
        self.stop.store(true, Relaxed);
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen??;
            all.history.records.extend(seen.history.records);
            all.history.anomalies.extend(seen.history.anomalies);
            all.replays += seen.replays;
            all.reads += seen.reads;
            all.gaps.extend(seen.gaps);
        }
        all.gaps.sort();
        Ok(all)
    }
}

/// Sends the old orders again, one after another.
async fn replay(client: Arc<Client>, old: Arc<OldOrders>, stop: Arc<AtomicBool>) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    for order in old.orders.iter().cycle().take_while(|_| !stop.load(Relaxed)) {
        // The gateway counts errors, so they are left out here.
        if let Ok(again) = client.call(client.next_router(), Method::POST, &order.path, Some(&order.body)).await
            && again.status == 200
        {
            seen.replays += 1;
            seen.history.anomalies.extend(order.compare(&again).err().map(|found| found.to_string()));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(seen)
}

/// Reads an account and then its statement. The newest entry of the statement must have at least the version of the account, and the
/// versions must have no gap.
async fn read(client: Arc<Client>, account: String, stop: Arc<AtomicBool>) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    while !stop.load(Relaxed) {
        // The gateway counts errors, so they are left out here.
        if let Ok(found) = client.get(client.next_router(), &account_path(&account)).await
            && let Ok(page) =
                client.get(client.next_router(), &format!("{}/entries?limit=50", account_path(&account))).await
        {
            seen.reads += 2;
            seen.history.anomalies.extend(compare(&found, &page).err().map(|wrong| wrong.to_string()));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(seen)
}

fn compare(account: &Value, page: &Value) -> anyhow::Result<()> {
    let entries = page["data"].as_array().with_context(|| format!("expected data in {page}"))?;
    let versions: Vec<i64> = entries.iter().filter_map(|entry| entry["version"].as_i64()).collect();
    let newest = versions.first().copied().unwrap_or(1);
    ensure!(newest >= account["version"].as_i64().unwrap_or(i64::MAX), "INV-12: {account} is newer than {page}");
    ensure!(versions.windows(2).all(|pair| pair[0] == pair[1] + 1), "a statement has a gap: {versions:?}");
    Ok(())
}

/// Pays between two accounts of one shard, one payment after another, each until it has a definite answer.
async fn pay(client: Arc<Client>, shard: String, pair: [String; 2], stop: Arc<AtomicBool>) -> anyhow::Result<Seen> {
    let (clock, mut seen) = (RunClock::default(), Seen::default());
    let [debit, credit] = pair;
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Relaxed) {
        let order = Order { id: Uuid::now_v7(), debit: debit.clone(), credit: credit.clone(), amount: AMOUNT };
        let (body, mut record) = (order.to_json(), Record::new(order));
        loop {
            let (router, invoked) = (client.next_router(), clock.now());
            let verdict =
                Verdict::of_transfer(&client.call(router, Method::POST, "/v1/transfers", Some(&body)).await);
            let is_definite = verdict.is_definite();
            record.attempts.push(Attempt { invoked, returned: clock.now(), router, verdict });
            if is_definite {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
        seen.history.records.push(record);
        tokio::time::sleep(PAUSE).await;
    }
    seen.gaps.push((shard, longest));
    Ok(seen)
}
