//! Tests of a router's log. It has one line for each request that had an effect, or whose effect is unknown (`docs/operations/logs.md`).

use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use serde_json::Value;
use testkit::{
    client::{Answer, Client},
    cluster::{Cluster, Member},
    history::payment_body,
    node::Folder,
    router::{Router, RouterConfig},
    wait::until,
};
use uuid::Uuid;

use super::two_accounts;
use crate::failpoints::{Failpoints, Interruption};

const TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_with_an_effect_or_an_unknown_one_leaves_one_line() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let (alice, bob) = two_accounts(&cluster).await?;
    let folder = Folder::create()?;
    let config = RouterConfig::write(&folder, "router", &cluster.shard_map_path(), "[log]\nformat = \"json\"\n")?;
    let router = Router::start(&config).await?;
    let client = Client::new(vec![router.url()]).with_timeout(TIMEOUT);
    let pay = async |debit: &str, credit: &str, amount: &str, id: Uuid| {
        let order = payment_body(id, debit, credit, amount);
        client.call(0, Method::POST, "/v1/transfers", Some(&order)).await
    };

    let (posted, rejected) = (Uuid::now_v7(), Uuid::now_v7());
    let first = pay(&alice, &bob, "1.00", posted).await?;
    first.expect_status(201)?;
    line_of(&router, &first, "posted", posted).await?;
    let refused = pay(&alice, &bob, "5000.00", rejected).await?;
    refused.expect_status(422)?;
    let line = line_of(&router, &refused, "rejected", rejected).await?;
    expect!(line["code"] == "insufficient_funds" && line["level"] == "INFO", "{line}");

    // The other shard receives requests and does not answer.
    let node = cluster.process(Member::Node(1))?;
    node.freeze().await?;
    let (pending, unknown) = (Uuid::now_v7(), Uuid::now_v7());
    let (under_way, lost) = tokio::join!(pay(&alice, &bob, "1.00", pending), pay(&bob, &alice, "1.00", unknown));
    node.thaw()?;
    let (under_way, lost) = (under_way?, lost?);
    expect!(under_way.status == 202 && lost.status == 504, "{} {}", under_way.text(), lost.text());
    line_of(&router, &under_way, "pending", pending).await?;
    let line = line_of(&router, &lost, "unknown", unknown).await?;
    expect!(line["level"] == "WARN" && line["error"].as_str().is_some_and(|why| why.contains("s1")), "{line}");

    // A replay has no effect. The line of the request after it is in the log, so a line of the replay would be there, too.
    let again = pay(&alice, &bob, "1.00", posted).await?;
    again.expect_status(200)?;
    let last = Uuid::now_v7();
    let after = pay(&alice, &bob, "0.01", last).await?;
    after.expect_status(201)?;
    line_of(&router, &after, "posted", last).await?;
    let of_replay = lines_of(&router, &again)?;
    ensure!(of_replay.is_empty(), "a replay leaves {of_replay:?}");
    drop(router);
    cluster.finish().await
}

/// The COMMIT of a step of a transfer takes effect, and its answer is lost. The lane decides the step again and finds it carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_commit_was_not_answered_leaves_one_line() -> anyhow::Result<()> {
    let failpoints = Failpoints::create()?;
    let cluster = failpoints.start_cluster(2, 1).await?;
    let (alice, bob) = two_accounts(&cluster).await?;
    let folder = Folder::create()?;
    let config = RouterConfig::write(&folder, "router", &cluster.shard_map_path(), "[log]\nformat = \"json\"\n")?;
    let router = Router::start(&config).await?;
    let client = Client::new(vec![router.url()]).with_timeout(Duration::from_secs(10));
    for step in ["reserve", "credit", "settle"] {
        let point = format!("{step}.after");
        failpoints.arm(&point, Interruption::Fail)?;
        let id = Uuid::now_v7();
        let order = payment_body(id, &alice, &bob, "1.00");
        let answer = client.call(0, Method::POST, "/v1/transfers", Some(&order)).await?;
        expect!(matches!(answer.status, 200 | 201), "{step}: {} {}", answer.status, answer.text());
        ensure!(failpoints.is_reached(&point), "no commit failed at {point}");
        failpoints.disarm(&point);
        let line = line_of(&router, &answer, "posted", id).await?;
        expect!(line["sent_again"] == true, "{step}: {line}");
    }
    drop(router);
    cluster.finish().await
}

/// Waits for the one line with an outcome that the request of this answer has left, and checks it.
async fn line_of(router: &Router, answer: &Answer, outcome: &str, transfer: Uuid) -> anyhow::Result<Value> {
    let lines = until("the request has left its line", Duration::from_secs(10), async || {
        let lines = lines_of(router, answer)?;
        Ok((!lines.is_empty()).then_some(lines))
    })
    .await?;
    let [line] = lines.as_slice() else { anyhow::bail!("expected one line, not {}: {lines:?}", lines.len()) };
    ensure!(line["outcome"] == outcome, "not {outcome}: {line}");
    let request = &line["span"];
    ensure!(request["transfer"] == transfer.to_string(), "it does not name the transfer {transfer}: {line}");
    expect!(request["method"] == "POST" && request["path"] == "/v1/transfers", "{line}");
    for field in ["timestamp", "target", "message"] {
        ensure!(line[field].is_string(), "no {field}: {line}");
    }
    Ok(line.clone())
}

/// The lines with an outcome that the request of this answer has left.
fn lines_of(router: &Router, answer: &Answer) -> anyhow::Result<Vec<Value>> {
    let id = answer.headers.get("x-request-id").context("no request id")?.to_str()?;
    let log = router.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter(|line| line["span"]["id"] == id && !line["outcome"].is_null()).collect())
}
