//! Tests of what operators see of a cluster: metrics, alerts, dashboards and the log.

mod log;
mod queries;
mod reference;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use http::Method;
use testkit::{
    client::Client,
    cluster::{Cluster, Placement},
    history::{ASSET, payment_body},
    node::Folder,
    router::{Router, RouterConfig},
    wait::until,
    workload::open_account,
};
use uuid::Uuid;

/// Opens two accounts on different shards. The first one holds 10.00.
async fn two_accounts(cluster: &Cluster) -> anyhow::Result<(String, String)> {
    let (client, placement): (_, Placement) = (cluster.client(), cluster.placement()?);
    let bank = placement.account_on("s0", "bank", 0)?;
    let (alice, bob) = (placement.account_on("s0", "alice", 0)?, placement.account_on("s1", "bob", 0)?);
    open_account(&client, &bank, "unlimited").await?;
    open_account(&client, &alice, "0.00").await?;
    open_account(&client, &bob, "0.00").await?;
    let funds = payment_body(Uuid::now_v7(), &bank, &alice, "10.00");
    client.call(0, Method::POST, "/v1/transfers", Some(&funds)).await?.expect_status(201)?;
    Ok((alice, bob))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posted_rejected_and_replayed_transfers_are_counted_apart() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client();
    let (alice, bob) = two_accounts(&cluster).await?;
    let router = &cluster.status().routers[0].admin_url;
    let [source, destination] = [0, 1].map(|shard: usize| &cluster.status().shards[shard].node_admin_url);
    let before = Exposition::fetch(router).await?;
    let (source_before, destination_before) =
        (Exposition::fetch(source).await?, Exposition::fetch(destination).await?);

    let paid = payment_body(Uuid::now_v7(), &alice, &bob, "4.00");
    let too_much = payment_body(Uuid::now_v7(), &alice, &bob, "400.00");
    for (order, status) in [(&paid, 201), (&paid, 200), (&too_much, 422), (&too_much, 422)] {
        let answer = client.call(0, Method::POST, "/v1/transfers", Some(order)).await?;
        expect!(answer.status == status, "{}", answer.text());
    }

    let after = Exposition::fetch(router).await?;
    let grown =
        |name: &str, labels: &[(&str, &str)]| anyhow::Ok(after.value(name, labels)? - before.value(name, labels)?);
    for (outcome, more) in [("posted", 1.0), ("rejected", 1.0), ("pending", 0.0), ("failed", 0.0), ("unknown", 0.0)] {
        let found = grown("shardledger_transfers_total", &[("outcome", outcome)])?;
        ensure!(found == more, "{outcome}: {found} more, not {more}");
    }
    ensure!(grown("shardledger_transfers_rejected_total", &[("code", "insufficient_funds")])? == 1.0);
    ensure!(grown("shardledger_transfers_rejected_total", &[("code", "account_frozen")])? == 0.0);
    ensure!(grown("shardledger_transfers_replayed_total", &[])? == 2.0);

    let (source_after, destination_after) = (Exposition::fetch(source).await?, Exposition::fetch(destination).await?);
    let kind = |kind: &'static str| [("shard", "s0"), ("kind", kind)];
    for (of, more) in [("reserved", 1.0), ("settled", 1.0), ("posted", 0.0), ("compensated", 0.0)] {
        let grown = source_after.value("shardledger_bookings_total", &kind(of))?
            - source_before.value("shardledger_bookings_total", &kind(of))?;
        ensure!(grown == more, "{grown} more {of} bookings, not {more}");
    }
    let credited = [("shard", "s1"), ("kind", "credited")];
    let name = "shardledger_bookings_total";
    ensure!(destination_after.value(name, &credited)? - destination_before.value(name, &credited)? == 1.0);
    let code = [("code", "insufficient_funds")];
    let refused = |at: &Exposition| at.value("shardledger_rejections_total", &code);
    let (at_source, at_destination) = (
        refused(&source_after)? - refused(&source_before)?,
        refused(&destination_after)? - refused(&destination_before)?,
    );
    ensure!(at_source + at_destination == 1.0, "the refusal is counted {at_source} and {at_destination} times");
    ensure!(source_after.value("shardledger_sagas_open", &[])? == 0.0);
    ensure!(source_after.value("shardledger_in_transit_minor_units", &[("asset", ASSET)])? == 0.0);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_breaker_gauge_says_what_readyz_says() -> anyhow::Result<()> {
    let folder = Folder::create()?;
    // Port 1 of this machine refuses connections.
    let shard = shard_map::Shard {
        id: "s0".to_owned(),
        number: 0,
        nodes: vec!["http://127.0.0.1:1".to_owned()],
        slots: vec![shard_map::SlotRange::ALL],
    };
    let map = shard_map::ShardMap::new(shard_map::ClusterId::generate(), 1, vec![shard])?;
    let file = folder.path().join("map.toml");
    std::fs::write(&file, map.to_toml())?;
    let router = Router::start(&RouterConfig::write(&folder, "router", &file, "")?).await?;

    // The breaker closes and opens by itself, so the test compares the two only if the breaker's state is the same before and after.
    until("the breaker is open by /readyz and by the metrics", std::time::Duration::from_secs(30), async || {
        let breaker = |ready: &serde_json::Value| ready["degraded"][0]["breaker"].clone();
        let before = breaker(&router.admin(Method::GET, "/readyz?verbose").await?.json()?);
        let gauge = Exposition::parse(&router.admin(Method::GET, "/metrics").await?.text())?
            .value("shardledger_breaker_open_state", &[("shard", "s0")])?;
        let after = breaker(&router.admin(Method::GET, "/readyz?verbose").await?.json()?);
        if before != after || before == "closed" {
            return Ok(None);
        }
        ensure!(gauge == 1.0, "/readyz says {before}, and the gauge says {gauge}");
        Ok(Some(()))
    })
    .await
}

/// The metrics that one process serves, read from its `/metrics`.
#[derive(Debug, Default)]
pub struct Exposition {
    pub text: String,
    pub families: BTreeMap<String, Family>,
    samples: Vec<Sample>,
}

/// The type, the help and the labels of a metric.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// The names of the labels, apart from `le`.
    pub labels: BTreeSet<String>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Exposition {
    pub async fn fetch(admin_url: &str) -> anyhow::Result<Self> {
        let url = format!("{admin_url}/metrics");
        let answer = Client::new(Vec::new()).request(Method::GET, &url, None).await?;
        expect!(answer.status == 200, "{url}: {}", answer.text());
        Self::parse(&answer.text())
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut read = Self { text: text.to_owned(), ..Self::default() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').context("a metric without a description")?;
                read.families.entry(name.to_owned()).or_default().help = help.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("a metric without a type")?;
                read.families.entry(name.to_owned()).or_default().kind = kind.to_owned();
            } else {
                read.sample(line).with_context(|| format!("cannot read {line:?}"))?;
            }
        }
        Ok(read)
    }

    fn sample(&mut self, line: &str) -> anyhow::Result<()> {
        let (series, value) = line.rsplit_once(' ').context("the line has no value")?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let mut found = BTreeMap::new();
        // No label of this product has a comma or a quote in its value.
        for pair in labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty()) {
            let (label, value) = pair.split_once('=').context("the label has no value")?;
            found.insert(label.to_owned(), value.trim_matches('"').to_owned());
        }
        let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let family = parts.filter(|of| self.families.contains_key(*of)).unwrap_or(name);
        let family = self.families.get_mut(family).context("the metric has no type")?;
        family.labels.extend(found.keys().filter(|label| *label != "le").cloned());
        self.samples.push(Sample { name: name.to_owned(), labels: found, value: value.parse()? });
        Ok(())
    }

    /// The value of the one series that has these labels, among others.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        };
        let found: Vec<_> = self.samples.iter().filter(has).collect();
        ensure!(found.len() == 1, "{} series {name} with {labels:?}", found.len());
        Ok(found[0].value)
    }

    pub fn series(&self) -> usize {
        self.samples.len()
    }
}
