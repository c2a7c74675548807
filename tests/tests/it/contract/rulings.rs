//! Tables of the ledger's answers to transfers. Every row is played with both accounts on one shard and on two, and the answers must not
//! differ.
//!
//! Rows that break two rules test the precedence: the answer is that of the first rule in the contract.

use anyhow::ensure;
use futures_util::future::{join, join_all};
use http::Method;
use serde_json::{Value, json};
use testkit::client::account_path;
use uuid::Uuid;

use super::{
    api::{Call, Reply},
    stage::{Findings, Shard, Stage, terms, with_roles},
};

/// A row has a name, the debit account and the credit account as [`Stage::account`] takes them, the amount, the asset, and the answer.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

/// The largest amount with three decimals.
const MOST: &str = "9223372036854775.807";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_order_that_breaks_no_rule_is_posted() -> anyhow::Result<()> {
    are_the_same_wherever_accounts_live(&[
        ("all there is", "USD posted=10", "USD", "10", "USD", "201 posted"),
        ("into the overdraft", "USD posted=1 overdraft=9", "USD", "10.00", "USD", "201 posted"),
        ("without limit", "USD overdraft=unlimited", "USD", "12.3", "USD", "201 posted"),
        ("up to max_balance", "USD posted=10", "USD posted=5 max=15", "10.00", "USD", "201 posted"),
        ("to a frozen account", "USD posted=10", "USD frozen", "10.00", "USD", "201 posted"),
        ("no decimals", "JPY posted=10", "JPY", "10", "JPY", "201 posted"),
        ("eight decimals", "BTC posted=1", "BTC", "0.00000001", "BTC", "201 posted"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn the_debit_side_refuses_an_order_that_breaks_its_rules() -> anyhow::Result<()> {
    are_the_same_wherever_accounts_live(&[
        ("no debit account", "none", "USD", "1.00", "USD", "422 account_not_found side=debit"),
        ("another asset", "EUR posted=10", "USD", "1.00", "USD", "422 asset_mismatch side=debit"),
        ("closed", "USD closed", "USD", "1.00", "USD", "422 account_closed side=debit"),
        ("frozen", "USD posted=10 frozen", "USD", "1.00", "USD", "422 account_frozen side=debit"),
        ("a cent short", "USD posted=10", "USD", "10.01", "USD", "422 insufficient_funds side=debit"),
        ("a cent beyond the overdraft", "USD posted=10 overdraft=5", "USD", "15.01", "USD", "422 insufficient_funds side=debit"),
        ("less than the ledger can hold", "USD posted=-92233720368547758.07 overdraft=unlimited", "USD", "0.02", "USD", "422 balance_overflow side=debit"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn the_credit_side_refuses_an_order_that_breaks_its_rules() -> anyhow::Result<()> {
    are_the_same_wherever_accounts_live(&[
        ("no credit account", "USD posted=10", "none", "1.00", "USD", "422 account_not_found side=credit"),
        ("another asset there", "USD posted=10", "EUR", "1.00", "USD", "422 asset_mismatch side=credit"),
        ("closed there", "USD posted=10", "USD closed", "1.00", "USD", "422 account_closed side=credit"),
        ("a cent beyond max_balance", "USD posted=10", "USD posted=5 max=10", "5.01", "USD", "422 limit_exceeded side=credit"),
        ("more than the ledger can hold", "USD posted=10", "USD posted=92233720368547758.07", "0.01", "USD", "422 balance_overflow side=credit"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn the_first_broken_rule_of_the_debit_side_is_answered() -> anyhow::Result<()> {
    are_the_same_wherever_accounts_live(&[
        ("no debit account, no credit account", "none", "none", "1.00", "USD", "422 account_not_found side=debit"),
        ("another asset, and closed", "EUR closed", "USD", "1.00", "USD", "422 asset_mismatch side=debit"),
        ("another asset, and frozen", "EUR frozen", "USD", "1.00", "USD", "422 asset_mismatch side=debit"),
        ("closed, and short", "USD closed", "USD", "1.00", "USD", "422 account_closed side=debit"),
        ("frozen, and short", "USD frozen", "USD", "1.00", "USD", "422 account_frozen side=debit"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn the_debit_side_is_answered_before_the_credit_side() -> anyhow::Result<()> {
    are_the_same_wherever_accounts_live(&[
        ("short, and no credit account", "USD posted=1", "none", "1.01", "USD", "422 insufficient_funds side=debit"),
        ("frozen, and closed there", "USD posted=9 frozen", "USD closed", "1.00", "USD", "422 account_frozen side=debit"),
        ("the asset of neither", "EUR posted=9", "EUR", "1.00", "USD", "422 asset_mismatch side=debit"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn the_first_broken_rule_of_the_credit_side_is_answered() -> anyhow::Result<()> {
    are_the_same_wherever_accounts_live(&[
        ("another asset there, and closed", "USD posted=9", "EUR closed", "1.00", "USD", "422 asset_mismatch side=credit"),
        ("closed there, and beyond max_balance", "USD posted=9", "USD max=0 closed", "1.00", "USD", "422 account_closed side=credit"),
        ("beyond max_balance and the ledger", "USD posted=9", "USD posted=92233720368547758.00 max=92233720368547758.05", "0.08", "USD", "422 limit_exceeded side=credit"),
    ]).await
}

/// Plays each row with both accounts on one shard and on two.
async fn are_the_same_wherever_accounts_live(rows: &[Row]) -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let played = rows.iter().map(async |row| join(play(&stage, row, 0), play(&stage, row, 1)).await);
    let mut findings = Findings::default();
    for ((name, ..), (local, cross_shard)) in rows.iter().zip(join_all(played).await) {
        match (local, cross_shard) {
            (Ok(local), Ok(cross_shard)) if local != cross_shard => {
                findings.note(name, Err::<(), _>(anyhow::anyhow!("differs:\n  {local:#?}\n  {cross_shard:#?}")));
            }
            (local, cross_shard) => {
                findings.note(format!("{name}, local"), local);
                findings.note(format!("{name}, cross-shard"), cross_shard);
            }
        }
    }
    findings.conclude()?;
    stage.finish().await
}

/// Plays a row and returns everything that a client sees of it, without names, times and the scope.
async fn play(stage: &Stage, row: &Row, credit_shard: Shard) -> anyhow::Result<Vec<String>> {
    let (_, debit, credit, amount, asset, expected) = *row;
    let debit = stage.account(0, debit).await?;
    let credit = stage.account(credit_shard, credit).await?;
    let id = Uuid::now_v7();
    let mut body = terms(id, &debit, &credit, amount, asset);
    body["metadata"] = json!({"invoice": "7"});
    let faceless = |reply: &Reply| faceless(reply, [&debit, &credit], id);
    let mut seen = Vec::new();

    let first = stage.api.expect(Call::post("/v1/transfers", &body), expected).await?;
    let scope = if credit_shard == 0 { "local" } else { "cross_shard" };
    ensure!(first.status != 201 || first.body["scope"] == scope, "expected the scope {scope}: {}", first.body);
    ensure!(first.status == 201 || first.body["transfer_id"] == json!(id), "expected a transfer_id: {}", first.body);
    seen.push(faceless(&first));

    // A stored answer is repeated word for word. A request whose answer is not stored is decided again.
    let stored = expected != "422 account_not_found side=debit";
    let again = if stored { format!("{} replayed", expected.replace("201", "200")) } else { expected.to_owned() };
    let replay = stage.api.expect(Call::post("/v1/transfers", &body), &again).await?;
    if stored {
        ensure!(same_result(&first.body, &replay.body), "answered {}, then {}", first.body, replay.body);
        let mut other = body.clone();
        other["amount"] = json!(if asset == "JPY" { "11" } else { "11.11" });
        let mismatch = stage.api.expect(Call::post("/v1/transfers", &other), "422 idempotency_mismatch field=amount");
        seen.push(faceless(&mismatch.await?));
    }
    let found = match (stored, expected) {
        (false, _) => "404 transfer_not_found",
        (true, "201 posted") => "200 posted",
        (true, _) => "200 rejected",
    };
    // The router asks every shard, so that a second transfer of this id would be found.
    let transfer = stage.api.send(Call::get(&format!("/v1/transfers/{id}"))).await?;
    ensure!(transfer.summary().starts_with(found), "found {}", transfer.body);
    if found == "200 rejected" {
        ensure!(transfer.body["reject_code"] == first.body["code"], "rejected as {}", transfer.body);
        ensure!(transfer.body["side"] == first.body["side"], "rejected as {}", transfer.body);
    }
    seen.push(faceless(&transfer));
    for account in [&debit, &credit] {
        let mut shown = stage.api.send(Call::new(Method::GET, &account_path(account), "")).await?;
        // In a cross-shard refusal, the money goes into transit and back, so the payer has two more entries.
        for member in ["version", "updated_at"] {
            shown.body.as_object_mut().map(|members| members.remove(member));
        }
        seen.push(faceless(&shown));
    }
    Ok(seen)
}

/// No answer is an internal error, no transfer stays under way, and money that flows back makes room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_in_transit_account_cannot_hold_is_refused() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    // No other test uses this asset, so that nothing is in transit when the test begins.
    let wanted = "KWD overdraft=unlimited";
    let source = [stage.account(0, wanted).await?, stage.account(0, wanted).await?];
    let target = [stage.account(1, wanted).await?, stage.account(1, wanted).await?];
    let third = stage.account(2, wanted).await?;
    let overflow = "422 balance_overflow";
    stage.pay(&source[0], &target[0], MOST, "KWD").await?;
    let more = terms(Uuid::now_v7(), &source[1], &target[1], "0.001", "KWD");
    stage.api.expect(Call::post("/v1/transfers", &more), overflow).await?;
    // A refusal of the credit side comes before this one.
    let closed = stage.account(1, "KWD closed").await?;
    let to_closed = terms(Uuid::now_v7(), &source[1], &closed, "0.001", "KWD");
    stage.api.expect(Call::post("/v1/transfers", &to_closed), "422 account_closed side=credit").await?;
    // At the other end of the range, the magnitude of the least balance is one more than that of the greatest.
    stage.pay(&third, &target[1], "0.001", "KWD").await?;
    let refused = terms(Uuid::now_v7(), &third, &target[1], "0.001", "KWD");
    stage.api.expect(Call::post("/v1/transfers", &refused), overflow).await?;
    ensure!(
        stage.posted(&third).await? == "-0.001" && stage.posted(&source[1]).await? == "0.000",
        "money is missing"
    );
    // Local transfers need no room in transit. Money that flows back makes room again.
    stage.pay(&source[1], &source[0], "1", "KWD").await?;
    stage.pay(&target[0], &source[0], "0.001", "KWD").await?;
    stage.pay(&source[1], &target[1], "0.001", "KWD").await?;
    stage.api.expect(Call::post("/v1/transfers", &more), &format!("{overflow} replayed")).await?;
    // The test can run again on this cluster if nothing is left in transit.
    stage.pay(&target[0], &source[0], "9223372036854775.806", "KWD").await?;
    stage.pay(&target[1], &third, "0.001", "KWD").await?;
    stage.pay(&target[1], &source[1], "0.001", "KWD").await?;
    stage.finish().await
}

fn same_result(first: &Value, replay: &Value) -> bool {
    let without_request = |body: &Value| {
        let mut body = body.clone();
        body.as_object_mut().map(|members| members.remove("request_id"));
        body
    };
    without_request(first) == without_request(replay)
}

/// The answer without what may differ between two accounts in different places.
fn faceless(reply: &Reply, names: [&str; 2], id: Uuid) -> String {
    let mut body = reply.body.clone();
    if let Some(members) = body.as_object_mut() {
        for member in ["scope", "steps", "shard", "slot", "request_id"] {
            members.remove(member);
        }
        for (member, value) in members.iter_mut() {
            if member.ends_with("_at") && value.is_string() {
                *value = json!("TIME");
            }
        }
    }
    let text = body.to_string().replace(&id.to_string(), "ID");
    let text = with_roles(text, names.into_iter().zip(["DEBIT", "CREDIT"]).collect());
    format!("{} {text}", reply.summary())
}
