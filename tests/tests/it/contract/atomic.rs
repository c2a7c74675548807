//! Tests of atomic groups: either all of a group takes effect, on one shard, or nothing.

use anyhow::ensure;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    api::{Call, NDJSON},
    batches::results,
    stage::{Stage, terms},
};

const FAILED: &str = "failed batch_failed";

/// The accounts of a test. One has money, two have none, one is closed, and one is on another shard.
struct Group {
    stage: Stage,
    rich: String,
    poor: String,
    third: String,
    closed: String,
    elsewhere: String,
}

impl Group {
    async fn on(stage: Stage) -> anyhow::Result<Self> {
        Ok(Self {
            rich: stage.account(1, "USD posted=100").await?,
            poor: stage.account(1, "USD").await?,
            third: stage.account(1, "USD").await?,
            closed: stage.account(1, "USD closed").await?,
            elsewhere: stage.account(2, "USD").await?,
            stage,
        })
    }

    fn order(&self, debit: &str, credit: &str, amount: &str) -> Value {
        terms(Uuid::now_v7(), debit, credit, amount, "USD")
    }

    async fn send(&self, items: &[Value]) -> anyhow::Result<Vec<String>> {
        let call = Call::post("/v1/transfers:batch", &json!({"transfers": items, "atomic": true}));
        results(&self.stage.api.expect(call, "200").await?.body, items)
    }

    async fn balances(&self) -> anyhow::Result<[String; 3]> {
        let posted = |id| self.stage.posted(id);
        Ok([posted(&self.rich).await?, posted(&self.poor).await?, posted(&self.third).await?])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_takes_effect_as_a_whole_and_is_replayed_as_a_whole() -> anyhow::Result<()> {
    let group = Group::on(Stage::shared().await?).await?;
    let items = [group.order(&group.rich, &group.poor, "10"), group.order(&group.poor, &group.third, "10")];
    let found = group.send(&items).await?;
    expect!(found == ["posted", "posted"], "{found:?}");
    let again = group.send(&items).await?;
    expect!(again == ["posted replayed", "posted replayed"], "{again:?}");
    let lines: Vec<String> = items.iter().map(Value::to_string).collect();
    let lines = Call::bare(Method::POST, "/v1/transfers:batch?atomic=true", lines.join("\n"));
    let reply = group.stage.api.expect(lines.header("content-type", NDJSON), "200").await?;
    expect!(results(&reply.body, &items)? == again, "{}", reply.body);
    ensure!(group.balances().await? == ["90.00", "0.00", "10.00"], "10.00 should have moved");
    group.stage.finish().await
}

/// The refused item has its reason, and the other items have `batch_failed`. Nothing is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_with_one_refusal_leaves_nothing_and_its_ids_stay_free() -> anyhow::Result<()> {
    let group = Group::on(Stage::quiet().await?).await?;
    let nobody = group.stage.name(1)?;
    let culprits = [
        (&group.poor, &group.third, "999", "failed insufficient_funds debit"),
        (&nobody, &group.third, "1", "failed account_not_found debit"),
        (&group.rich, &nobody, "1", "failed account_not_found credit"),
        (&group.rich, &group.closed, "1", "failed account_closed credit"),
    ];
    let before = (group.balances().await?, group.stage.rows().await?);
    for (debit, credit, amount, expected) in culprits {
        for place in 0..3 {
            let mut items =
                vec![group.order(&group.rich, &group.poor, "1"), group.order(&group.poor, &group.third, "1")];
            items.insert(place, group.order(debit, credit, amount));
            let mut wanted = vec![FAILED; 3];
            wanted[place] = expected;
            for _ in 0..2 {
                let found = group.send(&items).await?;
                ensure!(found == wanted, "{found:?}, not {wanted:?}");
            }
        }
    }
    ensure!((group.balances().await?, group.stage.rows().await?) == before, "a failed group left something");

    let mut items = [group.order(&group.rich, &group.poor, "1"), group.order(&group.poor, &group.third, "999")];
    let found = group.send(&items).await?;
    expect!(found == [FAILED, "failed insufficient_funds debit"], "{found:?}");
    items[1]["amount"] = json!("1");
    let found = group.send(&items).await?;
    ensure!(found == ["posted", "posted"], "the ids were not free: {found:?}");
    group.stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_replays_what_was_posted_before_and_fails_on_other_content_or_a_refusal() -> anyhow::Result<()> {
    let group = Group::on(Stage::shared().await?).await?;
    let before = group.order(&group.rich, &group.poor, "1");
    group.stage.api.expect(Call::post("/v1/transfers", &before), "201 posted").await?;
    // A transfer that was posted before is replayed.
    let new = group.order(&group.poor, &group.third, "1");
    let found = group.send(&[before.clone(), new]).await?;
    expect!(found == ["posted replayed", "posted"], "{found:?}");
    // Other content under its id fails the group.
    let mut other = before.clone();
    other["amount"] = json!("2");
    let new = group.order(&group.rich, &group.third, "1");
    let found = group.send(&[new.clone(), other]).await?;
    expect!(found == [FAILED, "failed idempotency_mismatch amount"], "{found:?}");
    // A stored refusal fails every group that contains its id.
    let refused = group.order(&group.poor, &group.third, "999");
    let answer = "422 insufficient_funds side=debit";
    group.stage.api.expect(Call::post("/v1/transfers", &refused), answer).await?;
    let found = group.send(&[refused, new.clone()]).await?;
    expect!(found == ["rejected insufficient_funds debit replayed", FAILED], "{found:?}");
    let found = group.send(&[new]).await?;
    ensure!(found == ["posted"], "the id was not free: {found:?}");
    group.stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_across_shards_is_refused_and_leaves_nothing() -> anyhow::Result<()> {
    let group = Group::on(Stage::quiet().await?).await?;
    let rows = group.stage.rows().await?;
    let local = group.order(&group.rich, &group.poor, "1");
    for stranger in [
        group.order(&group.rich, &group.elsewhere, "1"),
        group.order(&group.elsewhere, &group.rich, "1"),
        group.order(&group.elsewhere, &group.stage.account(2, "none").await?, "1"),
    ] {
        let items = json!({"transfers": [local, stranger], "atomic": true});
        group.stage.api.expect(Call::post("/v1/transfers:batch", &items), "422 atomic_cross_shard").await?;
    }
    ensure!(group.stage.rows().await? == rows, "a refused group left rows");
    let found = group.send(&[local]).await?;
    ensure!(found == ["posted"], "the id was not free: {found:?}");
    group.stage.finish().await
}
