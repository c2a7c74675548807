//! Tests of single transfers: what names them, where they are found, and what they show.

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::client::{account_path, escaped};
use uuid::Uuid;

use super::{
    api::Call,
    stage::{Stage, terms},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_names_a_transfer_of_its_debit_account() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let payers = [stage.account(0, "USD posted=9").await?, stage.account(0, "USD posted=9").await?];
    for payee_shard in 0..2 {
        let payee = stage.account(payee_shard, "USD").await?;
        let order =
            |payer: &str, amount: &str| json!({"debit": payer, "credit": payee, "amount": amount, "asset": "USD"});
        let send = |body: Value, key: &str| {
            stage.api.send(Call::post("/v1/transfers", &body).header("idempotency-key", key))
        };
        let key = format!("invoice {payee_shard} ~!");
        let first = send(order(&payers[0], "1"), &key).await?.expect("201 posted")?;
        let again = send(order(&payers[0], "1.00"), &key).await?.expect("200 posted replayed")?;
        ensure!(first.body == again.body, "{} and {}", first.body, again.body);
        send(order(&payers[0], "2"), &key).await?.expect("422 idempotency_mismatch field=amount")?;
        // The same key of another payer names another transfer, and so does another key of the same payer.
        let other_payer = send(order(&payers[1], "1"), &key).await?.expect("201 posted")?;
        let other_key = send(order(&payers[0], "1"), &format!("{key}2")).await?.expect("201 posted")?;
        let ids = [&first.body["id"], &other_payer.body["id"], &other_key.body["id"]];
        expect!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
        let longest = format!("{payee_shard}{}", "k".repeat(254));
        send(order(&payers[0], "1"), &longest).await?.expect("201 posted")?;
        send(order(&payers[0], "1"), &longest).await?.expect("200 posted replayed")?;
        // The id that the router derived from the key is the transfer's id and can be used as such.
        let mut by_id = order(&payers[0], "1");
        by_id["id"] = first.body["id"].clone();
        stage.api.expect(Call::post("/v1/transfers", &by_id), "200 posted replayed").await?;
        // The key is ignored if the body has an id.
        by_id["id"] = json!(Uuid::now_v7());
        let own = send(by_id.clone(), &key).await?.expect("201 posted")?;
        expect!(own.body["id"] == by_id["id"], "{}", own.body);
        ensure!(stage.posted(&payee).await? == "5.00", "the payee should have 5.00");
        // Without the debit account, nothing is stored, and the key stays free.
        let late = stage.name(0)?;
        for _ in 0..2 {
            send(order(&late, "1"), &key).await?.expect("422 account_not_found side=debit")?;
        }
        stage.open(&late, "USD", json!({"overdraft": "1"})).await?;
        send(order(&late, "1"), &key).await?.expect("201 posted")?;
    }
    // The items of a batch need ids.
    let body = json!({"transfers": [{"debit": payers[0], "credit": payers[1], "amount": "1", "asset": "USD"}]});
    let call = Call::post("/v1/transfers:batch", &body).header("idempotency-key", "k");
    stage.api.expect(call, "400 idempotency_required at='/transfers/0/id'").await?;
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_is_found_with_its_steps() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let payer = stage.account(0, "USD posted=9").await?;
    let payees =
        [stage.account(0, "USD").await?, stage.account(1, "USD").await?, stage.account(1, "USD closed").await?];
    for (payee, expected, steps) in [
        (&payees[0], "200 posted", None),
        (&payees[1], "200 posted", Some(json!([["reserve", "s0"], ["decide", "s1"], ["settle", "s0"]]))),
        (
            &payees[2],
            "200 rejected side=credit",
            Some(json!([["reserve", "s0"], ["decide", "s1"], ["compensate", "s0"]])),
        ),
    ] {
        let id = Uuid::now_v7();
        let mut body = terms(id, &payer, payee, "1.50", "USD");
        body["metadata"] = json!({"b": "2", "a": "\"1\""});
        let answer = stage.api.send(Call::post("/v1/transfers", &body)).await?;
        let path = format!("/v1/transfers/{id}?debit={}", escaped(&payer));
        if answer.status == 201 {
            ensure!(answer.header("location") == path, "Location: {:?}", answer.header("location"));
        }
        let by_debit = stage.api.expect(Call::get(&path), expected).await?.body;
        let by_id = stage.api.expect(Call::get(&format!("/v1/transfers/{id}")), expected).await?.body;
        ensure!(by_debit == by_id, "{by_debit} and {by_id}");
        for member in ["id", "debit", "credit", "asset", "amount", "metadata"] {
            ensure!(by_id[member] == body[member], "{member} in {by_id}");
        }
        let taken = by_id["steps"]
            .as_array()
            .map(|steps| steps.iter().map(|step| json!([step["step"], step["shard"]])).collect::<Vec<_>>());
        ensure!(taken.map(Value::from) == steps, "steps of {by_id}");
        let times: Vec<&str> =
            by_id["steps"].as_array().into_iter().flatten().filter_map(|step| step["at"].as_str()).collect();
        expect!(times.iter().all(|time| time.ends_with('Z')), "{by_id}");
        if answer.status == 201 {
            for (member, value) in answer.body.as_object().context("no object")? {
                ensure!(by_id[member] == *value, "{member}: answered {}, read {by_id}", answer.body);
            }
            expect!(by_id["debit_account"].is_object() && by_id["posted_at"].is_string(), "{by_id}");
        } else {
            expect!(by_id["reject_code"] == "account_closed" && by_id["rejected_at"].is_string(), "{by_id}");
        }
        // The credit account has no transfer of this id.
        let elsewhere = format!("/v1/transfers/{id}?debit={}", escaped(payee));
        stage.api.expect(Call::get(&elsewhere), "404 transfer_not_found").await?;
    }
    stage.finish().await
}

