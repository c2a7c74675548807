//! The router that drives captures to another shard is killed between two of their steps. Where a saga stands is arranged by
//! freezing the shard-node that would take the next step; everything else is left alone.

use anyhow::{Context, ensure};
use futures_util::future::{join_all, try_join_all};
use http::Method;
use serde_json::{Value, json};
use testkit::{
    audit::sagas_end,
    client::account_path,
    cluster::{Cluster, Member},
    database,
    process::Process,
    wait::until,
};
use uuid::Uuid;

use super::stage::{ELSEWHERE, Held, PATIENCE, SOURCE, Stage, said};

/// The router that dies, and the nodes of the two shards.
const DIES: Member = Member::Router(0);
const SOURCE_NODE: Member = Member::Node(0);
const DESTINATION_NODE: Member = Member::Node(1);

/// How a capture of a hold of 10.00 ends.
#[derive(Debug)]
struct Case {
    body: Value,
    payee_is_closed: bool,
    ends: &'static str,
    /// Of the hold, afterwards.
    status: &'static str,
    captured: &'static str,
    /// Of the payer, who began with 10.00.
    balance: (&'static str, &'static str),
}

fn cases() -> [Case; 5] {
    let case = |body: Value, ends, status, captured, balance| {
        let payee_is_closed = ends == "account_closed";
        Case { body, payee_is_closed, ends, status, captured, balance }
    };
    [
        case(json!({}), "posted", "captured", "10.00", ("0.00", "0.00")),
        case(json!({"amount": "4.00"}), "posted", "captured", "4.00", ("6.00", "0.00")),
        case(json!({"amount": "4.00", "final": false}), "posted", "held", "4.00", ("6.00", "6.00")),
        case(json!({"amount": "4.00"}), "account_closed", "held", "0.00", ("10.00", "10.00")),
        // Nothing is in flight for this one; the register is asked all the same.
        case(json!({"amount": "10.01"}), "exceeds_hold", "held", "0.00", ("10.00", "10.00")),
    ]
}

/// Captures under way, and the holds they are of.
struct Begun {
    captures: Vec<(Case, Held, Value)>,
}

impl Begun {
    async fn prepare(stage: &Stage<'_>) -> anyhow::Result<Self> {
        let captures = cases().into_iter().map(async |case| {
            let payer = stage.account(SOURCE, "10.00").await?;
            let payee = stage.account(ELSEWHERE, "0.00").await?;
            let hold = stage.hold(&payer, &payee, "10.00", None).await?;
            if case.payee_is_closed {
                let closed = json!({"status": "closed"});
                stage.send_as(Method::PATCH, &account_path(&payee), &closed).await?;
            }
            let mut body = case.body.clone();
            body["id"] = json!(Uuid::now_v7());
            anyhow::Ok((case, hold, body))
        });
        Ok(Self { captures: try_join_all(captures).await? })
    }

    /// Asks the router that is about to die, which answers nobody.
    async fn send(&self, stage: &Stage<'_>) -> anyhow::Result<()> {
        let answers = self.captures.iter().map(async |(_, hold, body)| {
            stage.client.call(0, Method::POST, &hold.path("/capture"), Some(body)).await
        });
        for answer in join_all(answers).await {
            // Killed before the deadline, or told at the deadline that it is under way.
            let is_open = answer.as_ref().map_or(true, |answer| answer.status == 202);
            ensure!(is_open, "it got an answer: {answer:?}");
        }
        Ok(())
    }

    /// Counts rows that are there for these captures on a shard.
    async fn there(&self, stage: &Stage<'_>, shard: usize, of: &str) -> anyhow::Result<()> {
        let ids: Vec<String> = self.captures.iter().map(|(_, _, body)| format!("'{}'", id_of(body))).collect();
        let sql = format!("SELECT count(*) FROM {of} IN ({})", ids.join(", "));
        let dsn = &stage.cluster.status().shards[shard].dsn;
        until(&format!("all captures are {of}"), PATIENCE, async || {
            Ok((usize::try_from(database::number(dsn, &sql).await?)? == self.captures.len()).then_some(()))
        })
        .await
    }

