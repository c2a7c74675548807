//! Tests of a cluster with HTTPS and mutual TLS (`docs/operations/tls.md`).

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use certificates::{Mutual, MutualFiles};
use http::Method;
use ledger::Limit;
use node_client::{ConnectError, Connection};
use serde_json::Value;
use testkit::{
    audit::audit,
    client::{Client, account_path},
    cluster::{Cluster, Member},
    node,
    seed::Seed,
    wait::until,
    workload::{Load, Mix, open_account},
};
use tokio::task::JoinSet;
use wire::convert::operation_to_wire;

const MIX: Mix = Mix {
    single_clients: 4,
    batch_clients: 2,
    two_phase_clients: 2,
    batch_items: 40,
    gives_up: true,
    request_timeout: Duration::from_secs(10),
};
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_commands_and_moves_of_slots_work_over_tls() -> anyhow::Result<()> {
    let seed = Seed::announce("tls");
    let mut cluster = Cluster::start_with_options(&["--tls"], 2, 2).await?;
    expect!(
        cluster.status().routers.iter().all(|router| router.url.starts_with("https://")),
        "{:?}",
        cluster.status()
    );
    let url = cluster.status().routers[0].url.clone();
    let plain = url.replace("https://", "http://");

    // A client without TLS is told what to do, and one that does not trust the authority refuses the router.
    let answer = Client::new(vec![plain.clone()]).call(0, Method::GET, "/v1/accounts", None).await?;
    expect!(answer.status == 400 && answer.text().contains("HTTPS"), "{} {}", answer.status, answer.text());
    let stranger = Client::new(vec![url]).call(0, Method::GET, "/v1/accounts", None).await;
    let Err(error) = stranger else { bail!("a client without the authority was answered: {stranger:?}") };
    expect!(error.not_sent && error.reason.contains("UnknownIssuer"), "{error}");

    let load = Load::start(&cluster, 12, &mut seed.random(), &seed, MIX).await?;
    // A new shard is added. `init` asks the nodes of the other shards, and slots move from node to node.
    cluster.shardctl(&["shard", "add", "s2"]).await?.successful()?;
    let plan = cluster.data_dir().join("log").join("plan.toml");
    let plan = plan.to_str().context("the path is not UTF-8")?;
    cluster.shardctl_json(&["move", "plan", "--balance", "-o", plan, "--json"]).await?;
    cluster.shardctl_json(&["move", "apply", plan, "--json"]).await?;
    let applied = cluster.shardctl_json(&["move", "apply", plan, "--finish", "--json"]).await?;
    expect!(applied["moves"][0]["phase"] == "finished", "{applied}");
    let history = load.finish().await?;
    history.has_no_error()?;
    cluster.refresh_status().await?;
    let summary = audit(&cluster, &history).await?;
    ensure!(summary.cross_shard > 20, "the load was too small: {summary:?}");

    // These commands talk to routers and to nodes.
    cluster.shardctl(&["account", "list"]).await?.successful()?;
    until("the cluster agrees", PATIENCE, async || {
        let doctor = cluster.shardctl(&["doctor"]).await?;
        expect!(doctor.code == Some(0), "{doctor:?}");
        Ok(Some(()))
    })
    .await?;
    let refused = cluster.shardctl(&["account", "list", "--url", &plain]).await?;
    expect!(refused.code == Some(1) && refused.stderr.contains("https://"), "{refused:?}");
    let shown = cluster.shardctl_json(&["tls", "show", "--json"]).await?;
    let names: Vec<&str> =
        shown["certificates"].as_array().into_iter().flatten().filter_map(|it| it["name"].as_str()).collect();
    expect!(names == ["ca", "https", "node", "operator", "router"], "{shown}");

    // A restart keeps everything.
    cluster.down().await?;
    cluster.up().await?;
    cluster.verify_and_finish().await
}

/// Makes certificates of another authority with the names of the cluster's own.
async fn strangers(cluster: &Cluster) -> anyhow::Result<std::path::PathBuf> {
    let folder = cluster.data_dir().join("tls").join("strangers");
    let dir = folder.to_str().context("the path is not UTF-8")?;
    cluster.shardctl(&["tls", "init", "--dir", dir]).await?.successful()?;
    Ok(folder)
}

fn mutual(folder: &Path, name: &str, authority: &Path) -> anyhow::Result<Mutual> {
    let files = MutualFiles {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
        authority: authority.join("ca.pem"),
    };
    Ok(Mutual::open(&files, Vec::new(), Vec::new())?)
}

