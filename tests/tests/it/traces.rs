//! Tests of traces: the spans that a router and nodes send to a collector of OTLP, and their behaviour without a collector and with a dead
//! one (`docs/adr/0019`).

mod collector;

use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use testkit::{
    client::Answer,
    cluster::Cluster,
    history::payment_body,
    node::Folder,
    router::{Router, RouterConfig},
    wait::until,
    workload::open_payer_and_payee,
};
use uuid::Uuid;

use self::collector::{Collector, Recorded};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const GATEWAY: &str = "b7ad6b7169203331";
/// The time limit for events that take less than a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// The time within which a service must end. It waits for the collector for three seconds. A busy machine may need the rest.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// Opens two accounts on different shards. The first one may pay without limit.
async fn two_accounts(cluster: &Cluster) -> anyhow::Result<(String, String)> {
    let (client, placement) = (cluster.client(), cluster.placement()?);
    open_payer_and_payee(&client, &placement, ("s0", "alice"), ("s1", "bob")).await
}

/// Pays 4.00 with this `traceparent`.
async fn pay(url: &str, from: &str, to: &str, id: Uuid, traceparent: Option<&str>) -> anyhow::Result<Answer> {
    let order = payment_body(id, from, to, "4.00");
    let client = testkit::client::Client::new(Vec::new());
    let headers: Vec<_> = traceparent.map(|text| ("traceparent", text)).into_iter().collect();
    let url = format!("{url}/v1/transfers");
    Ok(client.request_with(&headers, Method::POST, &url, Some(&order)).await?)
}

