//! Accounts that are closed while money is on its way from or to them.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::{join3, try_join_all};
use http::Method;
use serde_json::json;
use testkit::{client::account_path, history::ASSET, seed::Random};
use uuid::Uuid;

use super::stage::{ELSEWHERE, SOURCE, Stage, said, transfer_path};

const ROUNDS: usize = 8;
/// How often closing is tried while the payment is under way.
const TRIES: usize = 6;
const BETWEEN_TRIES_MS: usize = 12;

/// A payer is closed while its last money is on its way to another shard, where it is refused in every other round.
pub async fn no_money_comes_back_to_a_closed_account(stage: &Stage<'_>, random: &mut Random) -> anyhow::Result<()> {
    let rounds: Vec<(bool, usize)> = (0..ROUNDS).map(|n| (n % 2 == 0, random.below(BETWEEN_TRIES_MS) + 1)).collect();
    try_join_all(rounds.into_iter().map(|(refused, pause_ms)| async move {
        for captures in [false, true] {
            let round = Round { refused, captures, pause_ms };
            round.run(stage).await.with_context(|| format!("{round:?}"))?;
        }
        anyhow::Ok(())
    }))
    .await?;
    Ok(())
}

#[derive(Debug)]
struct Round {
    refused: bool,
    /// The money leaves through a hold.
    captures: bool,
    pause_ms: usize,
}

impl Round {
    async fn run(&self, stage: &Stage<'_>) -> anyhow::Result<()> {
        let payer = stage.account(SOURCE, "10.00").await?;
        let payee = stage.account(ELSEWHERE, "0.00").await?;
        let held = match self.captures {
            true => Some(stage.hold(&payer, &payee, "10.00", None).await?),
            false => None,
        };
        if self.refused {
            set_status(stage, &payee, "closed").await?;
        }
        let id = Uuid::now_v7();
        let paid = async {
            match &held {
                Some(held) => stage.send(&held.path("/capture"), &json!({"id": id})).await,
                None => {
                    let order = json!({"id": id, "debit": payer, "credit": payee, "amount": "10.00", "asset": ASSET});
                    stage.send("/v1/transfers", &order).await
                }
            }
        };
        let closed = async {
            let mut closed = false;
            for _ in 0..TRIES {
                tokio::time::sleep(Duration::from_millis(self.pause_ms as u64)).await;
                closed |= set_status(stage, &payer, "closed").await?;
            }
            anyhow::Ok(closed)
        };
        let (paid, closed) = tokio::join!(paid, closed);
        let (paid, closed) = (paid?, closed?);
        if self.refused {
            ensure!(said(&paid) == "account_closed", "{}", paid.text());
            ensure!(!closed, "it was closed with its money out on the road");
            let in_hold = if self.captures { "10.00" } else { "0.00" };
            ensure!(stage.balance(&payer).await? == ("10.00".to_owned(), in_hold.to_owned()));
            return Ok(());
        }
        ensure!(said(&paid) == "posted", "{}", paid.text());
        ensure!(closed || set_status(stage, &payer, "closed").await?, "an empty account cannot be closed");
        // What is closed is not paid back to, and whoever has the money keeps it.
        let back = stage.send(&transfer_path(id, &payer, "/reverse"), &json!({"id": Uuid::now_v7()})).await?;
        ensure!(said(&back) == "account_closed" && back.json()?["side"] == "credit", "{}", back.text());
        ensure!(stage.balance(&payer).await?.0 == "0.00" && stage.balance(&payee).await?.0 == "10.00");
        Ok(())
    }
}

/// A payee is closed while a hold is captured to it and what it was paid before is reversed: each of the three finds the
/// others done, or not begun.
pub async fn a_hold_survives_its_payee(stage: &Stage<'_>) -> anyhow::Result<()> {
    try_join_all((0..ROUNDS).map(|n| async move {
        let payee_shard = if n % 2 == 0 { SOURCE } else { ELSEWHERE };
        let payer = stage.account(SOURCE, "15.00").await?;
        let payee = stage.account(payee_shard, "0.00").await?;
        let before = stage.pay(&payer, &payee, "5.00").await?;
        let hold = stage.hold(&payer, &payee, "10.00", None).await?;
        let (captured, reversed, closed) = join3(
            take_all(stage, &hold.path("/capture")),
            take_all(stage, &transfer_path(before, &payer, "/reverse")),
            set_status(stage, &payee, "closed"),
        )
        .await;
        let (captured, reversed, mut closed) = (captured?, reversed?, closed?);
        ensure!(reversed == "posted", "{reversed}");
        if captured == "posted" {
            ensure!(!closed, "closed with money in it");
            ensure!(stage.balance(&payee).await?.0 == "10.00" && stage.balance(&payer).await?.1 == "0.00");
        } else {
            ensure!(captured == "account_closed" && closed, "{captured}, closed: {closed}");
            ensure!(stage.balance(&payer).await? == ("15.00".to_owned(), "10.00".to_owned()));
            // The hold is as it was: to be captured after all, or released.
            if n % 4 < 2 {
                closed = !set_status(stage, &payee, "open").await?;
                ensure!(take_all(stage, &hold.path("/capture")).await? == "posted" && !closed);
            } else {
                let released = stage.send(&hold.path("/release"), &json!({})).await?;
                ensure!(said(&released) == "released", "{}", released.text());
                ensure!(stage.balance(&payer).await? == ("15.00".to_owned(), "0.00".to_owned()));
            }
        }
        anyhow::Ok(())
    }))
    .await?;
    Ok(())
}

/// Captures, or reverses, all there is under a new id.
async fn take_all(stage: &Stage<'_>, path: &str) -> anyhow::Result<String> {
    Ok(said(&stage.send(path, &json!({"id": Uuid::now_v7()})).await?))
}

/// Whether the account has that status now.
async fn set_status(stage: &Stage<'_>, account: &str, status: &str) -> anyhow::Result<bool> {
    let answer = stage.send_as(Method::PATCH, &account_path(account), &json!({"status": status})).await?;
    ensure!(answer.status == 200 || said(&answer) == "account_not_empty", "{}", answer.text());
    Ok(answer.status == 200)
}