    /// Every client that asks again is told what became of it, and the hold and the money say the same.
    async fn ended_well(&self, stage: &Stage<'_>) -> anyhow::Result<()> {
        for (case, hold, body) in &self.captures {
            let answer = stage.send(&hold.path("/capture"), body).await?;
            let shown = stage.show(hold).await?;
            let balance = stage.balance(&hold.debit).await?;
            let told = || format!("{case:?}: {} {shown} {balance:?}", answer.text());
            ensure!(answer.is_replay() && said(&answer) == case.ends, "{}", told());
            ensure!(shown["status"] == case.status && shown["captured"] == case.captured, "{}", told());
            ensure!((balance.0.as_str(), balance.1.as_str()) == case.balance, "{}", told());
            ensure!(stage.balance(&hold.credit).await?.0 == case.captured, "{}", told());
            let found = stage.transfer(id_of(body).parse()?, &hold.debit).await?;
            let status = if case.ends == "posted" { "posted" } else { "rejected" };
            ensure!(found["status"] == status && found["hold"] == json!(hold.id), "{found}");
            if case.ends == "posted" {
                // Byte for byte what it is now, the balances after the release of a rest included.
                ensure!(answer.json()?["debit_account"]["held"] == balance.1, "{}", told());
            }
        }
        Ok(())
    }
}

fn id_of(body: &Value) -> &str {
    body["id"].as_str().unwrap_or_default()
}

const PENDING: &str = "journal f WHERE role = 1 AND NOT EXISTS ( \
     SELECT FROM journal s WHERE s.id = f.id AND s.payer = f.payer AND s.role = 2) AND id";
const DECIDED: &str = "journal WHERE role = 3 AND id";

/// The destination has heard nothing yet.
pub async fn dies_after_the_reserve(cluster: &mut Cluster) -> anyhow::Result<()> {
    let dies = cluster.process(DIES)?;
    let destination = cluster.process(DESTINATION_NODE)?;
    let stage = Stage::set(cluster).await?;
    let begun = Begun::prepare(&stage).await?;
    destination.freeze().await?;
    let harm = async {
        begun.there(&stage, 0, PENDING).await.context("reserved")?;
        dies.kill().await?;
        destination.thaw()
    };
    tokio::try_join!(begun.send(&stage), harm)?;
    drop(stage);
    recover(cluster, &begun, dies).await
}

/// The destination has spoken, and the source does not know.
pub async fn dies_after_the_verdict(cluster: &mut Cluster) -> anyhow::Result<()> {
    let dies = cluster.process(DIES)?;
    let (source, destination) = (cluster.process(SOURCE_NODE)?, cluster.process(DESTINATION_NODE)?);
    let stage = Stage::set(cluster).await?;
    let begun = Begun::prepare(&stage).await?;
    destination.freeze().await?;
    let harm = async {
        begun.there(&stage, 0, PENDING).await.context("reserved")?;
        source.freeze().await?;
        destination.thaw()?;
        begun.there(&stage, 1, DECIDED).await.context("decided")?;
        begun.there(&stage, 0, PENDING).await.context("not settled")?;
        dies.kill().await?;
        source.thaw()
    };
    tokio::try_join!(begun.send(&stage), harm)?;
    drop(stage);
    recover(cluster, &begun, dies).await
}

/// Nobody does anything; the routers' own poll finds what was left behind.
async fn recover(cluster: &mut Cluster, begun: &Begun, died: Process) -> anyhow::Result<()> {
    cluster.wait_until_ready("the router is back", &[(DIES, died)]).await?;
    sagas_end(cluster).await?;
    begun.ended_well(&Stage::set(cluster).await?).await
}
