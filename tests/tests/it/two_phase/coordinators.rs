//! Tests that kill the router that drives captures to another shard, between two of their steps. A test stops a saga at a step by freezing
//! the node that would make the next step.

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

use super::{Bank, ELSEWHERE, Held, PATIENCE, SOURCE, finish};

/// The router that dies, and the nodes of the two shards.
const DIES: Member = Member::Router(0);
const SOURCE_NODE: Member = Member::Node(0);
const DESTINATION_NODE: Member = Member::Node(1);

/// A capture of a hold of 10.00, and its expected end.
#[derive(Debug)]
struct Case {
    body: Value,
    payee_is_closed: bool,
    ends: &'static str,
    /// The status of the hold afterwards.
    status: &'static str,
    captured: &'static str,
    /// The balance of the payer afterwards. It began with 10.00.
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
        // This capture reserves nothing. The register is asked nevertheless.
        case(json!({"amount": "10.01"}), "exceeds_hold", "held", "0.00", ("10.00", "10.00")),
    ]
}

/// Captures under way, and their holds.
struct Begun {
    captures: Vec<(Case, Held, Value)>,
}

impl Begun {
    async fn prepare(bank: &Bank<'_>) -> anyhow::Result<Self> {
        let captures = cases().into_iter().map(async |case| {
            let payer = bank.account(SOURCE, "10.00").await?;
            let payee = bank.account(ELSEWHERE, "0.00").await?;
            let hold = bank.hold(&payer, &payee, "10.00", None).await?;
            if case.payee_is_closed {
                let closed = json!({"status": "closed"});
                bank.send_as(Method::PATCH, &account_path(&payee), &closed).await?;
            }
            let mut body = case.body.clone();
            body["id"] = json!(Uuid::now_v7());
            anyhow::Ok((case, hold, body))
        });
        Ok(Self { captures: try_join_all(captures).await? })
    }

    /// Sends the captures to the router that is about to die. It must answer none of them.
    async fn send(&self, bank: &Bank<'_>) -> anyhow::Result<()> {
        let answers = self
            .captures
            .iter()
            .map(async |(_, hold, body)| bank.client.call(0, Method::POST, &hold.path("/capture"), Some(body)).await);
        for answer in join_all(answers).await {
            // The router was killed before the deadline, or answered at the deadline that the capture is pending.
            let is_open = answer.as_ref().map_or(true, |answer| answer.status == 202);
            ensure!(is_open, "a capture was answered: {answer:?}");
        }
        Ok(())
    }

    /// Waits until a shard has a row of this kind for each capture.
    async fn there(&self, bank: &Bank<'_>, shard: usize, of: &str) -> anyhow::Result<()> {
        let ids: Vec<String> = self.captures.iter().map(|(_, _, body)| format!("'{}'", id_of(body))).collect();
        let sql = format!("SELECT count(*) FROM {of} IN ({})", ids.join(", "));
        let dsn = &bank.cluster.status().shards[shard].dsn;
        until(&format!("all captures are {of}"), PATIENCE, async || {
            Ok((usize::try_from(database::number(dsn, &sql).await?)? == self.captures.len()).then_some(()))
        })
        .await
    }

    /// Sends each capture again. It must be answered with its outcome, and the hold and the balances must agree with that.
    async fn ended_well(&self, bank: &Bank<'_>) -> anyhow::Result<()> {
        for (case, hold, body) in &self.captures {
            let answer = bank.send(&hold.path("/capture"), body).await?;
            let shown = bank.show(hold).await?;
            let balance = bank.balance(&hold.debit).await?;
            let told = || format!("{case:?}: {} {shown} {balance:?}", answer.text());
            expect!(answer.is_replay() && answer.outcome() == case.ends, "{}", told());
            expect!(shown["status"] == case.status && shown["captured"] == case.captured, "{}", told());
            expect!((balance.0.as_str(), balance.1.as_str()) == case.balance, "{}", told());
            expect!(bank.balance(&hold.credit).await?.0 == case.captured, "{}", told());
            let found = bank.transfer(id_of(body).parse()?, &hold.debit).await?;
            let status = if case.ends == "posted" { "posted" } else { "rejected" };
            expect!(found["status"] == status && found["hold"] == json!(hold.id), "{found}");
            if case.ends == "posted" {
                // The stored answer has the balances after the release of the rest.
                expect!(answer.json()?["debit_account"]["held"] == balance.1, "{}", told());
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

/// The destination has received nothing yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_is_finished_by_another_router_when_the_first_one_died_after_the_reserve() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let dies = cluster.process(DIES)?;
    let destination = cluster.process(DESTINATION_NODE)?;
    let bank = Bank::open(&cluster).await?;
    let begun = Begun::prepare(&bank).await?;
    destination.freeze().await?;
    let harm = async {
        begun.there(&bank, 0, PENDING).await.context("reserved")?;
        dies.kill().await?;
        destination.thaw()
    };
    tokio::try_join!(begun.send(&bank), harm)?;
    drop(bank);
    recover(&mut cluster, &begun, dies).await?;
    finish(cluster).await
}

/// The destination has decided, and the source does not know it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_is_finished_by_another_router_when_the_first_one_died_after_the_verdict() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let dies = cluster.process(DIES)?;
    let (source, destination) = (cluster.process(SOURCE_NODE)?, cluster.process(DESTINATION_NODE)?);
    let bank = Bank::open(&cluster).await?;
    let begun = Begun::prepare(&bank).await?;
    destination.freeze().await?;
    let harm = async {
        begun.there(&bank, 0, PENDING).await.context("reserved")?;
        source.freeze().await?;
        destination.thaw()?;
        begun.there(&bank, 1, DECIDED).await.context("decided")?;
        begun.there(&bank, 0, PENDING).await.context("not settled")?;
        dies.kill().await?;
        source.thaw()
    };
    tokio::try_join!(begun.send(&bank), harm)?;
    drop(bank);
    recover(&mut cluster, &begun, dies).await?;
    finish(cluster).await
}

/// Waits until the captures have ended. No client sends a request meanwhile, so the routers' own poll must find the open sagas.
async fn recover(cluster: &mut Cluster, begun: &Begun, died: Process) -> anyhow::Result<()> {
    cluster.wait_until_ready("the router is back", &[(DIES, died)]).await?;
    sagas_end(cluster).await?;
    begun.ended_well(&Bank::open(cluster).await?).await
}
