//! One id, many requests at one instant through two routers: one effect, one answer.

use std::collections::HashSet;

use anyhow::ensure;
use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::{client::Answer, history::ASSET};
use tokio::sync::Barrier;
use uuid::Uuid;

use super::stage::{ELSEWHERE, Held, SOURCE, Stage, transfer_path};

const AT_ONCE: usize = 50;

pub async fn one_id_is_one_effect(stage: &Stage<'_>) -> anyhow::Result<()> {
    for payee_shard in [SOURCE, ELSEWHERE] {
        let payer = stage.account(SOURCE, "50.00").await?;
        let payee = stage.account(payee_shard, "0.00").await?;
        let id = Uuid::now_v7();
        let order = json!({"id": id, "debit": payer, "credit": payee, "amount": "30.00", "asset": ASSET});
        let held = one_answer(stage, "/v1/holds", &order).await?;
        ensure!(held["debit_account"]["held"] == "30.00", "{held}");
        let hold = Held { id, debit: payer.clone(), credit: payee.clone() };

        // Part of it, all that remains, and, of a second one, nothing.
        let part = json!({"id": Uuid::now_v7(), "amount": "5.00", "final": false});
        let captured = one_answer(stage, &hold.path("/capture"), &part).await?;
        ensure!(captured["amount"] == "5.00" && captured["debit_account"]["held"] == "25.00", "{captured}");
        let capture = Uuid::now_v7();
        let rest = json!({"id": capture, "amount": "20.00"});
        let captured = one_answer(stage, &hold.path("/capture"), &rest).await?;
        ensure!(captured["status"] == "posted" && captured["debit_account"]["held"] == "0.00", "{captured}");
        ensure!(stage.balance(&payer).await? == ("25.00".to_owned(), "0.00".to_owned()));
        ensure!(stage.balance(&payee).await?.0 == "25.00", "captured more than once, or not at all");

        let reversal = json!({"id": Uuid::now_v7()});
        let reversed = one_answer(stage, &transfer_path(capture, &payer, "/reverse"), &reversal).await?;
        ensure!(reversed["amount"] == "20.00", "{reversed}");
        ensure!(stage.balance(&payee).await?.0 == "5.00", "reversed more than once, or not at all");

        let second = stage.hold(&payer, &payee, "40.00", None).await?;
        let released = one_answer(stage, &second.path("/release"), &json!({})).await?;
        ensure!(released["status"] == "released", "{released}");
        ensure!(stage.balance(&payer).await? == ("45.00".to_owned(), "0.00".to_owned()));
    }
    Ok(())
}

/// All requests leave when the last one is ready. One of them does it, the others are replays, and all get the same body.
async fn one_answer(stage: &Stage<'_>, path: &str, body: &Value) -> anyhow::Result<Value> {
    let start = Barrier::new(AT_ONCE);
    let requests = (0..AT_ONCE).map(async |_| {
        start.wait().await;
        stage.send(path, body).await
    });
    let answers: Vec<Answer> = join_all(requests).await.into_iter().collect::<anyhow::Result<_>>()?;
    for answer in &answers {
        ensure!(matches!(answer.status, 200 | 201), "{path}: {} {}", answer.status, answer.text());
        // A release makes nothing and is 200 from the first.
        ensure!(answer.status == 200 || !answer.is_replay(), "{path}: {} {}", answer.status, answer.text());
    }
    let first = answers.iter().filter(|answer| !answer.is_replay()).count();
    ensure!(first == 1, "{path}: {first} answers are no replays");
    let different: HashSet<String> = answers.iter().map(Answer::text).collect();
    ensure!(different.len() == 1, "{path}: {} different answers: {different:?}", different.len());
    answers[0].json()
}