/// An id of two payers names two transfers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_payers_may_use_one_id() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    for other_shard in 0..2 {
        let payers = [stage.account(0, "USD posted=9").await?, stage.account(other_shard, "USD posted=9").await?];
        let payee = stage.account(2, "USD").await?;
        let id = Uuid::now_v7();
        for (payer, amount) in payers.iter().zip(["1.00", "2.00"]) {
            stage
                .api
                .expect(Call::post("/v1/transfers", &terms(id, payer, &payee, amount, "USD")), "201 posted")
                .await?;
        }
        let path = format!("/v1/transfers/{id}");
        let ambiguous = stage.api.expect(Call::get(&path), "409 ambiguous_id").await?;
        expect!(ambiguous.body["transfer_id"] == json!(id), "{}", ambiguous.body);
        for (payer, amount) in payers.iter().zip(["1.00", "2.00"]) {
            let path = format!("{path}?debit={}", escaped(payer));
            let found = stage.api.expect(Call::get(&path), "200 posted").await?.body;
            expect!(found["debit"] == payer.as_str() && found["amount"] == amount, "{found}");
        }
        ensure!(stage.posted(&payee).await? == "3.00", "the payee should have both payments, 3.00 together");
    }
    stage.finish().await
}

/// A replay comes before `ambiguous_id`, because what the first request stored says which transfer is meant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_answered_when_its_id_has_become_ambiguous() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    for other_shard in 0..2 {
        let (payer, payee) = (stage.account(0, "USD posted=9").await?, stage.account(other_shard, "USD").await?);
        let bystander = stage.account(2, "USD posted=9").await?;
        // The reversal itself, which is the payee's transfer, has the id of its original.
        let id = Uuid::now_v7();
        stage
            .api
            .expect(Call::post("/v1/transfers", &terms(id, &payer, &payee, "5.00", "USD")), "201 posted")
            .await?;
        let reverse = |own: Uuid, amount: &str| {
            Call::post(&format!("/v1/transfers/{id}/reverse"), &json!({"id": own, "amount": amount}))
        };
        let first = stage.api.expect(reverse(id, "2.00"), "201 posted").await?;
        let again = stage.api.expect(reverse(id, "2.00"), "200 posted replayed").await?;
        ensure!(first.body == again.body, "{} and {}", first.body, again.body);
        stage.api.expect(reverse(id, "3.00"), "422 idempotency_mismatch field=amount").await?;
        stage.api.expect(reverse(Uuid::now_v7(), "2.00"), "409 ambiguous_id").await?;

        // Another payer places a hold of the same id.
        let hold = Uuid::now_v7();
        let capture = |own: Uuid| {
            Call::post(&format!("/v1/holds/{hold}/capture"), &json!({"id": own, "amount": "1.00", "final": false}))
        };
        let own = Uuid::now_v7();
        stage.api.expect(Call::post("/v1/holds", &terms(hold, &payer, &payee, "4.00", "USD")), "201 held").await?;
        let first = stage.api.expect(capture(own), "201 posted").await?;
        stage
            .api
            .expect(Call::post("/v1/holds", &terms(hold, &bystander, &payee, "4.00", "USD")), "201 held")
            .await?;
        let again = stage.api.expect(capture(own), "200 posted replayed").await?;
        ensure!(first.body == again.body, "{} and {}", first.body, again.body);
        stage.api.expect(capture(Uuid::now_v7()), "409 ambiguous_id").await?;
        ensure!(stage.posted(&payee).await? == "4.00", "a replay captured or reversed once more");
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_compared_by_its_meaning_and_not_by_its_spelling() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    for payee_shard in 0..2 {
        let payer = stage.account(0, "USD posted=9").await?;
        let payee = stage.account(payee_shard, "USD").await?;
        let id = Uuid::now_v7();
        let first = format!(
            r#"{{"id": "{id}", "debit": "{payer}", "credit": "{payee}", "amount": "1.50", "asset": "USD", "metadata": {{"a": "1", "b": "ü"}}}}"#
        );
        let again = format!(
            r#"{{"metadata": {{"b": "\u00fc", "a": "1"}}, "asset": "USD", "amount": "01.5", "credit": "{payee}", "debit": "{payer}", "id": "{}"}}"#,
            id.to_string().to_uppercase()
        );
        let send = |body: &str| stage.api.send(Call::new(Method::POST, "/v1/transfers", body.to_owned()));
        let first_answer = send(&first).await?.expect("201 posted")?;
        let again_answer = send(&again).await?.expect("200 posted replayed")?;
        ensure!(first_answer.body == again_answer.body, "{} and {}", first_answer.body, again_answer.body);
        let twice = Call::new(Method::POST, "/v1/transfers:batch", format!(r#"{{"transfers": [{first}, {again}]}}"#));
        stage.api.expect(twice, "400 duplicate_id at='/transfers/1/id'").await?;
        // No metadata, empty metadata and null are equal.
        let id = Uuid::now_v7();
        for (metadata, expected) in [
            (None, "201 posted"),
            (Some(json!({})), "200 posted replayed"),
            (Some(json!(null)), "200 posted replayed"),
        ] {
            let mut body = terms(id, &payer, &payee, "1", "USD");
            if let Some(metadata) = metadata {
                body["metadata"] = metadata;
            }
            stage.api.expect(Call::post("/v1/transfers", &body), expected).await?;
        }
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_answered_before_anything_that_the_ledger_would_say_now() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    for payee_shard in 0..2 {
        let payer = stage.account(0, "USD posted=10").await?;
        let payee = stage.account(payee_shard, "USD").await?;
        let send =
            |id, amount: &str| stage.api.send(Call::post("/v1/transfers", &terms(id, &payer, &payee, amount, "USD")));
        let (all, short) = (Uuid::now_v7(), Uuid::now_v7());
        let first = send(all, "10.00").await?.expect("201 posted")?;
        send(short, "0.01").await?.expect("422 insufficient_funds side=debit")?;
        // Now the refused transfer would be paid, and the paid transfer would be refused.
        let giver = stage.account(0, "USD posted=1").await?;
        stage.pay(&giver, &payer, "1", "USD").await?;
        let change = |id: &str, change: Value| Call::new(Method::PATCH, &account_path(id), change.to_string());
        stage.api.expect(change(&payer, json!({"status": "frozen"})), "200 frozen").await?;
        stage.api.expect(change(&payee, json!({"max_balance": "0"})), "200 open").await?;
        let again = send(all, "10.00").await?.expect("200 posted replayed")?;
        ensure!(again.body == first.body, "{} and {}", first.body, again.body);
        send(short, "0.01").await?.expect("422 insufficient_funds side=debit replayed")?;
        // A mismatch comes before the rules of the ledger as well.
        send(all, "99.00").await?.expect("422 idempotency_mismatch field=amount")?;
        send(short, "99.00").await?.expect("422 idempotency_mismatch field=amount")?;
        send(Uuid::now_v7(), "99.00").await?.expect("422 account_frozen side=debit")?;
    }
    stage.finish().await
}

/// A trace context and a time limit do not change that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_is_in_the_answer() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let call = Call::get("/v1/accounts/nobody")
        .header("x-request-id", "mine-1")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("x-request-timeout-ms", "30000");
    let reply = stage.api.expect(call, "404 account_not_found").await?;
    expect!(reply.header("x-request-id") == "mine-1" && reply.body["request_id"] == "mine-1", "{}", reply.body);
    for unusable in ["", "a b", &"x".repeat(129)] {
        let reply = stage.api.send(Call::get("/v1/accounts/nobody").header("x-request-id", unusable)).await?;
        expect!(reply.header("x-request-id") != unusable, "{:?}", reply.headers);
    }
    stage.finish().await
}
