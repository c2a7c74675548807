//! Tests that an account is opened once, alone or in a batch, and whatever was changed since.

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::client::account_path;
use uuid::Uuid;

use super::{
    api::Call,
    stage::{Stage, terms},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_opened_once() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let id = stage.name(0)?;
    let body =
        json!({"id": id, "asset": "USD", "overdraft": "5", "max_balance": "100.5", "metadata": {"b": "2", "a": "ä"}});
    let opened = stage.api.expect(Call::post("/v1/accounts", &body), "201 open").await?;
    ensure!(opened.header("location") == account_path(&id), "Location {:?}", opened.header("location"));
    let shown = stage.api.expect(Call::get(opened.header("location")), "200 open").await?.body;
    ensure!(shown == opened.body, "opened {}, read {shown}", opened.body);
    for (member, value) in [
        ("id", json!(id)),
        ("asset", json!("USD")),
        ("posted", json!("0.00")),
        ("held", json!("0.00")),
        ("available", json!("5.00")),
        ("overdraft", json!("5.00")),
        ("max_balance", json!("100.50")),
        ("version", json!(1)),
        ("shard", json!("s0")),
        ("metadata", json!({"a": "ä", "b": "2"})),
    ] {
        ensure!(shown[member] == value, "{member} in {shown}");
    }
    // Equal content in another spelling is a replay.
    let mut spelt_otherwise = body.clone();
    spelt_otherwise["overdraft"] = json!("5.00");
    for again in [&body, &spelt_otherwise] {
        let again = stage.api.expect(Call::post("/v1/accounts", again), "200 open replayed").await?;
        expect!(again.body == opened.body, "{}", again.body);
    }
    for (field, value) in [
        ("asset", json!("EUR")),
        ("overdraft", json!("unlimited")),
        ("overdraft", json!("5.01")),
        ("max_balance", json!("100.51")),
        ("max_balance", json!(null)),
        ("metadata", json!({})),
        ("metadata", json!({"b": "2"})),
    ] {
        let mut other = body.clone();
        other[field] = value;
        stage.api.expect(Call::post("/v1/accounts", &other), &format!("409 account_exists field={field}")).await?;
    }
    // A default that is left out equals the same value spelt out.
    let id = stage.name(1)?;
    let bare = json!({"id": id, "asset": "JPY"});
    let opened = stage.api.expect(Call::post("/v1/accounts", &bare), "201 open").await?.body;
    expect!(opened["overdraft"] == "0" && opened["max_balance"].is_null() && opened["available"] == "0", "{opened}");
    let spelt_out = json!({"id": id, "asset": "JPY", "overdraft": "0", "max_balance": null, "metadata": {}});
    stage.api.expect(Call::post("/v1/accounts", &spelt_out), "200 open replayed").await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_account_is_opened_again_as_it_was_and_as_it_is() -> anyhow::Result<()> {
    live(&[
        ("open", r#"{"overdraft": "1"}"#, "201 open"), ("change", r#"{"overdraft": "5"}"#, "200 open"),
        ("open", r#"{"overdraft": "1"}"#, "200 open replayed"), ("open", r#"{"overdraft": "5.00"}"#, "200 open replayed"),
        ("open", r#"{"overdraft": "2"}"#, "409 account_exists field=overdraft"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_account_is_not_opened_again_as_it_was_in_between() -> anyhow::Result<()> {
    live(&[
        ("open", r#"{"max_balance": "1"}"#, "201 open"), ("change", r#"{"max_balance": "2"}"#, "200 open"), ("change", r#"{"max_balance": null}"#, "200 open"),
        ("open", r#"{"max_balance": "2"}"#, "409 account_exists field=max_balance"), ("open", r#"{"max_balance": "1.0"}"#, "200 open replayed"), ("open", "{}", "200 open replayed"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_account_is_not_opened_again_with_other_metadata() -> anyhow::Result<()> {
    live(&[
        ("open", r#"{"metadata": {"a": "ä\"", "b": "2"}}"#, "201 open"), ("change", r#"{"metadata": null, "overdraft": "unlimited"}"#, "200 open"),
        ("open", r#"{"metadata": {"b": "2", "a": "ä\""}}"#, "200 open replayed"), ("open", r#"{"overdraft": "unlimited"}"#, "200 open replayed"),
        ("open", r#"{"metadata": {"b": "2"}, "overdraft": "unlimited"}"#, "409 account_exists field=metadata"), ("open", "{}", "409 account_exists field=overdraft"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_account_is_not_opened_again_with_parts_of_what_it_was_and_is() -> anyhow::Result<()> {
    live(&[
        ("open", r#"{"overdraft": "1", "max_balance": "8"}"#, "201 open"), ("change", r#"{"overdraft": "2", "max_balance": "9"}"#, "200 open"),
        ("open", r#"{"overdraft": "1", "max_balance": "9"}"#, "409 account_exists field=overdraft"),
        ("open", r#"{"overdraft": "2", "max_balance": "8"}"#, "409 account_exists field=max_balance"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_account_is_not_opened_again_with_another_asset() -> anyhow::Result<()> {
    live(&[
        ("open", "{}", "201 open"), ("change", r#"{"overdraft": "5"}"#, "200 open"), ("open", r#"{"asset": "EUR"}"#, "409 account_exists field=asset"),
        ("open", r#"{"asset": "EUR", "overdraft": "5"}"#, "409 account_exists field=asset"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_account_is_opened_again_while_it_is_frozen_or_closed() -> anyhow::Result<()> {
    live(&[
        ("open", "{}", "201 open"), ("change", r#"{"status": "frozen", "overdraft": "5"}"#, "200 frozen"), ("open", "{}", "200 frozen replayed"),
        ("change", r#"{"status": "closed"}"#, "200 closed"), ("open", "{}", "200 closed replayed"), ("open", r#"{"overdraft": "5"}"#, "200 closed replayed"),
    ]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_account_is_opened_again_after_a_long_life() -> anyhow::Result<()> {
    live(&[
        ("open", r#"{"overdraft": "1"}"#, "201 open"), ("pay", "70", ""), ("open", r#"{"overdraft": "1"}"#, "200 open replayed"),
        ("open", r#"{"overdraft": "2"}"#, "409 account_exists field=overdraft"), ("change", r#"{"overdraft": "2"}"#, "200 open"), ("pay", "70", ""),
        ("open", r#"{"overdraft": "1"}"#, "200 open replayed"), ("open", r#"{"overdraft": "3"}"#, "409 account_exists field=overdraft"),
    ]).await
}

/// Executes the steps on one account, and compares the answers. A step is `open` or `change` with content, or `pay` with the number of
/// payments of 0.01 to the account. A creation that is sent again gets its answer, alone and in a batch, whatever was changed meanwhile.
async fn live(steps: &[(&str, &str, &str)]) -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let bank = stage.account(0, "USD overdraft=unlimited").await?;
    let id = stage.name(0)?;
    for (verb, content, expected) in steps {
        if *verb == "pay" {
            let payments: usize = content.parse()?;
            let items: Vec<Value> = (0..payments).map(|_| terms(Uuid::now_v7(), &bank, &id, "0.01", "USD")).collect();
            stage.api.expect(Call::post("/v1/transfers:batch", &json!({"transfers": items})), "200").await?;
            continue;
        }
        let content: Value = serde_json::from_str(content)?;
        if *verb == "change" {
            stage.api.expect(Call::patch(&account_path(&id), &content), expected).await?;
            continue;
        }
        let mut body = json!({"id": id, "asset": "USD"});
        for (name, value) in content.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let reply = stage.api.expect(Call::post("/v1/accounts", &body), expected).await?;
        let now = stage.show(&id).await?;
        ensure!(reply.status == 409 || reply.body == now, "answered {}, and it is {now}", reply.body);
        let batch = Call::post("/v1/accounts:batch", &json!({"accounts": [body]}));
        let in_batch = result(&stage.api.expect(batch, "200").await?.body["results"][0]);
        let expected = match expected.split_once("field=") {
            Some((_, field)) => format!("failed account_exists {field}"),
            None => "created replayed".to_owned(),
        };
        ensure!(in_batch == expected, "{body} in a batch: {in_batch}");
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_answers_each_of_its_accounts() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let there = stage.account(0, "USD").await?;
    let new: Vec<String> = (0..3).map(|shard| stage.name(shard)).collect::<anyhow::Result<_>>()?;
    let twice = stage.name(1)?;
    let body = json!({"accounts": [
        {"id": new[0], "asset": "USD"},
        {"id": there, "asset": "USD"},
        {"id": there, "asset": "EUR"},
        {"id": new[1], "asset": "BTC", "overdraft": "unlimited"},
        {"id": twice, "asset": "USD", "overdraft": "1"},
        {"id": twice, "asset": "USD", "overdraft": "1.00"},
        {"id": twice, "asset": "USD", "overdraft": "2"},
        {"id": new[2], "asset": "USD"},
    ]});
    let reply = stage.api.expect(Call::post("/v1/accounts:batch", &body), "200").await?.body;
    let results: Vec<String> = reply["results"].as_array().into_iter().flatten().map(result).collect();
    let expected = [
        "created",
        "created replayed",
        "failed account_exists asset",
        "created",
        "created",
        "created replayed",
        "failed account_exists overdraft",
        "created",
    ];
    expect!(results == expected, "{results:?}");
    let ids = reply["results"].as_array().into_iter().flatten().map(|result| &result["id"]);
    let ordered = body["accounts"].as_array().into_iter().flatten().map(|account| &account["id"]);
    ensure!(ids.eq(ordered), "the results do not have the ids of the items in order: {reply}");
    // Both routers read the accounts at once.
    for id in &new {
        for router in 0..2 {
            stage.api.send_to(router, Call::get(&account_path(id))).await?.expect("200 open")?;
        }
    }
    stage.finish().await
}

fn result(result: &Value) -> String {
    let mut words: Vec<&str> = ["status", "code", "field"].iter().filter_map(|name| result[*name].as_str()).collect();
    if result["replayed"] == true {
        words.push("replayed");
    }
    words.join(" ")
}
