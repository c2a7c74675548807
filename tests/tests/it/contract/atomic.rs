//! Atomic groups: all or nothing, on one shard.

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

/// The stage's accounts: one has money, some have none, one is elsewhere.
struct Group<'a> {
    stage: &'a Stage,
    rich: String,
    poor: String,
    third: String,
    closed: String,
    elsewhere: String,
}

pub async fn groups_are_whole_or_nothing(stage: &Stage) -> anyhow::Result<()> {
    let group = Group {
        stage,
        rich: stage.account(1, "USD posted=100").await?,
        poor: stage.account(1, "USD").await?,
        third: stage.account(1, "USD").await?,
        closed: stage.account(1, "USD closed").await?,
        elsewhere: stage.account(2, "USD").await?,
    };
    group.whole().await?;
    group.not_at_all().await?;
    group.with_ids_used_before().await?;
    group.across_shards().await
}

impl Group<'_> {
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

    async fn whole(&self) -> anyhow::Result<()> {
        let items = [self.order(&self.rich, &self.poor, "10"), self.order(&self.poor, &self.third, "10")];
        let found = self.send(&items).await?;
        ensure!(found == ["posted", "posted"], "{found:?}");
        let again = self.send(&items).await?;
        ensure!(again == ["posted replayed", "posted replayed"], "{again:?}");
        let lines: Vec<String> = items.iter().map(Value::to_string).collect();
        let lines = Call::bare(Method::POST, "/v1/transfers:batch?atomic=true", lines.join("\n"));
        let reply = self.stage.api.expect(lines.header("content-type", NDJSON), "200").await?;
        ensure!(results(&reply.body, &items)? == again, "{}", reply.body);
        ensure!(self.balances().await? == ["90.00", "0.00", "10.00"], "moved otherwise");
        Ok(())
    }

    /// The culprit says why, the others that it was not them; nothing is stored, and every id stays free.
    async fn not_at_all(&self) -> anyhow::Result<()> {
        let nobody = self.stage.name(1)?;
        let culprits = [
            (&self.poor, &self.third, "999", "failed insufficient_funds debit"),
            (&nobody, &self.third, "1", "failed account_not_found debit"),
            (&self.rich, &nobody, "1", "failed account_not_found credit"),
            (&self.rich, &self.closed, "1", "failed account_closed credit"),
        ];
        let before = (self.balances().await?, self.stage.rows().await?);
        for (debit, credit, amount, expected) in culprits {
            for place in 0..3 {
                let mut items =
                    vec![self.order(&self.rich, &self.poor, "1"), self.order(&self.poor, &self.third, "1")];
                items.insert(place, self.order(debit, credit, amount));
                let mut wanted = vec![FAILED; 3];
                wanted[place] = expected;
                for _ in 0..2 {
                    let found = self.send(&items).await?;
                    ensure!(found == wanted, "{found:?}, not {wanted:?}");
                }
            }
        }
        ensure!((self.balances().await?, self.stage.rows().await?) == before, "a failed group left something");

        let mut items = [self.order(&self.rich, &self.poor, "1"), self.order(&self.poor, &self.third, "999")];
        let found = self.send(&items).await?;
        ensure!(found == [FAILED, "failed insufficient_funds debit"], "{found:?}");
        items[1]["amount"] = json!("1");
        let found = self.send(&items).await?;
        ensure!(found == ["posted", "posted"], "the ids were not free: {found:?}");
        Ok(())
    }

    async fn with_ids_used_before(&self) -> anyhow::Result<()> {
        let before = self.order(&self.rich, &self.poor, "1");
        self.stage.api.expect(Call::post("/v1/transfers", &before), "201 posted").await?;
        // What took effect before is not in the way.
        let new = self.order(&self.poor, &self.third, "1");
        let found = self.send(&[before.clone(), new]).await?;
        ensure!(found == ["posted replayed", "posted"], "{found:?}");
        // Other content is.
        let mut other = before.clone();
        other["amount"] = json!("2");
        let new = self.order(&self.rich, &self.third, "1");
        let found = self.send(&[new.clone(), other]).await?;
        ensure!(found == [FAILED, "failed idempotency_mismatch amount"], "{found:?}");
        // And so is a refusal, for ever.
        let refused = self.order(&self.poor, &self.third, "999");
        let answer = "422 insufficient_funds side=debit";
        self.stage.api.expect(Call::post("/v1/transfers", &refused), answer).await?;
        let found = self.send(&[refused, new.clone()]).await?;
        ensure!(found == ["rejected insufficient_funds debit replayed", FAILED], "{found:?}");
        let found = self.send(&[new]).await?;
        ensure!(found == ["posted"], "the id was not free: {found:?}");
        Ok(())
    }

    async fn across_shards(&self) -> anyhow::Result<()> {
        let rows = self.stage.rows().await?;
        let local = self.order(&self.rich, &self.poor, "1");
        for stranger in [
            self.order(&self.rich, &self.elsewhere, "1"),
            self.order(&self.elsewhere, &self.rich, "1"),
            self.order(&self.elsewhere, &self.stage.account(2, "none").await?, "1"),
        ] {
            let items = json!({"transfers": [local, stranger], "atomic": true});
            self.stage.api.expect(Call::post("/v1/transfers:batch", &items), "422 atomic_cross_shard").await?;
        }
        ensure!(self.stage.rows().await? == rows, "it left something");
        let found = self.send(&[local]).await?;
        ensure!(found == ["posted"], "the id was not free: {found:?}");
        Ok(())
    }
}