fn settings(endpoint: &str) -> String {
    format!("[traces]\notlp_endpoint = \"{endpoint}\"\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_from_the_gateway_through_the_router_to_the_commits_of_two_shards() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let mut cluster = Cluster::start(2, 1).await?;
    let (alice, bob) = two_accounts(&cluster).await?;
    cluster.configure_nodes(&settings(&collector.url())).await?;
    let folder = Folder::create()?;
    let config = RouterConfig::write(&folder, "router", &cluster.shard_map_path(), &settings(&collector.url()))?;
    let router = Router::start(&config).await?;

    // The gateway has decided not to record these two.
    for _ in 0..2 {
        let unsampled = format!("00-{}-{GATEWAY}-00", Uuid::now_v7().simple());
        let answer = pay(&router.url(), &alice, &bob, Uuid::now_v7(), Some(&unsampled)).await?;
        answer.expect_status(201)?;
    }
    let id = Uuid::now_v7();
    let answer = pay(&router.url(), &alice, &bob, id, Some(&format!("00-{TRACE}-{GATEWAY}-01"))).await?;
    answer.expect_status(201)?;

    // The saga has three steps: reserve, decide and settle. Each is a call with its wait, a batch, and the three parts of the batch.
    let spans = collector.has(1 + 3 * (2 + 4)).await?;
    let strange: Vec<_> = spans.iter().filter(|span| span.trace != TRACE).collect();
    ensure!(strange.is_empty(), "spans of other traces arrived: {strange:?}");
    let within = |parent: &Recorded, name: &str| {
        spans.iter().filter(|span| span.parent == parent.id && span.name == name).collect::<Vec<_>>()
    };

    let request = collector::only(spans.iter().filter(|span| span.parent == GATEWAY).collect())?;
    expect!(request.name == "POST /v1/transfers" && request.service == "shardledger-router", "{request:?}");
    let transfer = id.to_string();
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/transfers"),
        ("http.response.status_code", "201"),
        ("shardledger.transfer_id", transfer.as_str()),
    ] {
        ensure!(request.attribute(key) == Some(value), "{key} is not {value}: {request:?}");
    }
    let request_id = answer.headers["x-request-id"].to_str()?;
    expect!(request.attribute("shardledger.request_id") == Some(request_id), "{request:?}");

    for (shard, steps) in [("s0", 2), ("s1", 1)] {
        let calls = within(request, &format!("call {shard}"));
        ensure!(calls.len() == steps, "{} calls of {shard}, not {steps}: {spans:?}", calls.len());
        for call in calls {
            expect!(call.service == "shardledger-router" && request.begun <= call.begun, "{call:?}");
            collector::only(within(call, "queue"))?;
            let batch = collector::only(within(call, "batch"))?;
            expect!(batch.service == "shardledger-node" && batch.shard.as_deref() == Some(shard), "{batch:?}");
            let parts: Vec<&Recorded> = ["queue", "decide", "commit"]
                .into_iter()
                .map(|part| collector::only(within(batch, part)))
                .collect::<anyhow::Result<_>>()?;
            ensure!(parts.iter().all(|part| part.lies_in(batch)), "{parts:?} of {batch:?}");
            expect!(parts.is_sorted_by_key(|part| part.begun), "{parts:?}");
        }
    }

    // A trace must not have accounts, amounts or metadata.
    for span in &spans {
        for secret in [alice.as_str(), bob.as_str(), "4.00"] {
            expect!(!span.attributes.iter().any(|(_, value)| value.contains(secret)), "{secret}: {span:?}");
        }
    }
    drop(router);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_begins_traces_and_sends_the_last_spans_when_it_ends() -> anyhow::Result<()> {
    let collector = Collector::start().await?;
    let cluster = Cluster::start(2, 1).await?;
    let (alice, bob) = two_accounts(&cluster).await?;
    let folder = Folder::create()?;
    let config = RouterConfig::write(&folder, "router", &cluster.shard_map_path(), &settings(&collector.url()))?;
    let router = Router::start(&config).await?;
    let answer = pay(&router.url(), &alice, &bob, Uuid::now_v7(), None).await?;
    answer.expect_status(201)?;
    let refused = pay(&router.url(), "no account", &bob, Uuid::now_v7(), None).await?;
    router.process().terminate(ENDS_WITHIN).await?;

    let spans = collector.spans();
    let requests: Vec<_> = spans.iter().filter(|span| span.name == "POST /v1/transfers").collect();
    expect!(requests.len() == 2 && requests[0].trace != requests[1].trace, "{requests:?}");
    expect!(requests.iter().all(|request| request.parent.is_empty()), "{requests:?}");
    let code = requests.iter().find_map(|request| request.attribute("shardledger.code"));
    expect!(code == Some(refused.code().as_str()), "{requests:?}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_recorded_without_a_collector() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let (alice, bob) = two_accounts(&cluster).await?;
    let router = &cluster.status().routers[0];
    let traceparent = format!("00-{TRACE}-{GATEWAY}-01");
    let answer = pay(&router.url, &alice, &bob, Uuid::now_v7(), Some(&traceparent)).await?;
    answer.expect_status(201)?;
    let nodes = cluster.status().shards.iter().map(|shard| shard.node_admin_url.clone());
    for url in [router.admin_url.clone()].into_iter().chain(nodes) {
        let counted = Counted::at(&url).await?;
        expect!(counted == Counted::default(), "{url}: {counted:?}");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_go_on_while_the_collector_is_dead() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let (alice, bob) = two_accounts(&cluster).await?;
    // The kernel accepts connections, and nothing reads from them. Port 1 of this machine refuses connections.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let silent_url = format!("http://{}", silent.local_addr()?);
    cluster.configure_nodes(&settings(&silent_url)).await?;
    for (name, endpoint) in [("silent", silent_url.as_str()), ("refusing", "http://127.0.0.1:1")] {
        let folder = Folder::create()?;
        let config = RouterConfig::write(&folder, name, &cluster.shard_map_path(), &settings(endpoint))?;
        let router = Router::start(&config).await?;
        for _ in 0..20 {
            let answer = pay(&router.url(), &alice, &bob, Uuid::now_v7(), None).await?;
            expect!(answer.status == 201, "{name}: {}", answer.text());
        }
        until("the router has counted the spans that it lost", PATIENCE, async || {
            let text = router.admin(Method::GET, "/metrics").await?.text();
            Ok((Counted::read(&text)?.not_exported > 0).then_some(()))
        })
        .await?;
        router.process().terminate(ENDS_WITHIN).await?;
        let log = router.log();
        let lines = log.lines().filter(|line| line.contains("does not take spans")).count();
        ensure!(lines == 1, "{name}: {lines} lines: {log}");
    }
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_endpoint_is_an_error_of_the_configuration() -> anyhow::Result<()> {
    let folder = Folder::create()?;
    let map = folder.path().join("map.toml");
    for (name, endpoint, word) in
        [("scheme", "collector:4317", "http://"), ("path", "http://collector:4318/v1/traces", "4317")]
    {
        let config = RouterConfig::write(&folder, name, &map, &settings(endpoint))?;
        let said = Router::start_refused(&config).await?;
        expect!(said.contains("traces.otlp_endpoint") && said.contains(word), "{said}");
    }
    Ok(())
}

/// The numbers of spans in a service's metrics.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    exported: u64,
    queue_full: u64,
    not_exported: u64,
}

impl Counted {
    async fn at(admin_url: &str) -> anyhow::Result<Self> {
        let client = testkit::client::Client::new(Vec::new());
        Self::read(&client.request(Method::GET, &format!("{admin_url}/metrics"), None).await?.text())
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let value = |name: &str, label: &str| -> anyhow::Result<u64> {
            let series = text.lines().find(|line| line.starts_with(name) && line.contains(label));
            let (_, value) =
                series.and_then(|line| line.rsplit_once(' ')).with_context(|| format!("no {name}{label}"))?;
            Ok(value.parse()?)
        };
        Ok(Self {
            exported: value("shardledger_trace_spans_exported_total", "")?,
            queue_full: value("shardledger_trace_spans_dropped_total", "queue_full")?,
            not_exported: value("shardledger_trace_spans_dropped_total", "not_exported")?,
        })
    }
}