/// Opens an account at a node by RPC. `Err` has the reason why the node was not called.
async fn open_by_rpc(url: &str, tls: Option<&Mutual>, account: &str) -> anyhow::Result<Result<(), String>> {
    let operation = node::open(account, Limit::Unlimited)?;
    let request = wire::ExecuteRequest {
        operations: vec![operation_to_wire(&operation, 0, 0)],
        traces: Vec::new(),
        assets_digest: 0,
        sent_at_us: 0,
    };
    let connection = match Connection::open(url, 0, 0, PATIENCE, tls).await {
        Ok(connection) => connection,
        Err(error) => return Ok(Err(error.to_string())),
    };
    match connection.client().execute(request).await {
        Ok(_) => Ok(Ok(())),
        Err(status) => {
            let silent = ConnectError::Silent { uri: url.to_owned(), status: status.message().to_owned() };
            Ok(Err(connection.explain(silent).await.to_string()))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_a_certificate_of_the_cluster_is_refused_and_nothing_is_executed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with_options(&["--tls"], 1, 1).await?;
    let (own, strangers) = (cluster.tls_dir(), strangers(&cluster).await?);
    let issue = ["tls", "issue", "web", "--for", "https", "--host", "web.internal"];
    cluster.shardctl(&issue).await?.successful()?;
    let url = &cluster.status().shards[0].node_url.clone();
    let http = cluster.client();

    for (account, tls, reason) in [
        ("plaintext", None, "takes TLS only"),
        ("stranger", Some(mutual(&strangers, "router", &own)?), "does not trust"),
        ("suspicious", Some(mutual(&strangers, "router", &strangers)?), "is of no authority in"),
        // The cluster's authority has signed this certificate for the listener of routers and not for calls.
        ("listener", Some(mutual(&own, "web", &own)?), "refuses"),
    ] {
        let refused = open_by_rpc(url, tls.as_ref(), account).await?;
        let Err(said) = refused else { bail!("{account}: the node has executed the operation") };
        expect!(said.contains(url) && said.contains(reason), "{account}: {said}");
        let answer = http.call(0, Method::GET, &account_path(account), None).await?;
        expect!(answer.status == 404, "{account}: {} {}", answer.status, answer.text());
    }

    // Now only routers may call, so the name in the node's own certificate is not allowed.
    let config = cluster.data_dir().join("config").join("s0.toml");
    let text = std::fs::read_to_string(&config)?;
    let list = text.lines().find(|line| line.starts_with("callers")).context("no callers")?.to_owned();
    let routers_only = "callers = [\"router.shardledger.internal\"]";
    std::fs::write(&config, text.replace(&list, routers_only))?;
    let killed = cluster.kill(Member::Node(0)).await?;
    until("a router's calls work again", PATIENCE * 4, async || {
        ensure!(!killed.is_alive(), "the former node runs");
        open_account(&http, "after", "0.00").await.map(Some)
    })
    .await?;
    let refused = open_by_rpc(url, Some(&mutual(&own, "node", &own)?), "name").await?;
    let Err(said) = refused else { bail!("the node has executed the operation") };
    expect!(said.contains("node.shardledger.internal") && said.contains("(router.shardledger.internal)"), "{said}");
    http.call(0, Method::GET, &account_path("name"), None).await?.expect_status(404)?;

    // The node names the caller and the reason.
    let log = std::fs::read_to_string(cluster.data_dir().join("log").join("s0.log"))?;
    for reason in ["certificate", "name", "plaintext"] {
        let line = log.lines().find(|line| line.contains("is refused") && line.contains(reason));
        ensure!(line.is_some_and(|line| line.contains("127.0.0.1")), "{reason} is missing in: {log}");
    }
    std::fs::write(&config, text)?;
    cluster.refresh_status().await?;
    cluster.terminate_and_recover(Member::Node(0)).await?;
    cluster.finish().await
}

/// Returns the answer of a router's `/readyz?verbose`.
async fn readiness(cluster: &Cluster) -> anyhow::Result<Value> {
    let url = format!("{}/readyz?verbose", cluster.status().routers[0].admin_url);
    Client::new(Vec::new()).request(Method::GET, &url, None).await?.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_under_load_without_a_failed_request() -> anyhow::Result<()> {
    let seed = Seed::announce("tls renewal");
    let mut cluster = Cluster::start_with_options(&["--tls"], 2, 1).await?;
    let load = Load::start(&cluster, 12, &mut seed.random(), &seed, MIX).await?;

    // The connections of the load stay open. These clients connect for each request.
    let urls: Vec<String> = cluster.status().routers.iter().map(|router| router.url.clone()).collect();
    let (authority, stop, made) =
        (cluster.tls_dir().join("ca.pem"), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (ends, counts) = (Arc::clone(&stop), Arc::clone(&made));
    let mut visitors = JoinSet::new();
    visitors.spawn(async move {
        while !ends.load(Relaxed) {
            Client::trusting(urls.clone(), &authority)?.get(0, "/v1/accounts").await?;
            counts.fetch_add(1, Relaxed);
        }
        anyhow::Ok(())
    });
    for round in 0..3 {
        let before = readiness(&cluster).await?;
        let visits = made.load(Relaxed);
        cluster.shardctl(&["tls", "renew", "--all", "--days", &format!("{}", 100 + round)]).await?.successful()?;
        until("the router uses the new certificates", PATIENCE, async || {
            let now = readiness(&cluster).await?;
            let renewed = |which: &str| now[which]["expires_at"] != before[which]["expires_at"];
            Ok((renewed("tls") && renewed("node_tls")).then_some(()))
        })
        .await?;
        until("clients have connected since", PATIENCE, async || Ok((made.load(Relaxed) > visits + 5).then_some(())))
            .await?;
    }
    stop.store(true, Relaxed);
    while let Some(ended) = visitors.join_next().await {
        ended??;
    }
    let history = load.finish().await?;
    history.has_no_error()?;
    audit(&cluster, &history).await?;

    // New connections between all processes work with the new certificates.
    let members: Vec<Member> = (0..2).map(Member::Node).collect();
    cluster.kill_and_recover(&members).await?;
    audit(&cluster, &history).await?;

    // A key that does not belong to the certificate is refused, and the former pair stays in use.
    let key = cluster.tls_dir().join("https.key");
    let good = std::fs::read(&key)?;
    std::fs::copy(cluster.tls_dir().join("node.key"), &key)?;
    until("the router refuses the pair", PATIENCE, async || {
        let refused = readiness(&cluster).await?;
        Ok(refused["tls"]["refused"].as_str().is_some_and(|why| why.contains("https.key")).then_some(()))
    })
    .await?;
    cluster.client().get(0, "/v1/accounts").await?;
    std::fs::write(&key, good)?;
    until("the router takes the pair again", PATIENCE, async || {
        Ok(readiness(&cluster).await?["tls"]["refused"].is_null().then_some(()))
    })
    .await?;
    cluster.finish().await
}
