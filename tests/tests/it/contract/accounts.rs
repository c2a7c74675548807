//! Tests of accounts: changes within their limits, and reads after writes.

use anyhow::ensure;
use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::client::account_path;

use super::{
    api::Call,
    stage::{Findings, Stage, order},
};

/// The number of reads that run at the same time.
const AT_ONCE: usize = 400;

/// An account as [`Stage::account`] takes it, and its changes, each with the answer.
type AccountChanges = (&'static str, &'static [(&'static str, &'static str)]);

#[rustfmt::skip]
const STORIES: &[AccountChanges] = &[
    ("USD", &[(r#"{"status": "frozen"}"#, "200 frozen"), (r#"{"status": "frozen"}"#, "200 frozen"), (r#"{"status": "open"}"#, "200 open")]),
    ("USD", &[(r#"{"status": "closed"}"#, "200 closed"), (r#"{"status": "open"}"#, "200 open")]),
    ("USD posted=1", &[(r#"{"status": "closed"}"#, "409 account_not_empty"), (r#"{"status": "frozen"}"#, "200 frozen"), (r#"{"status": "closed"}"#, "409 account_not_empty")]),
    ("USD posted=-1 overdraft=5", &[(r#"{"status": "closed"}"#, "409 account_not_empty"), (r#"{"overdraft": "0.99"}"#, "422 insufficient_funds"), (r#"{"overdraft": "1"}"#, "200 open"), (r#"{"overdraft": "unlimited"}"#, "200 open")]),
    // A balance above a new limit stays. The limit applies to later credits.
    ("USD posted=10", &[(r#"{"max_balance": "5"}"#, "200 open"), (r#"{"max_balance": null}"#, "200 open")]),
    ("JPY", &[(r#"{"overdraft": "1.0"}"#, "400 invalid_amount at='/overdraft'"), (r#"{"max_balance": "0.5"}"#, "400 invalid_amount at='/max_balance'")]),
    ("USD", &[(r#"{"metadata": {"a": "1"}}"#, "200 open"), (r#"{"metadata": {}}"#, "200 open"), (r#"{"metadata": null}"#, "200 open")]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_keep_an_account_within_its_limits() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let mut findings = Findings::default();
    for (account, changes) in STORIES {
        for shard in 0..2 {
            let story = async {
                let id = stage.account(shard, account).await?;
                for (change, expected) in *changes {
                    let before = stage.show(&id).await?;
                    let change: Value = serde_json::from_str(change)?;
                    let reply = stage.api.expect(Call::patch(&account_path(&id), &change), expected).await?;
                    let after = stage.show(&id).await?;
                    if reply.status == 200 {
                        ensure!(reply.body == after, "answered {}, read {after}", reply.body);
                        let grows = i64::from(without_version(&before) != without_version(&after));
                        ensure!(version(&after) == version(&before) + grows, "from {before} to {after}");
                    } else {
                        ensure!(after == before, "the change was refused and had an effect: {after}");
                    }
                }
                anyhow::Ok(())
            };
            findings.note(account, story.await);
        }
    }
    findings.conclude()?;
    stage.finish().await
}

fn version(account: &Value) -> i64 {
    account["version"].as_i64().unwrap_or_default()
}

fn without_version(account: &Value) -> Value {
    let mut account = account.clone();
    for member in ["version", "updated_at"] {
        account[member] = Value::Null;
    }
    account
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_after_they_were_changed() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    for (shard, other_shard) in [(0, 0), (0, 1)] {
        let a = stage.account(shard, "USD posted=10").await?;
        let b = stage.account(other_shard, "USD").await?;
        let change = |id: &str, change: Value| Call::patch(&account_path(id), &change);
        stage.api.expect(change(&a, json!({"overdraft": "5"})), "200 open").await?;
        stage.pay(&a, &b, "15", "USD").await?;
        stage.api.expect(order(&a, &b, "0.01", "USD"), "422 insufficient_funds side=debit").await?;
        stage.api.expect(change(&a, json!({"max_balance": "0"})), "200 open").await?;
        stage.pay(&b, &a, "5", "USD").await?;
        stage.api.expect(order(&b, &a, "0.01", "USD"), "422 limit_exceeded side=credit").await?;
        stage.api.expect(change(&a, json!({"status": "closed"})), "200 closed").await?;
        stage.api.expect(order(&b, &a, "0.01", "USD"), "422 account_closed side=credit").await?;
        stage.api.expect(change(&a, json!({"status": "open", "max_balance": null})), "200 open").await?;
        stage.pay(&b, &a, "10", "USD").await?;
        stage.api.expect(change(&b, json!({"status": "closed"})), "200 closed").await?;
    }
    stage.finish().await
}

/// The test compares balances, versions and transfers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_router_has_answered_the_other_router_reads() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    for payee_shard in 0..2 {
        let payer = stage.account(0, "USD overdraft=unlimited").await?;
        let payee = stage.account(payee_shard, "USD").await?;
        for round in 1..=20_usize {
            let (writer, reader) = (round % 2, (round + 1) % 2);
            let answer =
                stage.api.send_to(writer, order(&payer, &payee, "0.01", "USD")).await?.expect("201 posted")?;
            let sum = format!("0.{round:02}");
            let read = |path: &str| stage.api.send_to(reader, Call::get(path));
            let debit = read(&account_path(&payer)).await?.body;
            ensure!(debit["posted"] == format!("-{sum}"), "round {round}: {debit}");
            ensure!(debit["version"] == answer.body["debit_account"]["version"], "{debit} after {}", answer.body);
            let credit = read(&account_path(&payee)).await?.body;
            ensure!(credit["posted"] == sum, "round {round}: {credit}");
            let id = answer.body["id"].as_str().unwrap_or_default();
            read(&format!("/v1/transfers/{id}")).await?.expect("200 posted")?;
        }
    }
    stage.finish().await
}

/// Many clients read at the same moment, as after a restart. There are more connections than the queue of a listener holds by default, and
/// more reads than a node has connections to its database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_read_by_many_clients_at_once() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let id = stage.account(0, "USD posted=1").await?;
    let path = account_path(&id);
    let read = join_all((0..AT_ONCE).map(|_| stage.api.expect(Call::get(&path), "200 open"))).await;
    let mut findings = Findings::default();
    for reply in read {
        findings.note("one of many", reply);
    }
    findings.conclude()?;
    stage.finish().await
}
